//! Conversations through templates with the features of published ones: the bytes are those that transformers makes.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    Message, PromptEnding, TextError,
    template::{ChatTemplate, TemplateInput},
};

/// A template of each family: a line with `==== ` and its name before each.
const TEMPLATES: &str = include_str!("../../tests/fixtures/templates/published.jinja");

/// Conversations, and what transformers made of them; `scripts/fixtures/chat_templates.py` writes it.
const TABLE: &str = include_str!("../../tests/fixtures/templates/published.json");

fn of<T: serde::de::DeserializeOwned + Default>(value: &Value) -> T {
    if value.is_null() { T::default() } else { serde_json::from_value(value.clone()).unwrap() }
}

fn render(template: &ChatTemplate, conversation: &Value) -> Result<String, TextError> {
    let messages: Vec<Message> = of(&conversation["messages"]);
    let tools: Vec<Value> = of(&conversation["tools"]);
    let variables: Map<String, Value> = of(&conversation["variables"]);
    let ending = match conversation["continue"].as_bool() {
        Some(true) => PromptEnding::ContinueLast,
        _ => PromptEnding::NextMessage,
    };
    template.render(TemplateInput { messages: &messages, tools: &tools, variables: Some(&variables), ending })
}

#[test]
fn templates_of_every_family_render_six_conversations_as_transformers_does() {
    let table: Value = serde_json::from_str(TABLE).unwrap();
    let tokens: BTreeMap<String, String> = of(&table["tokens"]);
    let conversations = table["conversations"].as_object().unwrap();
    let parts = TEMPLATES.split("==== ").skip(1).filter_map(|part| part.split_once('\n'));
    let (mut compared, mut differences) = (0, Vec::new());
    for (name, source) in parts {
        let source = source.strip_suffix('\n').unwrap_or(source);
        let template =
            ChatTemplate::compile(source, tokens.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (title, conversation) in conversations {
            let expected = &table["rendered"][name][title];
            let found = render(&template, conversation);
            let is_same = match (&found, expected["output"].as_str(), expected["error"].as_str()) {
                (Ok(text), Some(output), None) => text == output,
                (Err(TextError::TemplateRefused { message }), None, Some(error)) => error.ends_with(message),
                _ => false,
            };
            compared += 1;
            if !is_same {
                differences.push(format!("{name}, {title}:\n  {expected}\n  eka: {found:?}"));
            }
        }
    }
    assert!(compared >= 71 * 6, "{compared}");
    assert!(differences.is_empty(), "{} of {compared}:\n{}", differences.len(), differences.join("\n"));
}
