//! Calls through every format and back: rendered, read as an answer, and rendered again, they are the same bytes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    AnswerParser, AnswerParserOptions, Arguments, Message, ReasoningFormat, ReasoningOptions, ToolCall,
    template::{ChatTemplate, TemplateInput},
    tools::{FORMATS, ToolCallParser, ToolCallParserOptions, ToolSignature, ToolSupport},
};

/// A template of each format that keeps the text of arguments.
const TEMPLATES: [&str; 3] = [
    include_str!("../../tests/fixtures/templates/qwen2.5.jinja"),
    include_str!("../../tests/fixtures/templates/llama3.2.jinja"),
    include_str!("../../tests/fixtures/templates/mistral-v3.jinja"),
];

/// Own templates of all formats: a line with the name of the format before each.
const ALL: &str = include_str!("../../tests/fixtures/templates/tool_formats.jinja");

/// Arguments as models write them: unusual JSON, and text that is not JSON.
const ARGUMENTS: &str = include_str!("../../tests/fixtures/tool_arguments.json");

fn compile(source: &str) -> ChatTemplate {
    let names = ["bos_token", "eos_token"].map(|name| (name.to_owned(), format!("<{name}>")));
    ChatTemplate::compile(source, BTreeMap::from(names)).unwrap()
}

fn render(template: &ChatTemplate, calls: Vec<ToolCall>) -> String {
    let assistant = Message { role: "assistant".into(), tool_calls: calls, ..Message::default() };
    let tool = json!({ "type": "function", "function": { "name": "now" } });
    template.render(TemplateInput::of(&[Message::new("user", "When?"), assistant], &[tool])).unwrap()
}

fn call(arguments: &str) -> ToolCall {
    ToolCall::new(Some("123456789".into()), "now", Arguments::Written(arguments.into()))
}

#[test]
fn calls_that_are_rendered_read_and_rendered_again_are_the_same_bytes() {
    let arguments: Vec<String> = serde_json::from_str(ARGUMENTS).unwrap();
    for source in TEMPLATES {
        let format = ToolSupport::of(source).format();
        let template = compile(source);
        // Truncated arguments are not followed by the template's end of the call.
        for written in arguments.iter().filter(|written| written.ends_with('}')) {
            let first = render(&template, vec![call(written)]);
            let begins = first.rfind("{\"name\": \"now\", ").unwrap();
            let begins = first[..begins].rfind(format.marker()).unwrap_or(begins);
            let tools = [ToolSignature::new("now", &json!({}))].into();
            let mut parser =
                ToolCallParser::new(ToolCallParserOptions { format, tools, single: false, opened: false });
            let mut delta = parser.push(&first[begins..]);
            delta.append(&parser.finish());
            assert_eq!(
                (delta.calls[0].arguments.as_str(), parser.is_truncated()),
                (written.as_str(), false),
                "{first}"
            );
            assert_eq!(render(&template, vec![call(&delta.calls[0].arguments)]), first);
        }
    }
}

/// The templates of [`ALL`] by name.
fn templates() -> Vec<(&'static str, &'static str)> {
    ALL.split("### ").skip(1).filter_map(|part| part.split_once('\n')).collect()
}

/// Arguments that every format can write.
fn plain_arguments() -> [Value; 4] {
    [
        json!({}),
        json!({ "city": "पुणे, \"x\" {y}", "days": 3 }),
        json!({ "text": "two\nlines </b> <a>", "flag": true, "list": [1, "a"], "object": { "k": "v" } }),
        json!({ "city": "3", "days": -2.5 }),
    ]
}

fn signature() -> ToolSignature {
    let text = json!({ "type": "string" });
    ToolSignature::new("now", &json!({ "properties": { "city": text, "text": text } }))
}

#[test]
fn there_is_a_template_of_every_format_and_each_is_recognised() {
    let templates = templates();
    assert_eq!(templates.len(), FORMATS.len());
    for ((name, source), format) in templates.iter().zip(FORMATS) {
        assert_eq!(format!("{:?}", ToolSupport::of(source).format()), format!("ToolFormat({name:?})"));
        assert_eq!(ToolSupport::of(source).format(), format, "the templates are in the order of the formats");
    }
}

#[test]
fn calls_of_every_format_are_read_at_every_cut_and_rendered_again_as_the_same_bytes() {
    for (name, source) in templates() {
        let format = ToolSupport::of(source).format();
        let template = compile(source);
        for many in [1, 2] {
            for arguments in plain_arguments() {
                let written: Vec<_> = (0..many).map(|_| call(&arguments.to_string())).collect();
                let first = render(&template, written);
                let answer = first.split_once("ASSISTANT:").unwrap().1.split("END").next().unwrap();
                let tools = [signature()].into();
                let tools = ToolCallParserOptions { format, tools, single: false, opened: false };
                let reasoning = ReasoningFormat::of(source);
                let reasoning = reasoning.map(|format| ReasoningOptions { format, is_open: false });
                let options =
                    AnswerParserOptions { reasoning, tools: Some(tools), ..AnswerParserOptions::default() };
                for (cut, _) in answer.char_indices() {
                    let mut parser = AnswerParser::new(options.clone());
                    let mut delta = parser.push(&answer[..cut]);
                    delta.append(&parser.push(&answer[cut..]));
                    delta.append(&parser.finish());
                    let values: Vec<Value> = delta
                        .calls
                        .iter()
                        .map(|call| serde_json::from_str(&call.arguments).unwrap())
                        .collect();
                    assert_eq!(values, vec![arguments.clone(); many], "{name}: {answer:?} cut at {cut}");
                    assert_eq!(
                        (delta.content.trim(), parser.is_truncated()),
                        ("", false),
                        "{name}: {answer:?}"
                    );
                }
                let mut parser = AnswerParser::new(options);
                let mut delta = parser.push(answer);
                delta.append(&parser.finish());
                let again = delta.calls.iter().map(|found| call(&found.arguments)).collect();
                assert_eq!(render(&template, again), first, "{name}");
            }
        }
    }
}
