//! More clients than the slot can serve, clients that disconnect, and servers that shut down.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};

use crate::support::server::{ANSWER, Server, ServerOptions, events, eventually};

const NATIVE: &str = "/generate-lite";
const COMPLETIONS: &str = "/v1/completions";

/// An answer that takes long enough for everything that a test does meanwhile, unless it is cancelled.
fn endless() -> Value {
    json!({ "prompt": "Please", "ignore_eos": true, "max_new_tokens": 200 })
}

fn slow() -> ServerOptions {
    ServerOptions { step: Duration::from_secs(1), ..ServerOptions::default() }
}

/// Sends a request from a task that can be aborted: the client that leaves.
fn leave_later(
    server: &Server,
    request: &Value,
) -> tokio::task::JoinHandle<reqwest::Result<reqwest::Response>> {
    tokio::spawn(server.post(NATIVE, request).send())
}

/// Has the slot, and reads its endless answer from a task that can be aborted.
async fn listen(server: &Server, stream: bool) -> tokio::task::JoinHandle<reqwest::Result<String>> {
    let mut request = endless();
    request["stream"] = json!(stream);
    let running = server.post(NATIVE, &request).send();
    let running = tokio::spawn(async move { running.await?.text().await });
    server.has_queued(0).await;
    running
}

#[tokio::test]
async fn a_full_queue_answers_429_with_retry_after() {
    let server = Server::start(ServerOptions { max_jobs: 1, ..slow() });
    let clients = [leave_later(&server, &endless()), leave_later(&server, &endless())];
    server.has_queued(1).await;
    let response = server.post(COMPLETIONS, &json!({ "prompt": "x" })).send().await.unwrap();
    assert_eq!(response.status(), 429);
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait >= 1);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["type"]),
        (&json!("queue_full"), &json!("rate_limit_error"))
    );
    assert_eq!(server.get("/readyz").send().await.unwrap().status(), 200, "full is not unready");
    clients.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_hundred_clients_all_get_an_answer_from_a_queue_of_eight() {
    let server = Server::start(ServerOptions {
        max_jobs: 8,
        step: Duration::from_millis(3),
        ..ServerOptions::default()
    });
    let clients = (0..100).map(|_| async {
        let response = server.post(NATIVE, &json!({ "prompt": "Please" })).send().await.unwrap();
        let retry_after = response.headers().get("retry-after").cloned();
        let (status, answer) = (response.status().as_u16(), response.json::<Value>().await.unwrap());
        match status {
            200 => assert_eq!(answer["text"], ANSWER),
            429 => assert!(retry_after.unwrap().to_str().unwrap().parse::<u64>().unwrap() >= 1),
            _ => panic!("{status}: {answer}"),
        }
        status
    });
    let served = join_all(clients).await.into_iter().filter(|status| *status == 200).count();
    assert!(served >= 9, "the slot and the queue hold nine, {served} were served");
    server.is_idle().await;
}

#[tokio::test]
async fn a_queue_timeout_is_reported_while_the_slot_is_busy() {
    let server = Server::start(slow());
    let running = leave_later(&server, &endless());
    server.has_queued(0).await;
    let (status, answer) = server.ask(NATIVE, &json!({ "prompt": "x", "queue_timeout_ms": 50 })).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("queue_timeout")));
    let streamed = json!({ "prompt": "x", "queue_timeout_ms": 50, "stream": true });
    let (errors, is_done) = events(&server.stream(NATIVE, &streamed).await);
    assert_eq!(errors[0]["error"]["code"], "queue_timeout");
    assert!(!is_done, "an answer that failed is not done");
    assert!(server.executor.summary().running.len() == 1);
    server.has_counted(NATIVE, "queue_timeout", 2).await;
    running.abort();
}

#[tokio::test]
async fn a_running_request_ends_at_its_deadline_and_the_next_starts() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(20), ..ServerOptions::default() });
    let mut request = endless();
    request["timeout_ms"] = json!(300);
    let (status, answer) = server.ask(NATIVE, &request).await;
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("deadline_exceeded")));
    assert_eq!(server.ask(NATIVE, &json!({ "prompt": "x" })).await.1["text"], ANSWER);
}

