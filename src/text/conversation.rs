//! A conversation, in the form that chat templates take.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ToolCall;

/// Messages, tools, and the beginning of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// In chronological order.
    pub messages: Vec<Message>,
    /// Tools that the model may call, each an object in OpenAI's format; usually none.
    pub tools: Vec<Value>,
    /// Text that the answer must begin with, appended to the rendered template; empty if none.
    pub answer_prefix: String,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// How the rendered text ends.
    pub ending: PromptEnding,
}

/// How the text of a conversation ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PromptEnding {
    /// With the beginning of the assistant's next message (`add_generation_prompt`).
    #[default]
    NextMessage,
    /// After the last message.
    LastMessage,
    /// Within the last message, which the answer continues (`continue_final_message`).
    ContinueLast,
}

impl Conversation {
    /// Estimated length of the rendered text, to predict the cost of rendering and tokenizing. Every tool and every call counts
    /// as 2 KiB.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        const TOOL: usize = 2 << 10;
        let message = |message: &Message| {
            message.role.len()
                + message.content.as_ref().map_or(0, String::len)
                + message.reasoning.as_ref().map_or(0, String::len)
                + message.tool_calls.len() * TOOL
        };
        self.tools.len() * TOOL + self.messages.iter().map(message).sum::<usize>()
    }
}

/// One message of a conversation. A template sees the fields that are there, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// The author's role; the model's chat template decides which roles exist.
    pub role: String,
    /// The text; a message that only has calls has none.
    pub content: Option<String>,
    /// The assistant's reasoning before its answer.
    #[serde(rename = "reasoning_content", skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The reasoning under further names that templates use; rendering fills it.
    #[serde(flatten)]
    pub reasoning_aliases: Map<String, Value>,
    /// Calls that an assistant made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The author among several with that role, or the tool whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message with only text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), ..Self::default() }
    }

    /// Whether it has tool calls or is a tool's result, which need a template that supports tools.
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
