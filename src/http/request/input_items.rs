//! `input` of OpenAI's responses, whose items are flatter than the messages of its chat completions.

use serde_json::Value;

use super::{
    compat,
    fields::{Fields, wrong_type},
    messages::{part_of, take_arguments},
};
use crate::{
    http::field_error::FieldError,
    text::{Conversation, Message, ToolCall},
};

/// Takes `instructions` and `input`.
pub(crate) fn take_input(fields: &mut Fields) -> Result<Conversation, FieldError> {
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
                take_item(fields.nested(item, &format!("input[{place}]"))?, &mut messages)?;
            }
        }
        other => return Err(wrong_type("input", "a string or an array of items", &other)),
    }
    Ok(messages.into())
}

fn take_item(mut item: Fields, messages: &mut Vec<Message>) -> Result<(), FieldError> {
    let kind: Option<String> = item.take("type")?;
    match kind.as_deref().unwrap_or("message") {
        "message" => {
            messages.push(Message::new(item.require::<String>("role")?, text_of(&mut item, "content")?))
        }
        "function_call" => {
            let id = item.require("call_id")?;
            let name: String = item.require("name")?;
            let arguments = take_arguments(&mut item)?;
            add_call(messages, ToolCall::new(Some(id), name, arguments));
        }
        "function_call_output" => {
            let call: String = item.require("call_id")?;
            let result = Message::new("tool", text_of(&mut item, "output")?);
            messages.push(Message { tool_call_id: Some(call), ..result });
        }
        other => {
            let said = format!(
                "unsupported item type {other:?}; message, function_call and function_call_output are supported"
            );
            return Err(FieldError::value(item.path("type"), said));
        }
    }
    item.finish(&[compat::ITEM])?;
    Ok(())
}

/// A call belongs to what the assistant said before it.
fn add_call(messages: &mut Vec<Message>, call: ToolCall) {
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
            parts.map(|(place, part)| part_of(item.nested(part, &format!("{path}[{place}]"))?)).collect()
        }
        other => Err(wrong_type(&path, "a string or an array of text parts", &other)),
    }
}
