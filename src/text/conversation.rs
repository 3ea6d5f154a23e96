//! What is said so far, as chat templates want it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ToolCall;

/// Messages, and what the model is told besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// In the order they were said.
    pub messages: Vec<Message>,
    /// Tools that the model may call, each an object as OpenAI has it; none is how most conversations are.
    pub tools: Vec<Value>,
    /// What the answer is made to begin with: it is put behind what the template makes.
    pub opening: &'static str,
}

impl Conversation {
    /// About how much text it is, for judging what it costs to render and tokenize it: a tool or a call counts as much as
    /// most of them have.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        const TOOL: usize = 2 << 10;
        let message = |message: &Message| {
            message.role.len()
                + message.content.as_ref().map_or(0, String::len)
                + message.tool_calls.len() * TOOL
        };
        self.tools.len() * TOOL + self.messages.iter().map(message).sum::<usize>()
    }
}

/// One message of a conversation. A template sees the fields that are there, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Who said it; which roles there are, the model's chat template decides.
    pub role: String,
    /// What was said; a message of calls alone has none.
    pub content: Option<String>,
    /// Calls that an assistant made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who of several in that role said it, or the tool whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message that is text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Self::default() }
    }

    /// Whether it has calls or is a result, which need a template with tools.
    fn is_about_tools(&self) -> bool {
        !self.tool_calls.is_empty() || self.tool_call_id.is_some() || self.role == "tool"
    }
}

impl Conversation {
    /// Whether it has tools, calls or results, which need a template with tools.
    pub(super) fn is_about_tools(&self) -> bool {
        !self.tools.is_empty() || self.messages.iter().any(Message::is_about_tools)
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}
