//! A second form of a conversation, for templates that fail on the values that `transformers` would pass.
//!
//! Such templates loop over `tools` if there are none, concatenate a description that a tool may lack, or concatenate arguments
//! to text. llama-server renders them, so eka retries with llama-server's values. A template that accepts the exact values
//! never gets these.

use minijinja::{Value, value::Serde};
use serde_json::json;

use crate::text::{Arguments, Message};

/// Tools that always have a description and parameters; undefined without tools, because a loop treats undefined as an empty
/// list.
pub(super) fn tools(tools: &[serde_json::Value]) -> Value {
    if tools.is_empty() {
        return Value::UNDEFINED;
    }
    let mut tools = tools.to_vec();
    for function in tools.iter_mut().filter_map(|tool| tool.get_mut("function")?.as_object_mut()) {
        function.entry("description").or_insert_with(|| "".into());
        function.entry("parameters").or_insert_with(|| json!({ "type": "object", "properties": {} }));
    }
    Value::from(Serde(tools))
}

/// Messages whose calls have arguments as a string, as OpenAI writes them.
pub(super) fn with_text_arguments(messages: &[Message]) -> Option<Value> {
    let mut messages = messages.to_vec();
    for call in messages.iter_mut().flat_map(|message| &mut message.tool_calls) {
        if let Arguments::Object(object) = &call.function.arguments {
            call.function.arguments = Arguments::Written(json!(object).to_string());
        }
    }
    // Through JSON, where written arguments are a plain string.
    serde_json::to_value(messages).ok().map(|messages| Value::from(Serde(messages)))
}
