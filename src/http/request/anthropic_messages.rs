//! Messages of Anthropic's API: blocks of text, reasoning, tool calls and their results.

use serde_json::{Map, Value};

use super::{
    compat,
    schema::{
        FieldType, Modify, array, boolean, either, json_object, object, one_of, shape, string, tagged_shape,
    },
};
use crate::{
    http::field_error::FieldError,
    text::{Arguments, Conversation, Message, PromptEnding, ToolCall},
};

shape! {
    /// A message of a conversation.
    pub(crate) struct AnthropicMessage {
        role: &'static str = one_of(&[("user", "user"), ("assistant", "assistant"), ("system", "system")]);
        content: Vec<MessageBlock> = blocks();
    }
    accepts compat::ANTHROPIC_BLOCK;
}

tagged_shape! {
    /// A block of a message.
    pub(crate) enum MessageBlock by "type" {
        "text" => Text(TextBlock),
        "thinking" => Thinking(ThinkingBlock),
        "redacted_thinking" => Redacted(RedactedBlock),
        "tool_use" => ToolUse(ToolUseBlock),
        "tool_result" => ToolResult(ToolResultBlock),
    }
}

shape! {
    /// A text.
    pub(crate) struct TextBlock {
        text: String = string();
    }
    accepts compat::ANTHROPIC_BLOCK;
}

shape! {
    /// The model's reasoning.
    pub(crate) struct ThinkingBlock {
        thinking: String = string();
    }
    accepts compat::ANTHROPIC_BLOCK;
}

shape! {
    /// Reasoning that only Anthropic's servers can read; it is left out.
    pub(crate) struct RedactedBlock {
        _data as "data": Option<String> = string().optional();
    }
    accepts compat::ANTHROPIC_BLOCK;
}

shape! {
    /// A call of a tool.
    pub(crate) struct ToolUseBlock {
        id: String = string();
        name: String = string();
        input: Map<String, Value> = json_object().or_empty();
    }
    accepts compat::ANTHROPIC_BLOCK;
}

shape! {
    /// The result of a call.
    pub(crate) struct ToolResultBlock {
        tool_use_id: String = string();
        content: Option<String> = system_text().optional();
        is_error: bool = boolean().or(false);
    }
    accepts compat::ANTHROPIC_BLOCK;
}

tagged_shape! {
    /// A block of text.
    pub(crate) enum TextOnly by "type" {
        "text" => Text(TextBlock),
    }
}

/// A text, or blocks of text, each on its own lines.
pub(super) fn system_text() -> impl FieldType<Value = String> {
    let text = |blocks: Vec<TextOnly>| {
        let texts: Vec<_> = blocks.into_iter().map(|TextOnly::Text(block)| block.text).collect();
        texts.join("\n")
    };
    either(string(), array(object::<TextOnly>()).map(text)).named("SystemText", "A text, or blocks of text.")
}

/// A text, or blocks.
fn blocks() -> impl FieldType<Value = Vec<MessageBlock>> {
    either(string().map(|text| vec![MessageBlock::Text(TextBlock { text })]), array(object::<MessageBlock>()))
        .named("Blocks", "A text, or blocks of text, reasoning, tool calls and their results.")
}

/// The conversation, with `system` as its first message. An answer continues a last message of the assistant.
pub(super) fn conversation(
    sent: Vec<AnthropicMessage>,
    system: Option<String>,
) -> Result<Conversation, FieldError> {
    let mut messages: Vec<Message> = Vec::new();
    messages.extend(system.filter(|text| !text.is_empty()).map(|text| Message::new("system", text)));
    for AnthropicMessage { role, content } in sent {
        add_message(&mut messages, role, content);
    }
    if messages.iter().all(|message| message.role == "system") {
        return Err(FieldError::Missing { param: "messages".into() });
    }
    let is_prefill = |last: &Message| {
        let has_text = last.content.as_ref().is_some_and(|text| !text.trim().is_empty());
        last.role == "assistant" && last.tool_calls.is_empty() && has_text
    };
    let continues = messages.last().is_some_and(is_prefill);
    let ending = if continues { PromptEnding::ContinueLast } else { PromptEnding::NextMessage };
    Ok(Conversation { messages, ending, ..Conversation::default() })
}

/// Adds the message of some blocks. Results of calls become messages of their own.
fn add_message(messages: &mut Vec<Message>, role: &str, blocks: Vec<MessageBlock>) {
    let mut message = Message { role: role.into(), ..Message::default() };
    for block in blocks {
        match block {
            MessageBlock::Text(TextBlock { text }) => append(&mut message.content, &text),
            MessageBlock::Thinking(ThinkingBlock { thinking }) => append(&mut message.reasoning, &thinking),
            MessageBlock::Redacted(RedactedBlock { .. }) => {}
            MessageBlock::ToolUse(ToolUseBlock { id, name, input }) => {
                message.tool_calls.push(ToolCall::new(Some(id), name, Arguments::Object(input)));
            }
            MessageBlock::ToolResult(result) => messages.push(result.into_message()),
        }
    }
    if message.content.is_some() || !message.tool_calls.is_empty() || message.reasoning.is_some() {
        messages.push(message);
    }
}

/// Adds a block to a text, on lines of its own.
fn append(text: &mut Option<String>, more: &str) {
    match text {
        Some(text) if !text.is_empty() => {
            text.push('\n');
            text.push_str(more);
        }
        text => *text = Some(more.to_owned()),
    }
}

impl ToolResultBlock {
    fn into_message(self) -> Message {
        let content = self.content.unwrap_or_default();
        let content = if self.is_error { format!("Error: {content}") } else { content };
        Message { tool_call_id: Some(self.tool_use_id), ..Message::new("tool", content) }
    }
}
