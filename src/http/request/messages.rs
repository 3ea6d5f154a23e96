//! `messages`: who said what, with contents as strings or arrays of text parts, and with calls of tools and their results.

use serde_json::{Map, Value};

use super::{
    compat,
    fields::{Fields, wrong_type},
};
use crate::{
    http::field_error::FieldError,
    text::{Arguments, Conversation, Message, ToolCall},
};

/// Takes `messages`.
pub(crate) fn take_messages(fields: &mut Fields) -> Result<Conversation, FieldError> {
    let path = fields.path("messages");
    let items = match fields.require("messages")? {
        Value::Array(items) => items,
        other => return Err(wrong_type(&path, "an array of messages", &other)),
    };
    if items.is_empty() {
        return Err(FieldError::value(path, "there must be at least one message"));
    }
    let messages = items.into_iter().enumerate();
    let messages: Result<Vec<_>, _> =
        messages.map(|(place, item)| message_of(fields.nested(item, &format!("{path}[{place}]"))?)).collect();
    Ok(messages?.into())
}

fn message_of(mut fields: Fields) -> Result<Message, FieldError> {
    // Whom a name stands for, the model's chat template decides; most do without.
    let mut message =
        Message { role: fields.require("role")?, name: fields.take("name")?, ..Message::default() };
    match message.role.as_str() {
        "assistant" => message.tool_calls = take_calls(&mut fields)?,
        "tool" => message.tool_call_id = fields.take("tool_call_id")?,
        _ => {}
    }
    let content: Option<Value> = fields.take("content")?;
    // An answer may be empty, and a tool may have nothing to say; a question without words is a mistake.
    let may_be_empty = matches!(message.role.as_str(), "assistant" | "tool");
    if content.is_none() && !may_be_empty {
        return Err(FieldError::Missing { param: fields.path("content") });
    }
    message.content = content.map(|content| content_of(content, &fields)).transpose()?;
    fields.finish(&[compat::MESSAGE])?;
    Ok(message)
}

fn content_of(value: Value, message: &Fields) -> Result<String, FieldError> {
    let path = message.path("content");
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(place, part)| part_of(message.nested(part, &format!("{path}[{place}]"))?))
            .collect(),
        other => Err(wrong_type(&path, "a string or an array of text parts", &other)),
    }
}

/// The text of a part, in the spellings of chat completions and of responses.
pub(crate) fn part_of(mut part: Fields) -> Result<String, FieldError> {
    let kind: String = part.require("type")?;
    let text = match kind.as_str() {
        "text" | "input_text" | "output_text" => part.require("text")?,
        "refusal" => part.require("refusal")?,
        _ => {
            let said = format!(
                "unsupported part type {kind:?}; only text is supported (\"text\", \"input_text\", \"output_text\" and \
                 \"refusal\")"
            );
            return Err(FieldError::value(part.path("type"), said));
        }
    };
    part.finish(&[compat::PART])?;
    Ok(text)
}

fn take_calls(fields: &mut Fields) -> Result<Vec<ToolCall>, FieldError> {
    let path = fields.path("tool_calls");
    let calls: Vec<Value> = fields.take("tool_calls")?.unwrap_or_default();
    let calls = calls.into_iter().enumerate();
    calls.map(|(place, call)| call_of(fields.nested(call, &format!("{path}[{place}]"))?)).collect()
}

fn call_of(mut call: Fields) -> Result<ToolCall, FieldError> {
    let id: Option<String> = call.take("id")?;
    let kind: Option<String> = call.take("type")?;
    check_kind(kind.as_deref().unwrap_or("function"), &call.path("type"))?;
    let mut function = call.require_nested("function")?;
    let name: String = function.require("name")?;
    let arguments = take_arguments(&mut function)?;
    function.finish(&[compat::CALLED_FUNCTION])?;
    call.finish(&[compat::CALL])?;
    Ok(ToolCall::new(id, name, arguments))
}

/// Takes the `arguments` of a call. OpenAI writes them as the text of an object; any text is accepted, because a model may
/// have written any, and what eka sent comes back with the next request.
pub(crate) fn take_arguments(fields: &mut Fields) -> Result<Arguments, FieldError> {
    match fields.take("arguments")? {
        None => Ok(Arguments::Object(Map::new())),
        Some(Value::Object(arguments)) => Ok(Arguments::Object(arguments)),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Arguments::Object(Map::new())),
        Some(Value::String(text)) => Ok(Arguments::Written(text)),
        Some(other) => Err(wrong_type(&fields.path("arguments"), "the text of a JSON object", &other)),
    }
}

/// Tools and calls are of functions alone.
pub(crate) fn check_kind(kind: &str, path: &str) -> Result<(), FieldError> {
    if kind == "function" {
        return Ok(());
    }
    Err(FieldError::value(path, format!("unsupported tool type {kind:?}; only \"function\" is supported")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(messages: Value) -> Result<Conversation, FieldError> {
        let body = json!({ "messages": messages }).to_string();
        take_messages(&mut Fields::parse(body.as_bytes()).unwrap())
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
