//! What happens if a request leaves a choice to the server.

use eka::config::DefaultsFrom;
use serde_json::{Value, json};

use crate::support::{
    requests::with,
    server::{CONTEXT_LENGTH, Server, ServerOptions},
};

const CHAT: &str = "/v1/chat/completions";

fn chat(fields: &Value) -> Value {
    with(json!({ "messages": [{ "role": "user", "content": "Will it rain?" }] }), fields)
}

#[tokio::test]
async fn without_a_limit_an_answer_may_fill_the_context() {
    let server = Server::start(ServerOptions { default_max_new: None, ..ServerOptions::default() });
    let (_, answer) = server.ask(CHAT, &chat(&json!({ "ignore_eos": true }))).await;
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT_LENGTH, "{}", answer["usage"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn tools_work_with_a_model_whose_template_has_none() {
    let server = Server::start(ServerOptions {
        template: Some("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"),
        answer: Some("<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"),
        ..ServerOptions::default()
    });
    let tools = json!([{ "type": "function", "function": { "name": "now", "description": "The time." } }]);
    let (status, answer) = server.ask(CHAT, &chat(&json!({ "tools": tools }))).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "now");
    let messages = json!([{ "role": "user", "content": "a" }, { "role": "assistant", "tool_calls": [
        { "id": "1", "type": "function", "function": { "name": "now", "arguments": "{}" } }] }, { "role": "tool", "tool_call_id": "1", "content": "noon" }]);
    let (_, shown) = server.ask("/apply-template", &json!({ "messages": messages, "tools": tools })).await;
    let shown = shown["prompt"].as_str().unwrap();
    assert!(shown.starts_with("<user>You can call functions.") && shown.contains("The time."), "{shown}");
    assert!(shown.ends_with("<user><tool_response>\nnoon\n</tool_response><assistant>"), "{shown}");
}

#[tokio::test]
async fn a_named_tool_choice_gives_exactly_one_call() {
    let call = "{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let server = Server::start(ServerOptions {
        template: Some("{{ messages[0].content }}{% if tools %}<tool_call>{% endif %}"),
        answer: Some(call),
        ..ServerOptions::default()
    });
    let tools = json!([{ "type": "function", "function": { "name": "now" } }]);
    let named = json!({ "type": "function", "function": { "name": "now" } });
    for (choice, calls) in [(named, 1), (json!("required"), 2)] {
        let body = chat(&json!({ "tools": tools, "tool_choice": choice, "max_tokens": 200 }));
        let (_, answer) = server.ask(CHAT, &body).await;
        let found = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().len();
        assert_eq!(
            (found, &answer["choices"][0]["finish_reason"]),
            (calls, &json!("tool_calls")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn stop_is_accepted_with_tools_and_forms_and_applies_to_content() {
    let server = Server::start(ServerOptions {
        template: Some("{{ messages[0].content }}{% if tools %}<tool_call>{% endif %}"),
        answer: Some("{\"a\": \"END\"} END of it"),
        ..ServerOptions::default()
    });
    let tools = json!([{ "type": "function", "function": { "name": "now" } }]);
    let (status, answer) = server.ask(CHAT, &chat(&json!({ "tools": tools, "stop": ["END"] }))).await;
    assert_eq!(
        (status, &answer["choices"][0]["message"]["content"]),
        (200, &json!("{\"a\": \"")),
        "{answer}"
    );
    let format = json!({ "type": "json_object" });
    let (status, answer) =
        server.ask(CHAT, &chat(&json!({ "response_format": format, "stop": ["END"] }))).await;
    assert_eq!(status, 200, "{answer}");
    assert!(
        answer["choices"][0]["message"]["content"].as_str().unwrap().starts_with("{\"a\": \"END\"}"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_models_sampling_parameters_are_the_defaults_unless_the_setting_says_otherwise() {
    for (from, expected) in [(DefaultsFrom::Model, 0.0), (DefaultsFrom::Eka, 1.0)] {
        let server = Server::start(ServerOptions { sampling_defaults: from, ..ServerOptions::default() });
        let temperature = || server.last_job().sampling.temperature;
        server.ask(CHAT, &chat(&json!({ "max_tokens": 1 }))).await;
        // The demonstration model's generation_config.json has `do_sample: false`.
        assert!((temperature() - expected).abs() < f32::EPSILON, "{from:?}");
        server.ask(CHAT, &chat(&json!({ "max_tokens": 1, "temperature": 0.5 }))).await;
        assert!((temperature() - 0.5).abs() < f32::EPSILON, "the request wins");
    }
}
