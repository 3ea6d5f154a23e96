//! `messages`: a conversation with contents as strings or arrays of text parts, with tool calls and their results.

use serde_json::Map;

use super::{
    compat,
    schema::{
        FieldType, Location, Modify, array, boolean, either, json_object, object, one_of, shape, string,
        tagged_shape,
    },
};
use crate::{
    http::field_error::FieldError,
    text::{Arguments, Conversation, Message, PromptEnding, ToolCall},
};

shape! {
    /// A message of a conversation.
    pub(crate) struct ChatMessage {
        /// `system`, `developer`, `user`, `assistant`, `tool`, or another role that the chat template knows.
        role: String = string();
        /// May be absent in messages of the assistant and of tools.
        content: Option<String> = content().optional();
        /// Calls that the assistant made.
        tool_calls: Vec<ToolCall> = array(object::<ChatToolCall>().map(ChatToolCall::into_call)).or_empty();
        /// In a message of the role `tool`: the call that it is the result of.
        tool_call_id: Option<String> = string().optional();
        /// The name of the author, or of the function in a message of the role `tool`. Few chat templates use it.
        name: Option<String> = string().optional();
        /// The assistant's reasoning before its answer.
        reasoning_content: Option<String> = string().optional();
        /// The same.
        reasoning: Option<String> = string().optional();
        /// Whether the answer continues this message, which is the last one.
        prefix: bool = boolean().or(false);
        /// The same.
        partial: bool = boolean().or(false);
    }
    accepts compat::MESSAGE;
}

shape! {
    /// A call that the assistant made.
    pub(crate) struct ChatToolCall {
        id: Option<String> = string().optional();
        _kind as "type": Option<()> = function_kind().optional();
        function: CalledFunction = object();
    }
    accepts compat::CALL;
}

shape! {
    /// The function that was called, and its arguments.
    pub(crate) struct CalledFunction {
        name: String = string();
        /// As the model wrote them, usually the text of a JSON object; an object may be sent as well.
        arguments: Option<Arguments> = arguments().optional();
    }
    accepts compat::CALLED_FUNCTION;
}

tagged_shape! {
    /// A part of a content; only text is supported.
    pub(crate) enum ContentPart by "type" {
        "text" | "input_text" | "output_text" => Text(TextPart),
        "refusal" => Refusal(RefusalPart),
    }
}

shape! {
    /// A text.
    pub(crate) struct TextPart {
        text: String = string();
    }
    accepts compat::PART;
}

shape! {
    /// A text in which the model refused to answer.
    pub(crate) struct RefusalPart {
        refusal: String = string();
    }
    accepts compat::PART;
}

/// A conversation of at least one message.
pub(crate) fn messages() -> impl FieldType<Value = Conversation> {
    array(object::<ChatMessage>().try_map(ChatMessage::into_message)).items(1..=usize::MAX).map(conversation)
}

/// A conversation of messages, each with whether the answer continues it.
fn conversation(messages: Vec<(Message, bool)>) -> Conversation {
    let continues = messages.last().is_some_and(|(_, continues)| *continues);
    let ending = if continues { PromptEnding::ContinueLast } else { PromptEnding::NextMessage };
    Conversation {
        messages: messages.into_iter().map(|(message, _)| message).collect(),
        ending,
        ..Conversation::default()
    }
}

/// A text, or an array of its parts.
pub(super) fn content() -> impl FieldType<Value = String> {
    either(string(), array(object::<ContentPart>().map(ContentPart::into_text)).map(|parts| parts.concat()))
        .named("Content", "A text, or an array of its parts.")
}

/// OpenAI sends arguments as the text of an object. Any text is accepted: a model may write invalid JSON, and clients send
/// back what they received.
pub(super) fn arguments() -> impl FieldType<Value = Arguments> {
    either(string().map(written_arguments), json_object().map(Arguments::Object))
}

fn written_arguments(text: String) -> Arguments {
    if text.trim().is_empty() { no_arguments() } else { Arguments::Written(text) }
}

pub(super) fn no_arguments() -> Arguments {
    Arguments::Object(Map::new())
}

/// The `type` of tools and calls.
pub(super) const fn function_kind() -> impl FieldType<Value = ()> {
    one_of(&[("function", ())])
}

impl ChatMessage {
    /// The message, and whether the answer continues it.
    fn into_message(self, at: &Location) -> Result<(Message, bool), FieldError> {
        let Self { role, content, mut tool_calls, mut tool_call_id, name, .. } = self;
        if role != "assistant" && !tool_calls.is_empty() {
            let instead = " or send []; only messages of the assistant have calls";
            unsupported(&at.field("tool_calls"), instead)?;
            tool_calls.clear();
        }
        if role != "tool" && tool_call_id.take().is_some() {
            unsupported(&at.field("tool_call_id"), "; only messages of the role tool have one")?;
        }
        let may_be_empty = matches!(role.as_str(), "assistant" | "tool");
        if content.is_none() && !may_be_empty {
            return Err(at.field("content").missing());
        }
        let reasoning =
            [self.reasoning_content, self.reasoning].into_iter().flatten().find(|text| !text.is_empty());
        let reasoning = reasoning.filter(|_| role == "assistant");
        let continues = self.prefix || self.partial;
        Ok((
            Message { role, content, reasoning, tool_calls, tool_call_id, name, ..Message::default() },
            continues,
        ))
    }
}

fn unsupported(at: &Location, instead: &str) -> Result<(), FieldError> {
    at.refuse(FieldError::Unsupported { param: at.path().to_owned(), instead: instead.to_owned() })
}

impl ChatToolCall {
    fn into_call(self) -> ToolCall {
        let CalledFunction { name, arguments } = self.function;
        ToolCall::new(self.id, name, arguments.unwrap_or_else(no_arguments))
    }
}

impl ContentPart {
    fn into_text(self) -> String {
        match self {
            Self::Text(part) => part.text,
            Self::Refusal(part) => part.refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::request::schema::Fields;

    fn take(conversation: Value) -> Result<Conversation, FieldError> {
        let body = json!({ "messages": conversation }).to_string();
        Fields::parse(body.as_bytes()).unwrap().take("messages", messages())
    }

    #[test]
    fn content_that_is_null_or_absent_is_accepted_of_the_assistant_and_of_tools() {
        for message in [
            json!({ "role": "assistant" }),
            json!({ "role": "assistant", "content": null, "refusal": null }),
            json!({ "role": "tool", "tool_call_id": "a", "content": null }),
        ] {
            assert_eq!(take(json!([message])).unwrap().messages[0].content, None);
        }
        for role in ["user", "system", "developer"] {
            let error = take(json!([{ "role": role, "content": null }])).unwrap_err();
            assert_eq!((error.param(), error.code()), ("messages[0].content", "missing_field"));
        }
    }

    #[test]
    fn parts_of_text_are_accepted_in_every_spelling() {
        let parts = json!([
            { "type": "text", "text": "a" },
            { "type": "input_text", "text": "b" },
            { "type": "output_text", "text": "c", "annotations": [] },
            { "type": "refusal", "refusal": "d" },
        ]);
        let taken = take(json!([{ "role": "assistant", "content": parts }])).unwrap();
        assert_eq!(taken.messages[0].content.as_deref(), Some("abcd"));
        let error = take(json!([{ "role": "user", "content": [{ "type": "image_url" }] }])).unwrap_err();
        assert_eq!(error.param(), "messages[0].content[0].type");
    }
}
