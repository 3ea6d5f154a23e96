//! Calls through every format and back: rendered, read as an answer, and rendered again, they are the same bytes.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Arguments, Message, ToolCall,
    template::ChatTemplate,
    tools::{ToolCallParser, ToolCallParserOptions, ToolSupport},
};

/// A template of each format.
const TEMPLATES: [&str; 3] = [
    include_str!("../../tests/fixtures/templates/qwen2.5.jinja"),
    include_str!("../../tests/fixtures/templates/llama3.2.jinja"),
    include_str!("../../tests/fixtures/templates/mistral-v3.jinja"),
];

/// Arguments as models write them: unusual JSON, and text that is not JSON.
const ARGUMENTS: &str = include_str!("../../tests/fixtures/tool_arguments.json");

fn render(template: &ChatTemplate, arguments: &str) -> String {
    let call = ToolCall::new(Some("123456789".into()), "now", Arguments::Written(arguments.into()));
    let assistant = Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() };
    let tool = json!({ "type": "function", "function": { "name": "now" } });
    template.render(&[Message::new("user", "When?"), assistant], &[tool]).unwrap()
}

#[test]
fn calls_that_are_rendered_read_and_rendered_again_are_the_same_bytes() {
    let arguments: Vec<String> = serde_json::from_str(ARGUMENTS).unwrap();
    for source in TEMPLATES {
        let ToolSupport::Read(format) = ToolSupport::of(source) else { panic!("{source}") };
        let names = ["bos_token", "eos_token"].map(|name| (name.to_owned(), format!("<{name}>")));
        let template = ChatTemplate::compile(source, BTreeMap::from(names)).unwrap();
        // Truncated arguments are not followed by the template's end of the call.
        for written in arguments.iter().filter(|written| written.ends_with('}')) {
            let first = render(&template, written);
            let call = first.rfind("{\"name\": \"now\", ").unwrap();
            let begins = first[..call].rfind(format.marker()).unwrap_or(call);
            let names = ["now".to_owned()].into();
            let mut parser =
                ToolCallParser::new(ToolCallParserOptions { format, names, single: false, opened: false });
            let mut delta = parser.push(&first[begins..]);
            delta.append(&parser.finish());
            assert_eq!(
                (delta.calls[0].arguments.as_str(), parser.is_truncated()),
                (written.as_str(), false),
                "{first}"
            );
            assert_eq!(render(&template, &delta.calls[0].arguments), first);
        }
    }
}
