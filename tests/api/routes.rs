//! Successful answers of every route.

use eka::job::Readiness;
use serde_json::{Value, json};

use crate::support::server::{ANSWER, ANSWER_IDS, CONTEXT_LENGTH, MODEL, Server, ServerOptions, events};

const NATIVE: &str = "/generate-lite";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn conversation() -> Value {
    json!([{ "role": "user", "content": "Please speak slowly." }])
}

/// The three requests that ask for the same.
fn requests() -> [(&'static str, Value); 3] {
    [
        (NATIVE, json!({ "prompt": "Please" })),
        (COMPLETIONS, json!({ "prompt": "Please" })),
        (CHAT, json!({ "messages": conversation() })),
    ]
}

fn with(mut request: Value, field: &str, value: impl Into<Value>) -> Value {
    request[field] = value.into();
    request
}

/// The text of a whole answer, whichever route it is from.
fn text_of(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    [&answer["text"], &choice["text"], &choice["message"]["content"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or_else(|| panic!("no text in {answer}"))
}

fn reason_of(answer: &Value) -> &str {
    [&answer["finish_reason"], &answer["choices"][0]["finish_reason"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or_else(|| panic!("no reason in {answer}"))
}

/// The deltas of a stream, joined; only events without a reason to finish have any.
fn deltas_of(events: &[Value]) -> String {
    let delta = |event: &Value| {
        let choice = &event["choices"][0];
        let text = [&choice["text"], &choice["delta"]["content"]].into_iter().find_map(Value::as_str);
        let native = if event.get("usage").is_none() { event["text"].as_str() } else { None };
        text.or(native).unwrap_or_default().to_owned()
    };
    events.iter().map(delta).collect()
}

#[tokio::test]
async fn streamed_and_whole_answers_agree_on_every_route() {
    let server = Server::start(ServerOptions::default());
    for (route, request) in requests() {
        for limit in [1, 3, 4, 5, 9, 14, 40] {
            let field = if route == NATIVE { "max_new_tokens" } else { "max_tokens" };
            let request = with(request.clone(), field, limit);
            let (status, whole) = server.ask(route, &request).await;
            assert_eq!(status, 200, "{whole}");
            let (events, is_done) = events(&server.stream(route, &with(request, "stream", true)).await);
            assert!(is_done);
            assert_eq!(deltas_of(&events), text_of(&whole), "{route} with {limit} tokens");
            assert!(ANSWER.starts_with(text_of(&whole)), "whole characters only: {whole}");
            assert_eq!(reason_of(events.last().unwrap()), reason_of(&whole));
        }
    }
}

#[tokio::test]
async fn an_end_token_is_counted_but_not_in_the_text() {
    let server = Server::start(ServerOptions::default());
    for (route, request) in requests() {
        let (_, answer) = server.ask(route, &request).await;
        assert_eq!((text_of(&answer), reason_of(&answer)), (ANSWER, "stop"));
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], ANSWER_IDS.len());
        let sum = usage["prompt_tokens"].as_u64().unwrap() + ANSWER_IDS.len() as u64;
        assert_eq!(usage["total_tokens"], sum);
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it_and_frees_the_slot() {
    let server = Server::start(ServerOptions::default());
    for (route, request) in requests() {
        let request = with(with(request, "stop", json!(["never", "ಮಾತ"])), "ignore_eos", true);
        let (status, whole) = server.ask(route, &request).await;
        assert_eq!(status, 200, "{whole}");
        let before = ANSWER.split("ಮಾತ").next().unwrap();
        assert_eq!((text_of(&whole), reason_of(&whole)), (before, "stop"));
        let stream = server.stream(route, &with(request, "stream", true)).await;
        assert_eq!(deltas_of(&events(&stream).0), before);
    }
    server.is_idle().await;
}

#[tokio::test]
async fn text_held_back_for_a_stop_string_is_sent_when_the_string_does_not_follow() {
    let server = Server::start(ServerOptions::default());
    let request = json!({ "prompt": "Please", "stop": ".!", "stream": true });
    let (events, _) = events(&server.stream(NATIVE, &request).await);
    assert_eq!(deltas_of(&events), ANSWER);
    assert_eq!(events.last().unwrap()["text"], ANSWER);
}

#[tokio::test]
async fn stop_token_ids_and_ignore_eos_decide_what_ends_an_answer() {
    let server = Server::start(ServerOptions::default());
    let short = json!({ "prompt": "Please", "stop_token_ids": [ANSWER_IDS[4]] });
    let (_, answer) = server.ask(NATIVE, &short).await;
    assert_eq!((reason_of(&answer), &answer["usage"]["completion_tokens"]), ("stop", &json!(5)));
    let long = json!({ "prompt": "Please", "ignore_eos": true, "max_new_tokens": 30 });
    let (_, answer) = server.ask(NATIVE, &long).await;
    assert_eq!((reason_of(&answer), &answer["usage"]["completion_tokens"]), ("length", &json!(30)));
    assert!(text_of(&answer).starts_with(&ANSWER.repeat(2)));
}

#[tokio::test]
async fn generate_lite_reports_timings_and_memory() {
    let server = Server::start(ServerOptions::default());
    let (_, answer) = server.ask(NATIVE, &json!({ "messages": conversation(), "seed": 7 })).await;
    assert_eq!((&answer["model"], &answer["seed"]), (&json!(MODEL), &json!(7)));
    let timings = &answer["timings"];
    assert_eq!((&timings["prefill_ms"], &timings["decode_ms"]), (&json!(20.0), &json!(100.0)));
    assert_eq!(timings["decode_tokens_per_second"], json!(130.0));
    assert!(timings["total_ms"].as_f64().unwrap() >= timings["queue_ms"].as_f64().unwrap());
    let before = json!({
        "resident": 300 << 20, "anonymous": 100 << 20, "prefix_cache": 0, "adapters": 0, "device": null,
    });
    assert_eq!(answer["memory"]["before"], before);
    assert_eq!(answer["memory"]["peak"], json!({ "resident": 400 << 20, "device": null }));
    let (_, other) = server.ask(NATIVE, &json!({ "prompt": "Please" })).await;
    assert!(other["seed"].as_u64().unwrap() < 1 << 53, "exact in every JSON reader");
    assert_ne!(answer["id"], other["id"]);
}

#[tokio::test]
async fn include_usage_adds_a_last_chunk_without_choices() {
    let server = Server::start(ServerOptions::default());
    for (route, request) in requests().into_iter().skip(1) {
        let plain = with(request, "stream", true);
        let (without, _) = events(&server.stream(route, &plain).await);
        assert!(without.iter().all(|event| event.get("usage").is_none()), "{without:?}");
        let asked = with(plain, "stream_options", json!({ "include_usage": true }));
        let (events, _) = events(&server.stream(route, &asked).await);
        let (last, others) = events.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], ANSWER_IDS.len());
        assert!(others.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
        assert!(others.last().unwrap()["timings"]["decode_ms"].is_number());
    }
}

#[tokio::test]
async fn chat_chunks_start_with_the_role_and_share_one_id() {
    let server = Server::start(ServerOptions::default());
    let request = json!({ "model": MODEL, "messages": conversation(), "stream": true });
    let (events, _) = events(&server.stream(CHAT, &request).await);
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(events.last().unwrap()["choices"][0]["delta"], json!({}));
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!((&event["id"], &event["created"]), (&events[0]["id"], &events[0]["created"]));
    }
}

#[tokio::test]
async fn a_prompt_may_be_text_or_token_ids_and_content_may_come_in_parts() {
    let server = Server::start(ServerOptions::default());
    let usage = async |route, request: Value| {
        let (status, answer) = server.ask(route, &request).await;
        assert_eq!(status, 200, "{answer}");
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(usage(COMPLETIONS, json!({ "prompt": [1, 4, 20] })).await, 3);
    assert_eq!(usage(COMPLETIONS, json!({ "prompt": [[1, 4, 20]] })).await, 3);
    let whole = usage(CHAT, json!({ "messages": conversation() })).await;
    let parts = json!([{ "type": "text", "text": "Please " }, { "type": "text", "text": "speak slowly." }]);
    assert_eq!(usage(CHAT, json!({ "messages": [{ "role": "user", "content": parts }] })).await, whole);
    assert_eq!(usage(NATIVE, json!({ "messages": conversation() })).await, whole);
}

#[tokio::test]
async fn openai_fields_at_neutral_values_are_accepted() {
    let server = Server::start(ServerOptions::default());
    let chat = json!({
        "model": MODEL, "messages": conversation(), "n": 1, "logprobs": false, "user": "someone", "store": false,
        "metadata": { "team": "a" }, "tools": [], "tool_choice": "none", "response_format": { "type": "text" },
        "stop": null, "logit_bias": { "17": -100 }, "seed": -1, "temperature": 0, "top_p": 0, "stream": null,
        "max_completion_tokens": 5, "parallel_tool_calls": true, "service_tier": "auto",
    });
    let completions = json!({
        "prompt": "Please", "n": 1, "best_of": 1, "echo": false, "logprobs": null, "suffix": null, "user": "x",
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "typical_p": 0.9,
        "dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_sequence_breakers": ["\n", "।"],
        "queue_timeout_ms": 5000, "timeout_ms": 60000,
    });
    for (route, request) in [(CHAT, chat), (COMPLETIONS, completions)] {
        let (status, answer) = server.ask(route, &request).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer["timings"]["total_ms"].is_number());
    }
}

#[tokio::test]
async fn return_progress_streams_prompt_progress() {
    let server = Server::start(ServerOptions { progress: true, ..ServerOptions::default() });
    for (route, request) in requests() {
        let plain = with(request, "stream", true);
        let (without, _) = events(&server.stream(route, &plain).await);
        assert!(without.iter().all(|event| event.get("prompt_progress").is_none()));
        let (events, is_done) = events(&server.stream(route, &with(plain, "return_progress", true)).await);
        assert!(is_done);
        let progress = &events[0]["prompt_progress"];
        assert_eq!(
            (&progress["processed"], &progress["total"], &progress["cache"]),
            (&json!(2), &json!(5), &json!(1))
        );
        assert!(progress["time_ms"].is_number());
        assert_eq!(deltas_of(&events), ANSWER);
    }
}

#[tokio::test]
async fn default_max_new_tokens_is_lowered_to_what_fits() {
    let server = Server::start(ServerOptions::default());
    let prompt = vec![20; CONTEXT_LENGTH - 5];
    let (_, answer) = server.ask(NATIVE, &json!({ "prompt": prompt, "ignore_eos": true })).await;
    assert_eq!((reason_of(&answer), &answer["usage"]["completion_tokens"]), ("length", &json!(5)));
}

#[tokio::test]
async fn v1_models_describes_the_model_and_its_device() {
    let server = Server::start(ServerOptions::default());
    let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    let one: Value = server.get("/v1/models/demo").send().await.unwrap().json().await.unwrap();
    assert_eq!(list, json!({ "object": "list", "data": [one] }));
    assert_eq!(one["eka"]["context_length"], CONTEXT_LENGTH);
    assert_eq!(one["eka"]["loaded"]["placement"], json!({ "CPUExecutionProvider": 42 }));
    assert_eq!(one["eka"]["loaded"]["memory"]["resident"], 200 << 20);
    let other = server.get("/v1/models/gpt-4o").send().await.unwrap();
    assert_eq!(other.status(), 404);
    let error: Value = other.json().await.unwrap();
    assert_eq!(error["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn health_probes_distinguish_alive_started_and_ready() {
    let server =
        Server::start(ServerOptions { readiness: || Readiness::Starting, ..ServerOptions::default() });
    let probe = async |path| server.get(path).send().await.unwrap().status().as_u16();
    let all = async || [probe("/livez").await, probe("/startupz").await, probe("/readyz").await];
    assert_eq!(all().await, [200, 503, 503]);
    server.readiness.send_replace(Readiness::Ready(crate::support::server::ready_report()));
    while probe("/startupz").await != 200 {}
    assert_eq!(all().await, [200, 200, 200]);
    server.readiness.send_replace(Readiness::Restarting { reason: "it fell".into() });
    assert_eq!(all().await, [200, 200, 503]);
    server.readiness.send_replace(Readiness::Down { reason: "it fell".into(), retry_in: None });
    assert_eq!(all().await, [200, 200, 503]);
}

#[tokio::test]
async fn the_index_lists_every_route_and_metrics_count_requests() {
    let server = Server::start(ServerOptions::default());
    let index = server.get("/").send().await.unwrap().text().await.unwrap();
    for path in [NATIVE, COMPLETIONS, CHAT, "/v1/models", "/livez", "/readyz", "/startupz", "/metrics"] {
        assert!(index.contains(path), "{path} is missing from:\n{index}");
    }
    server.ask(CHAT, &json!({ "messages": conversation() })).await;
    server.stream(CHAT, &json!({ "messages": conversation(), "stream": true })).await;
    server.ask(CHAT, &json!({ "messages": [] })).await;
    server.has_counted(CHAT, "ok", 2).await;
    server.has_counted(CHAT, "invalid_value", 1).await;
    for (accept, content_type, is_open) in [
        ("*/*", "text/plain; version=0.0.4", false),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text", true),
    ] {
        let metrics = server.get("/metrics").header("accept", accept).send().await.unwrap();
        assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with(content_type));
        let text = metrics.text().await.unwrap();
        assert_eq!(text.ends_with("# EOF\n"), is_open);
        assert_eq!(text.contains("# TYPE eka_requests_total counter"), !is_open);
        assert!(text.contains("eka_requests_total{route="), "{text}");
    }
}

#[tokio::test]
async fn routes_answer_without_v1_and_with_a_slash_at_the_end() {
    let server = Server::start(ServerOptions::default());
    let chat = json!({ "messages": conversation(), "max_tokens": 2 });
    for path in ["/chat/completions", "/v1/chat/completions/", "/chat/completions/"] {
        assert_eq!(server.ask(path, &chat).await.0, 200, "{path}");
    }
    for path in ["/models", "/v1/models/", "/health", "/v1/health", "/version", "/livez/"] {
        assert_eq!(server.get(path).send().await.unwrap().status(), 200, "{path}");
    }
    assert_eq!(server.ask("/v1/tokenize", &json!({ "content": "a" })).await.0, 200);
    assert_eq!(server.get("/v1/chat//completions").send().await.unwrap().status(), 404);
}
