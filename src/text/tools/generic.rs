//! Tools for models whose chat template has none: instructions in the system message, and calls and results as text.
//!
//! The format is that of Hermes, which most models have seen: calls are JSON within `<tool_call>`, results are text within
//! `<tool_response>` in a user message.

use serde_json::Value;

use super::super::{Arguments, Conversation, Message, ToolCall};

/// Instructions before the list of tools.
const BEFORE: &str =
    "You can call functions. These functions are available, each as a JSON object on one line:\n<tools>\n";

/// Instructions after the list of tools.
const AFTER: &str = "</tools>\n\nTo call a function, write a JSON object with its name and its arguments between these tags, and \
     wait for the result:\n<tool_call>\n{\"name\": \"the function's name\", \"arguments\": {\"an argument\": \"its value\"}}\n</tool_call>\n\
     Call a function only if it helps to answer. Otherwise answer without these tags.";

/// Rewrites a conversation for a template without tools. `has_system` says whether the template can render a system message;
/// without one the instructions go into the first user message.
pub(crate) fn without_tools(conversation: &Conversation, has_system: bool) -> Conversation {
    let mut messages: Vec<Message> = Vec::new();
    for message in &conversation.messages {
        let text = as_text(message);
        match messages.last_mut() {
            // Templates reject two user messages in a row.
            Some(last) if last.role == text.role && (message.role == "tool" || is_result(last)) => {
                let content = last.content.get_or_insert_default();
                content.push('\n');
                content.push_str(&text.content.unwrap_or_default());
            }
            _ => messages.push(text),
        }
    }
    if !conversation.tools.is_empty() {
        add_instructions(&mut messages, &instructions(&conversation.tools), has_system);
    }
    Conversation { messages, tools: Vec::new(), ..conversation.clone() }
}

fn is_result(message: &Message) -> bool {
    message.role == "user" && message.content.as_ref().is_some_and(|text| text.starts_with("<tool_response>"))
}

fn instructions(tools: &[Value]) -> String {
    let tools: String =
        tools.iter().map(|tool| format!("{}\n", tool.get("function").unwrap_or(tool))).collect();
    [BEFORE, &tools, AFTER].concat()
}

fn add_instructions(messages: &mut Vec<Message>, instructions: &str, has_system: bool) {
    let is_system = |message: &Message| matches!(message.role.as_str(), "system" | "developer");
    match messages.first_mut() {
        Some(first) if is_system(first) => {
            let content = first.content.take().unwrap_or_default();
            first.content = Some(format!("{content}\n\n{instructions}").trim_start().to_owned());
        }
        Some(first) if !has_system && first.role == "user" => {
            let content = first.content.take().unwrap_or_default();
            first.content = Some(format!("{instructions}\n\n{content}"));
        }
        _ => messages.insert(0, Message::new("system", instructions)),
    }
}

/// A message with its calls or its result as text.
fn as_text(message: &Message) -> Message {
    let content = message.content.clone().unwrap_or_default();
    if message.role == "tool" {
        return Message::new("user", format!("<tool_response>\n{content}\n</tool_response>"));
    }
    let calls: Vec<_> = message.tool_calls.iter().map(call_text).collect();
    let parts = [content].into_iter().filter(|text| !text.is_empty()).chain(calls);
    let content = parts.collect::<Vec<_>>().join("\n");
    Message { content: Some(content), tool_calls: Vec::new(), tool_call_id: None, ..message.clone() }
}

fn call_text(call: &ToolCall) -> String {
    let arguments = match &call.function.arguments {
        Arguments::Written(text) => text.clone(),
        Arguments::Object(object) => Value::Object(object.clone()).to_string(),
    };
    let name = Value::from(call.function.name.as_str());
    format!("<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>")
}
