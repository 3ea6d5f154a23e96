//! Ollama's API.

use serde_json::{Value, json};

use crate::support::{
    requests::with,
    server::{Server, ServerOptions},
};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if tools %}<tool_call>{% endif %}<assistant></think>";

fn server(answer: &'static str) -> Server {
    Server::start(ServerOptions {
        template: Some(TEMPLATE),
        answer: Some(answer),
        ..ServerOptions::default()
    })
}

fn chat(fields: &Value) -> Value {
    with(
        json!({ "model": "demo:latest", "messages": [{ "role": "user", "content": "Will it rain?" }] }),
        fields,
    )
}

async fn lines(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let answer = server.post(path, body).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()),
        (200, "application/x-ndjson")
    );
    answer.text().await.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_chat_is_streamed_as_lines_unless_it_asks_for_one_answer() {
    let server = server("<think>Hm.</think>Yes, it will.");
    let lines = lines(&server, CHAT, &chat(&json!({ "think": true }))).await;
    let joined =
        |field: &str| lines.iter().filter_map(|line| line["message"][field].as_str()).collect::<String>();
    assert_eq!((joined("thinking").as_str(), joined("content").as_str()), ("Hm.", "Yes, it will."));
    let (last, others) = lines.split_last().unwrap();
    assert!(others.len() > 2 && others.iter().all(|line| line["done"] == false && line["model"] == "demo"));
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert!(last["eval_count"].as_u64().unwrap() > 3 && last["prompt_eval_count"].as_u64().unwrap() > 3);
    let (status, whole) = server.ask(CHAT, &chat(&json!({ "stream": false }))).await;
    assert_eq!(
        (status, &whole["message"]["content"], &whole["done"]),
        (200, &json!("Yes, it will."), &json!(true))
    );
}

#[tokio::test]
async fn calls_are_sent_whole_with_arguments_as_an_object() {
    let server = server("<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\": \"IST\"}}\n</tool_call>");
    let tools = json!([{ "type": "function", "function": { "name": "now", "parameters": { "type": "object", "properties": {} } } }]);
    for stream in [true, false] {
        let body = chat(&json!({ "tools": tools, "stream": stream }));
        let text = server.post(CHAT, &body).send().await.unwrap().text().await.unwrap();
        let calls: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter_map(|line| line["message"]["tool_calls"].as_array().cloned())
            .flatten()
            .collect();
        assert_eq!(calls.len(), 1);
        assert_eq!(
            calls[0]["function"],
            json!({ "index": 0, "name": "now", "arguments": { "zone": "IST" } })
        );
    }
    let back = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "now", "arguments": { "zone": "IST" } } }] },
        { "role": "tool", "tool_name": "now", "content": "12:00" },
    ]);
    let (status, answer) =
        server.ask(CHAT, &chat(&json!({ "messages": back, "tools": tools, "stream": false }))).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn options_limit_and_stop_an_answer() {
    let server = server("Yes, it will rain.");
    let ask = async |options: Value| {
        let body = json!({ "model": "demo", "prompt": "Will it rain?", "stream": false, "options": options });
        server.ask(GENERATE, &body).await.1
    };
    let cut = ask(json!({ "num_predict": 2, "num_ctx": 4096, "temperature": 0 })).await;
    assert_eq!((&cut["done_reason"], &cut["eval_count"]), (&json!("length"), &json!(2)), "{cut}");
    assert_eq!(ask(json!({ "stop": ["it"] })).await["response"], "Yes, ");
    assert_eq!(ask(json!({ "num_predict": -1 })).await["response"], "Yes, it will rain.");
}

#[tokio::test]
async fn a_request_without_a_prompt_only_loads_the_model() {
    let server = server("Yes.");
    for (path, body) in [
        (CHAT, json!({ "model": "demo", "messages": [] })),
        (GENERATE, json!({ "model": "demo", "prompt": "" })),
    ] {
        let (status, answer) = server.ask(path, &body).await;
        assert_eq!((status, &answer["done_reason"]), (200, &json!("load")), "{answer}");
    }
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let server = server("Yes.");
    let get = async |path: &str| server.get(path).send().await.unwrap().json::<Value>().await.unwrap();
    let tags = get("/api/tags").await;
    assert_eq!(
        (&tags["models"][0]["name"], &tags["models"][0]["details"]["family"]),
        (&json!("demo"), &json!("llama"))
    );
    assert_eq!(get("/api/ps").await["models"][0]["model"], "demo");
    assert!(get("/api/version").await["version"].is_string());
    let (_, shown) = server.ask("/api/show", &json!({ "model": "demo" })).await;
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    assert_eq!(shown["template"], TEMPLATE);
    assert_eq!(shown["model_info"]["llama.context_length"], 2048);
}

#[tokio::test]
async fn what_eka_does_not_do_is_refused_by_name_in_ollamas_shape() {
    let server = server("Yes.");
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy"] {
        let (status, answer) = server.ask(path, &json!({ "model": "demo" })).await;
        assert_eq!((status, &answer["code"]), (501, &json!("not_implemented")), "{path}");
        assert!(answer["error"].as_str().unwrap().contains("not supported by eka"), "{answer}");
    }
    let (status, answer) = server.ask(CHAT, &json!({ "model": "other", "messages": [] })).await;
    assert_eq!(status, 404);
    assert!(answer["error"].as_str().unwrap().contains("no model"), "{answer}");
}
