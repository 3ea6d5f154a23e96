//! Anthropic's messages.

use serde_json::{Value, json};

use crate::support::{
    requests::with,
    server::{Server, ServerOptions},
};

const MESSAGES: &str = "/v1/messages";
const QWEN: &str = include_str!("../fixtures/templates/qwen2.5.jinja");
const THINK: &str = "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
    {% for c in m.tool_calls %}<call>{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}{% if tools %}<tool_call>{% endif %}<assistant>";

fn server(template: &'static str, answer: &'static str) -> Server {
    Server::start(ServerOptions {
        template: Some(template),
        answer: Some(answer),
        ..ServerOptions::default()
    })
}

fn request(fields: &Value) -> Value {
    with(
        json!({ "model": "demo", "max_tokens": 100, "messages": [{ "role": "user", "content": "Will it rain?" }] }),
        fields,
    )
}

fn tools() -> Value {
    let schema =
        json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    json!([
        { "name": "weather", "description": "It rains?", "input_schema": schema, "cache_control": { "type": "ephemeral" } },
        { "type": "web_search_20250305", "name": "web_search", "max_uses": 3 },
    ])
}

/// The events of a stream, each with its name checked.
fn events(stream: &str) -> Vec<Value> {
    let event = |text: &str| {
        let (name, data) = text.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    stream.split_terminator("\n\n").map(event).filter(|event| event["type"] != "ping").collect()
}

#[tokio::test]
async fn messages_have_blocks_of_reasoning_text_and_calls() {
    let answer = "<think>Look.</think>Wait.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Pune\"}}\n</tool_call>";
    let server = server(THINK, answer);
    let (status, whole) = server.ask(MESSAGES, &request(&json!({ "tools": tools() }))).await;
    assert_eq!(status, 200, "{whole}");
    assert!(whole["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["model"]),
        (&json!("message"), &json!("assistant"), &json!("demo"))
    );
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("tool_use"), &Value::Null));
    let content = whole["content"].as_array().unwrap();
    assert_eq!(content[0], json!({ "type": "thinking", "thinking": "Look.", "signature": "" }));
    assert_eq!(content[1], json!({ "type": "text", "text": "Wait." }));
    assert_eq!(
        (&content[2]["type"], &content[2]["name"], &content[2]["input"]),
        (&json!("tool_use"), &json!("weather"), &json!({ "city": "Pune" }))
    );
    let stream = server.stream(MESSAGES, &request(&json!({ "tools": tools(), "stream": true }))).await;
    let events = events(&stream);
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        (kinds[0], kinds[kinds.len() - 2], kinds[kinds.len() - 1]),
        ("message_start", "message_delta", "message_stop")
    );
    assert!(events[0]["message"]["usage"]["input_tokens"].as_u64().unwrap() > 5);
    let blocks: Vec<_> = events.iter().filter(|event| event["type"] == "content_block_start").collect();
    let starts: Vec<_> =
        blocks.iter().map(|event| event["content_block"]["type"].as_str().unwrap()).collect();
    assert_eq!(starts, ["thinking", "text", "tool_use"]);
    assert_eq!(kinds.iter().filter(|kind| **kind == "content_block_stop").count(), 3);
    let joined = |kind: &str, field: &str| {
        events
            .iter()
            .filter(|event| event["delta"]["type"] == kind)
            .map(|event| event["delta"][field].as_str().unwrap())
            .collect::<String>()
    };
    assert_eq!(joined("thinking_delta", "thinking"), "Look.");
    assert_eq!(joined("text_delta", "text"), "Wait.");
    assert_eq!(joined("input_json_delta", "partial_json"), "{\"city\": \"Pune\"}");
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
}

