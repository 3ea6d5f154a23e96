//! Ways into what reads a model's folder and a model's answers, for `tests/fuzz`.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Message, template::ChatTemplate};

/// Compiles `source` as a chat template and renders a conversation with a tool and a call. Says whether both worked.
#[must_use]
pub fn template(source: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(source) else { return false };
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let call =
        json!({ "id": "1", "type": "function", "function": { "name": "add", "arguments": { "a": 1.5 } } });
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "नमस्ते"),
        Message { tool_calls: vec![call], ..Message::new("assistant", "") },
        Message { tool_call_id: Some("1".into()), ..Message::new("tool", "4") },
    ];
    let parameters = json!({ "type": "object", "properties": { "a": { "type": "number" } } });
    let tool = json!({ "type": "function", "function": { "name": "add", "description": "Adds.", "parameters": parameters } });
    ChatTemplate::compile(source, tokens).is_ok_and(|template| template.render(&messages, &[tool]).is_ok())
}
