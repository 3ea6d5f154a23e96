//! `messages`: who said what, with contents as strings or arrays of text parts, and with calls of tools and their results.

use std::fmt::Display;

use serde_json::{Map, Value, json};

use super::{
    ask::is_empty_array,
    fields::{FieldError, Fields, Known, wrong_type},
};
use crate::text::{Conversation, Message};

/// Takes `messages`.
pub(super) fn conversation_of(value: Value, path: &str) -> Result<Conversation, FieldError> {
    let Value::Array(items) = value else { return Err(wrong_type(path, "an array of messages", &value)) };
    if items.is_empty() {
        return Err(FieldError::value(path, "there must be at least one message"));
    }
    let messages = items.into_iter().enumerate();
    let messages: Result<Vec<_>, _> =
        messages.map(|(place, item)| message_of(item, &format!("{path}[{place}]"))).collect();
    Ok(messages?.into())
}

/// Fields of a message that eka has no use for; empty ones are what some clients always send.
const OF_A_MESSAGE: &[Known] = &[
    Known { name: "refusal", asks_for_nothing: Value::is_null, only: "", kind: None },
    Known { name: "audio", asks_for_nothing: Value::is_null, only: "", kind: None },
    Known { name: "annotations", asks_for_nothing: is_empty_array, only: "[]", kind: None },
    Known { name: "tool_calls", asks_for_nothing: is_empty_array, only: "[]", kind: None },
    Known { name: "tool_call_id", asks_for_nothing: Value::is_null, only: "", kind: None },
    Known { name: "function_call", asks_for_nothing: Value::is_null, only: "", kind: None },
];

fn message_of(value: Value, path: &str) -> Result<Message, FieldError> {
    let mut fields = Fields::nested(value, path)?;
    // Whom a name stands for, the model's chat template decides; most do without.
    let mut message =
        Message { role: fields.require("role")?, name: fields.take("name")?, ..Message::default() };
    match message.role.as_str() {
        "assistant" => message.tool_calls = take_calls(&mut fields)?,
        "tool" => message.tool_call_id = fields.take("tool_call_id")?,
        _ => {}
    }
    let content: Option<Value> = fields.take("content")?;
    if content.is_none() && message.tool_calls.is_empty() {
        return Err(FieldError::Missing { param: fields.path("content") });
    }
    message.content = content.map(|content| content_of(content, &fields.path("content"))).transpose()?;
    fields.finish(OF_A_MESSAGE)?;
    Ok(message)
}

fn content_of(value: Value, path: &str) -> Result<String, FieldError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(place, part)| part_of(part, &format!("{path}[{place}]")))
            .collect(),
        other => Err(wrong_type(path, "a string or an array of text parts", &other)),
    }
}

fn part_of(value: Value, path: &str) -> Result<String, FieldError> {
    let mut fields = Fields::nested(value, path)?;
    let kind: String = fields.require("type")?;
    if kind != "text" {
        let said = format!("{kind:?} is not a part that eka can read; it reads \"text\"");
        return Err(FieldError::value(fields.path("type"), said));
    }
    let text = fields.require("text")?;
    fields.finish(&[])?;
    Ok(text)
}

fn take_calls(fields: &mut Fields) -> Result<Vec<Value>, FieldError> {
    let path = fields.path("tool_calls");
    let calls: Vec<Value> = fields.take("tool_calls")?.unwrap_or_default();
    calls.into_iter().enumerate().map(|(place, call)| call_of(call, &format!("{path}[{place}]"))).collect()
}

/// A call as templates have it: like OpenAI's, but with arguments as an object.
fn call_of(value: Value, path: &str) -> Result<Value, FieldError> {
    let mut call = Fields::nested(value, path)?;
    let id: Option<String> = call.take("id")?;
    let kind: Option<String> = call.take("type")?;
    check_kind(kind.as_deref().unwrap_or("function"), &call.path("type"))?;
    let mut function = Fields::nested(call.require("function")?, &call.path("function"))?;
    let name: String = function.require("name")?;
    let arguments = arguments_of(function.take("arguments")?, &function.path("arguments"))?;
    function.finish(&[])?;
    let index = Known { name: "index", asks_for_nothing: Value::is_number, only: "", kind: None };
    call.finish(&[index])?;
    Ok(told_call(id, &name, arguments))
}

/// A call as templates have it.
pub(super) fn told_call(id: Option<String>, name: &str, arguments: Map<String, Value>) -> Value {
    let mut told = Map::new();
    told.extend(id.map(|id| ("id".to_owned(), Value::from(id))));
    told.insert("type".into(), "function".into());
    told.insert("function".into(), json!({ "name": name, "arguments": arguments }));
    told.into()
}

/// The arguments of a call, which OpenAI writes as the text of an object.
pub(super) fn arguments_of(value: Option<Value>, path: &str) -> Result<Map<String, Value>, FieldError> {
    let wrong = |why: &dyn Display| {
        FieldError::value(
            path,
            format!("is not the text of a JSON object ({why}); send for example \"{{}}\""),
        )
    };
    match value {
        None => Ok(Map::new()),
        Some(Value::Object(arguments)) => Ok(arguments),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(&text).map_err(|error| wrong(&error)),
        Some(other) => Err(wrong_type(path, "the text of a JSON object", &other)),
    }
}

/// Tools and calls are of functions alone.
pub(super) fn check_kind(kind: &str, path: &str) -> Result<(), FieldError> {
    if kind == "function" {
        return Ok(());
    }
    Err(FieldError::value(path, format!("{kind:?} is not a tool that eka can do; it does \"function\"")))
}