#[tokio::test]
async fn tools_that_anthropics_servers_run_are_left_out_with_a_warning() {
    let server = server(QWEN, "Yes.");
    let answer = server.post(MESSAGES, &request(&json!({ "tools": tools() }))).send().await.unwrap();
    assert_eq!(answer.headers()["x-eka-ignored-fields"], "tools[1]");
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn stop_reasons_are_those_of_anthropic() {
    let server = server(QWEN, "Yes, it will rain tomorrow.");
    for (fields, reason, sequence) in [
        (json!({}), "end_turn", Value::Null),
        (json!({ "max_tokens": 2 }), "max_tokens", Value::Null),
        (json!({ "stop_sequences": ["never", "rain"] }), "stop_sequence", json!("rain")),
    ] {
        let (_, answer) = server.ask(MESSAGES, &request(&fields)).await;
        assert_eq!(
            (&answer["stop_reason"], &answer["stop_sequence"]),
            (&json!(reason), &sequence),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn requests_of_coding_agents_are_accepted() {
    let server = server(THINK, "Yes.");
    let cache = json!({ "type": "ephemeral", "ttl": "1h" });
    let system: Vec<_> = (0..20)
        .map(|n| json!({ "type": "text", "text": format!("Rule {n}."), "cache_control": cache }))
        .collect();
    let messages = json!([
        { "role": "user", "content": [{ "type": "text", "text": "Look.", "cache_control": cache }] },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "Hm.", "signature": "abc" },
            { "type": "redacted_thinking", "data": "x" },
            { "type": "text", "text": "I look." },
            { "type": "tool_use", "id": "toolu_1", "name": "weather", "input": { "city": "Pune" } },
        ] },
        { "role": "user", "content": [
            { "type": "tool_result", "tool_use_id": "toolu_1", "content": [{ "type": "text", "text": "Rain." }], "is_error": false },
            { "type": "text", "text": "So?" },
        ] },
    ]);
    let fields = json!({
        "system": system, "messages": messages, "tools": tools(), "tool_choice": { "type": "auto", "disable_parallel_tool_use": true },
        "thinking": { "type": "enabled", "budget_tokens": 1024 }, "metadata": { "user_id": "u" }, "context_management": { "edits": [] },
        "temperature": 1, "top_p": 0.9, "top_k": 5, "service_tier": "auto",
    });
    let (status, answer) = server.ask(MESSAGES, &request(&fields)).await;
    assert_eq!(status, 200, "{answer}");
    let (status, count) = server.ask("/v1/messages/count_tokens", &request(&fields)).await;
    assert_eq!(status, 200, "{count}");
    assert_eq!(
        count["input_tokens"],
        answer["usage"]["input_tokens"].as_u64().unwrap()
            + answer["usage"]["cache_read_input_tokens"].as_u64().unwrap()
    );
}

#[tokio::test]
async fn a_last_message_of_the_assistant_is_continued() {
    let server = server(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        "rain.",
    );
    let messages = json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "It may" }]);
    let (_, continued) = server.ask("/v1/messages/count_tokens", &json!({ "messages": messages })).await;
    let (_, text) = server.ask("/tokenize", &json!({ "content": "<user>a<assistant>It may" })).await;
    assert_eq!(continued["input_tokens"], text["count"]);
}

#[tokio::test]
async fn errors_have_anthropics_shape() {
    let server = server(QWEN, "Yes.");
    for (body, status, kind, param) in [
        (json!({ "messages": [] }), 400, "invalid_request_error", json!("messages")),
        (
            json!({ "messages": [{ "role": "robot", "content": "a" }] }),
            400,
            "invalid_request_error",
            json!("messages[0].role"),
        ),
        (
            json!({ "model": "other", "messages": [{ "role": "user", "content": "a" }] }),
            404,
            "not_found_error",
            json!("model"),
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image", "source": {} }] }] }),
            400,
            "invalid_request_error",
            json!("messages[0].content[0].type"),
        ),
    ] {
        let (found, answer) = server.ask(MESSAGES, &body).await;
        assert_eq!(
            (found, &answer["type"], &answer["error"]["type"], &answer["error"]["param"]),
            (status, &json!("error"), &json!(kind), &param),
            "{answer}"
        );
        assert!(answer["error"]["message"].is_string());
    }
}
