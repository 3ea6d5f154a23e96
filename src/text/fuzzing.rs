//! Entry points of `tests/fuzz`: chat templates and tool calls.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;

use super::{
    AnswerDelta, Arguments, Message, ToolCall, ToolCallParser, ToolCallParserOptions, ToolSignature,
    template::{ChatTemplate, TemplateInput},
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
    ChatTemplate::compile(source, tokens)
        .is_ok_and(|template| template.render(TemplateInput::of(&messages, &[tool])).is_ok())
}

/// Parses an answer with every tool format, as a whole and split in two at every position, and compares the results. Bits of the
/// first byte decide whether several calls are allowed and whether the prompt has begun the first. Returns whether a call was found.
///
/// # Panics
/// When the result depends on the split.
pub fn tool_calls(bytes: &[u8]) -> bool {
    let Some((flags, answer)) = bytes.split_first() else { return false };
    let Ok(answer) = std::str::from_utf8(answer) else { return false };
    // Each position takes a separate run, so the text is kept short.
    let answer = &answer[..answer.floor_char_boundary(200)];
    let tools: Arc<[ToolSignature]> = ["add", "now"].map(|name| ToolSignature::new(name, &json!({}))).into();
    FORMATS.into_iter().any(|format| {
        let (single, opened) = (flags & 1 != 0, flags & 2 != 0);
        let options = ToolCallParserOptions { format, tools: Arc::clone(&tools), single, opened };
        let whole = parse(&options, &[answer]);
        for (split, _) in answer.char_indices() {
            let (before, after) = answer.split_at(split);
            assert_eq!(parse(&options, &[before, after]), whole, "split at {split}");
        }
        !whole.calls.is_empty()
    })
}

/// The content and the calls of an answer, without the ids of its calls, which are random.
fn parse(options: &ToolCallParserOptions, pieces: &[&str]) -> AnswerDelta {
    let mut parser = ToolCallParser::new(options.clone());
    let mut delta = AnswerDelta::default();
    for piece in pieces {
        delta.append(&parser.push(piece));
    }
    delta.append(&parser.finish());
    delta.calls.iter_mut().for_each(|call| call.id = None);
    delta
}
