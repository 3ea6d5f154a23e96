//! Ways into what reads a model's folder and a model's answers, for `tests/fuzz`.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;

use super::{
    AnswerDelta, Arguments, Message, ToolCall, ToolCallParser, ToolCallParserOptions, template::ChatTemplate,
    tools::FORMATS,
};

/// Compiles `source` as a chat template and renders a conversation with a tool and a call. Returns whether both worked.
pub fn template(source: &[u8]) -> bool {
    let Ok(source) = std::str::from_utf8(source) else { return false };
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let call = ToolCall::new(Some("1".into()), "add", Arguments::Written(r#"{"a": 1.5}"#.into()));
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

/// Reads an answer with every tool format, whole and cut in two at every position, and compares the results. Bits of the
/// first byte choose whether several calls are allowed, and whether the prompt has opened the first. Returns whether a call
/// was found.
///
/// # Panics
/// When the result depends on the cut.
pub fn tool_calls(bytes: &[u8]) -> bool {
    let Some((flags, answer)) = bytes.split_first() else { return false };
    let Ok(answer) = std::str::from_utf8(answer) else { return false };
    // Each position takes a separate run, so the text is kept short.
    let answer = &answer[..answer.floor_char_boundary(200)];
    let names: Arc<[String]> = ["add".to_owned(), "now".to_owned()].into();
    FORMATS.into_iter().any(|format| {
        let (single, opened) = (flags & 1 != 0, flags & 2 != 0);
        let reading = ToolCallParserOptions { format, names: Arc::clone(&names), single, opened };
        let whole = read(&reading, &[answer]);
        for (cut, _) in answer.char_indices() {
            let (before, after) = answer.split_at(cut);
            assert_eq!(read(&reading, &[before, after]), whole, "cut at {cut}");
        }
        !whole.calls.is_empty()
    })
}

/// The content and the calls of an answer, without the ids of its calls, which are random.
fn read(reading: &ToolCallParserOptions, pieces: &[&str]) -> AnswerDelta {
    let mut reader = ToolCallParser::new(reading.clone());
    let mut delta = AnswerDelta::default();
    for piece in pieces {
        delta.append(&reader.push(piece));
    }
    delta.append(&reader.finish());
    delta.calls.iter_mut().for_each(|call| call.id = None);
    delta
}