#[tokio::test]
async fn twenty_queued_clients_that_disconnect_do_not_affect_the_running_stream() {
    let server = Server::start(ServerOptions {
        max_jobs: 20,
        step: Duration::from_millis(30),
        ..ServerOptions::default()
    });
    let mut request = endless();
    request["stream"] = json!(true);
    let stream = server.post(NATIVE, &request).send().await.unwrap();
    let streamed = tokio::spawn(stream.text());
    server.has_queued(0).await;
    let queued: Vec<_> = (0..20)
        .map(|place| {
            let mut request = endless();
            request["stream"] = json!(place % 2 == 0);
            let waiting = server.post(NATIVE, &request).send();
            tokio::spawn(async move { waiting.await?.text().await })
        })
        .collect();
    server.has_queued(20).await;
    queued.iter().for_each(tokio::task::JoinHandle::abort);
    server.has_queued(0).await;
    let (events, is_done) = events(&streamed.await.unwrap().unwrap());
    assert!(is_done);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["usage"]["completion_tokens"], &last["finish_reason"]),
        (&json!(200), &json!("length"))
    );
    server.has_counted(NATIVE, "client_gone", 20).await;
    server.has_counted(NATIVE, "ok", 1).await;
}

#[tokio::test]
async fn a_client_that_disconnects_frees_the_slot() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(20), ..ServerOptions::default() });
    for stream in [false, true] {
        let running = listen(&server, stream).await;
        let before = server.metrics.generated_tokens.get();
        eventually("a token", || server.metrics.generated_tokens.get() > before).await;
        running.abort();
        server.is_idle().await;
        assert!(server.metrics.generated_tokens.get() < before + 200, "it was cancelled, not finished");
        assert_eq!(server.ask(NATIVE, &json!({ "prompt": "x" })).await.1["text"], ANSWER);
    }
}

#[tokio::test]
async fn a_client_that_disconnects_between_tokens_is_detected() {
    let server =
        Server::start(ServerOptions { step: Duration::from_secs(3_600), ..ServerOptions::default() });
    for stream in [false, true] {
        let running = listen(&server, stream).await;
        let waiting = leave_later(&server, &endless());
        server.has_queued(1).await;
        waiting.abort();
        server.has_queued(0).await;
        running.abort();
        server.is_idle().await;
    }
}

#[tokio::test]
async fn a_queued_stream_sends_comments_to_stay_open() {
    let server = Server::start(ServerOptions { heartbeat: Duration::from_millis(20), ..slow() });
    let running = leave_later(&server, &endless());
    server.has_queued(0).await;
    let mut request = endless();
    request["stream"] = json!(true);
    let mut waiting = server.post(NATIVE, &request).send().await.unwrap().bytes_stream();
    let mut heard = String::new();
    while heard.matches(": waiting\n\n").count() < 3 {
        heard.push_str(std::str::from_utf8(&waiting.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(!heard.contains("data:"), "{heard}");
    running.abort();
}

#[tokio::test]
async fn shutdown_finishes_running_requests_and_refuses_new_ones() {
    let mut server =
        Server::start(ServerOptions { step: Duration::from_millis(20), ..ServerOptions::default() });
    let mut request = endless();
    request["stream"] = json!(true);
    let running = server.post(NATIVE, &request).send().await.unwrap();
    server.has_queued(0).await;
    let ended = server.shut_down();
    eventually("the queue to close", || !server.executor.summary().accepting).await;
    let (status, answer) = server.ask(NATIVE, &json!({ "prompt": "x" })).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("shutting_down")));
    assert_eq!(server.get("/readyz").send().await.unwrap().status(), 503);
    assert_eq!(server.get("/livez").send().await.unwrap().status(), 200);
    let (events, is_done) = events(&running.text().await.unwrap());
    assert!(is_done);
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 200);
    ended.await.unwrap();
    assert!(server.get("/livez").send().await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn shutdown_ends_requests_after_the_grace_time() {
    let mut server = Server::start(ServerOptions { grace: Duration::from_millis(50), ..slow() });
    let mut request = endless();
    request["stream"] = json!(true);
    let running = server.post(NATIVE, &request).send().await.unwrap();
    server.has_queued(0).await;
    let ended = server.shut_down();
    let (events, is_done) = events(&running.text().await.unwrap());
    assert_eq!(events.last().unwrap()["error"]["code"], "shutting_down");
    assert!(!is_done);
    ended.await.unwrap();
}
