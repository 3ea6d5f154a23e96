//! `input` and `tools` of OpenAI's responses, which are flatter than those of its chat completions.

use serde_json::Value;

use super::{
    fields::{FieldError, Fields, Known, wrong_type},
    messages::{arguments_of, check_kind, told_call},
};
use crate::text::{Conversation, Message};

/// What the client sends back of an item that it was sent, and that says nothing to a model.
const OF_AN_ITEM: &[Known] = &[
    Known { name: "id", asks_for_nothing: Value::is_string, only: "", kind: None },
    Known { name: "status", asks_for_nothing: Value::is_string, only: "", kind: None },
];

const OF_A_PART: &[Known] = &[
    Known { name: "annotations", asks_for_nothing: Value::is_array, only: "[]", kind: None },
    Known { name: "logprobs", asks_for_nothing: Value::is_array, only: "[]", kind: None },
];

/// Takes `instructions` and `input`.
pub(super) fn take_input(fields: &mut Fields) -> Result<Conversation, FieldError> {
    let instructions: Option<String> = fields.take("instructions")?;
    let mut messages: Vec<Message> =
        instructions.into_iter().map(|text| Message::new("system", text)).collect();
    match fields.require("input")? {
        Value::String(text) => messages.push(Message::new("user", text)),
        Value::Array(items) if items.is_empty() => {
            return Err(FieldError::value("input", "there must be at least one item"));
        }
        Value::Array(items) => {
            for (place, item) in items.into_iter().enumerate() {
                take_item(item, &format!("input[{place}]"), &mut messages)?;
            }
        }
        other => return Err(wrong_type("input", "a string or an array of items", &other)),
    }
    Ok(messages.into())
}

fn take_item(value: Value, path: &str, messages: &mut Vec<Message>) -> Result<(), FieldError> {
    let mut item = Fields::nested(value, path)?;
    let kind: Option<String> = item.take("type")?;
    match kind.as_deref().unwrap_or("message") {
        "message" => {
            messages.push(Message::new(item.require::<String>("role")?, text_of(&mut item, "content")?))
        }
        "function_call" => {
            let id = item.require("call_id")?;
            let name: String = item.require("name")?;
            let arguments = arguments_of(item.take("arguments")?, &item.path("arguments"))?;
            add_call(messages, told_call(Some(id), &name, arguments));
        }
        "function_call_output" => {
            let call: String = item.require("call_id")?;
            let result = Message::new("tool", text_of(&mut item, "output")?);
            messages.push(Message { tool_call_id: Some(call), ..result });
        }
        other => {
            let said = format!(
                "{other:?} is not an item that eka can read; it reads message, function_call and function_call_output"
            );
            return Err(FieldError::value(item.path("type"), said));
        }
    }
    item.finish(OF_AN_ITEM)
}

/// A call belongs to what the assistant said before it.
fn add_call(messages: &mut Vec<Message>, call: Value) {
    match messages.last_mut() {
        Some(last) if last.role == "assistant" => last.tool_calls.push(call),
        _ => {
            messages.push(Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() })
        }
    }
}

fn text_of(item: &mut Fields, name: &str) -> Result<String, FieldError> {
    let path = item.path(name);
    match item.require(name)? {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            parts.map(|(place, part)| part_of(part, &format!("{path}[{place}]"))).collect()
        }
        other => Err(wrong_type(&path, "a string or an array of text parts", &other)),
    }
}

fn part_of(value: Value, path: &str) -> Result<String, FieldError> {
    let mut part = Fields::nested(value, path)?;
    let kind: String = part.require("type")?;
    if !matches!(kind.as_str(), "input_text" | "output_text" | "text") {
        let said =
            format!("{kind:?} is not a part that eka can read; it reads \"input_text\" and \"output_text\"");
        return Err(FieldError::value(part.path("type"), said));
    }
    let text = part.require("text")?;
    part.finish(OF_A_PART)?;
    Ok(text)
}

/// The fields of a tool, whose function stands beside its type.
pub(super) fn flat_tool(value: Value, path: &str) -> Result<Fields, FieldError> {
    let mut tool = Fields::nested(value, path)?;
    check_kind(&tool.require::<String>("type")?, &tool.path("type"))?;
    Ok(tool)
}
