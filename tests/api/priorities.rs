//! Priorities in the queue, and answers that `max_time_ms` ends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    program::Program,
    server::{Server, ServerOptions, events},
};

const NATIVE: &str = "/generate-lite";
const CHAT: &str = "/v1/chat/completions";

/// Sends a request in a separate task and records when its answer arrives.
fn ask_later(
    server: &Server,
    name: &'static str,
    request: &Value,
    ends: &Ends,
) -> tokio::task::JoinHandle<()> {
    let (sent, ends) = (server.post(NATIVE, request).send(), ends.clone());
    tokio::spawn(async move {
        assert_eq!(sent.await.unwrap().status(), 200);
        ends.lock().unwrap().push(name);
    })
}

type Ends = std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>;

#[tokio::test]
async fn interactive_requests_overtake_batch_requests_a_limited_number_of_times() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(20), ..ServerOptions::default() });
    server.executor.limit_overtakes(2);
    let ends = Ends::default();
    let long = json!({ "prompt": "Please", "ignore_eos": true, "max_new_tokens": 20 });
    let short = |more: Value| {
        let mut request = json!({ "prompt": "Please", "max_new_tokens": 2 });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let mut clients = vec![ask_later(&server, "first", &long, &ends)];
    server.has_queued(0).await;
    let requests = [
        ("batch", json!({ "priority": "batch" })),
        ("flex", json!({ "service_tier": "flex" })),
        ("a", json!({})),
        ("b", json!({ "priority": "interactive" })),
        ("c", json!({ "service_tier": "default" })),
    ];
    for (place, (name, more)) in requests.into_iter().enumerate() {
        clients.push(ask_later(&server, name, &short(more), &ends));
        server.has_queued(place + 1).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(*ends.lock().unwrap(), ["first", "a", "b", "batch", "c", "flex"]);
    let metrics = server.metrics.render().unwrap();
    for line in ["{priority=\"batch\"} 2", "{priority=\"interactive\"} 4"] {
        assert!(metrics.contains(&format!("eka_queue_wait_seconds_count{line}\n")), "{metrics}");
    }
}

#[tokio::test]
async fn unknown_and_conflicting_priorities_are_refused() {
    let server = Server::start(ServerOptions::default());
    for (more, param) in [
        (json!({ "priority": "urgent" }), "priority"),
        (json!({ "priority": 3 }), "priority"),
        (json!({ "service_tier": "scale" }), "service_tier"),
        (json!({ "priority": "batch", "service_tier": "flex" }), "priority"),
        (json!({ "max_time_ms": 0 }), "max_time_ms"),
        (json!({ "max_time_ms": 120_001 }), "max_time_ms"),
    ] {
        let mut request = json!({ "prompt": "Please" });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = server.ask(NATIVE, &request).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
}

#[tokio::test]
async fn max_time_ms_cuts_the_answer_without_an_error() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(5), ..ServerOptions::default() });
    let request = json!({
        "messages": [{ "role": "user", "content": "Please" }], "ignore_eos": true, "max_tokens": 200,
        "max_time_ms": 150,
    });
    let (status, answer) = server.ask(CHAT, &request).await;
    assert_eq!((status, &answer["choices"][0]["finish_reason"]), (200, &json!("length")), "{answer}");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..200).contains(&tokens), "{answer}");
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty());

    let mut streamed = request;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let (events, is_done) = events(&server.stream(CHAT, &streamed).await);
    assert!(is_done);
    let [.., closing, usage] = &*events else { panic!("{events:?}") };
    assert_eq!(closing["choices"][0]["finish_reason"], "length");
    let said = usage["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..200).contains(&said), "{usage}");
    server.has_counted(CHAT, "ok", 2).await;
    server.is_idle().await;
}

#[tokio::test]
async fn max_time_ms_does_not_count_queueing() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(10), ..ServerOptions::default() });
    let long = json!({ "prompt": "Please", "ignore_eos": true, "max_new_tokens": 100 });
    let running = tokio::spawn(server.post(NATIVE, &long).send());
    server.has_queued(0).await;
    // A second in the queue, and then 900 ms for two tokens of 10 ms.
    let (status, answer) =
        server.ask(NATIVE, &json!({ "prompt": "Please", "max_new_tokens": 2, "max_time_ms": 900 })).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(2)), "{answer}");
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_stops_at_the_next_step_and_reports_usage() {
    let program = Program::start(&[]).await;
    let endless = json!({ "prompt": "Once", "ignore_eos": true, "max_new_tokens": 200, "max_time_ms": 1 });
    // A millisecond is over before 200 tokens are, on any machine.
    let (status, answer) = program.ask(NATIVE, &endless).await;
    assert_eq!((status, &answer["finish_reason"]), (200, &json!("length")), "{answer}");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(tokens < 200, "{answer}");
    assert!(answer["memory"]["after"].is_object(), "{answer}");
    let formed = json!({
        "prompt": "Once", "regex": "[a-z]{300,400}", "max_new_tokens": 200, "max_time_ms": 1
    });
    let (status, answer) = program.ask(NATIVE, &formed).await;
    assert_eq!((status, &answer["finish_reason"]), (200, &json!("length")), "{answer}");
}
