//! Streams whose client loses the connection and resumes them.

use std::time::Duration;

use eka::units::Bytes;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};

use crate::support::{
    http2::{client, request, text},
    server::{ANSWER, Server, ServerOptions, eventually},
};

const NATIVE: &str = "/generate-lite";
const MINUTE: Duration = Duration::from_secs(60);

fn resumable() -> ServerOptions {
    ServerOptions { resume_window: MINUTE, step: Duration::from_millis(5), ..ServerOptions::default() }
}

/// A streamed request of each route that has events.
fn requests() -> [(&'static str, Value); 5] {
    let messages = json!([{ "role": "user", "content": "Please" }]);
    [
        (NATIVE, json!({ "prompt": "Please", "stream": true })),
        ("/v1/completions", json!({ "prompt": "Please", "stream": true, "n": 2 })),
        ("/v1/chat/completions", json!({ "messages": messages, "stream": true, "logprobs": true })),
        ("/v1/responses", json!({ "input": "Please", "stream": true })),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 64, "stream": true })),
    ]
}

/// A long answer.
fn endless() -> Value {
    json!({ "prompt": "Please", "stream": true, "ignore_eos": true, "max_new_tokens": 200 })
}

/// The complete events of a stream that have an id, each with its id.
fn with_ids(stream: &str) -> Vec<(String, String)> {
    let end = stream.rfind("\n\n").map_or(0, |end| end + 2);
    let events = stream[..end].split_terminator("\n\n");
    let id = |event: &str| Some((event.strip_prefix("id: ")?.lines().next()?.to_owned(), event.to_owned()));
    events.filter_map(id).collect()
}

/// Reads at least `count` events and disconnects; what was read.
async fn read(mut answer: Response, count: usize) -> String {
    assert_eq!(answer.status(), 200);
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if with_ids(&text).len() >= count {
            return text;
        }
        bytes.extend(answer.chunk().await.unwrap().expect("the stream goes on"));
    }
}

fn stream_id(answer: &Response) -> String {
    answer.headers()["x-eka-stream-id"].to_str().unwrap().to_owned()
}

async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_client_that_lost_its_connection_gets_exactly_the_rest_on_every_route() {
    let server = Server::start(resumable());
    for (path, body) in requests() {
        let answer = server.post(path, &body).send().await.unwrap();
        let id = stream_id(&answer);
        let seen = with_ids(&read(answer, 3).await);
        let last = &seen.last().unwrap().0;
        let resumed = server.post(path, &json!({})).header("last-event-id", last).send().await.unwrap();
        assert_eq!((resumed.status(), stream_id(&resumed)), (StatusCode::OK, id.clone()), "{path}");
        let rest = with_ids(&resumed.text().await.unwrap());
        let all: Vec<_> = seen.iter().chain(&rest).cloned().collect();
        let numbers: Vec<String> = (1..=all.len()).map(|number| format!("{id}:{number}")).collect();
        assert_eq!(all.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), numbers, "{path}");
        let whole = server.get(&format!("/v1/streams/{id}")).send().await.unwrap().text().await.unwrap();
        assert_eq!(with_ids(&whole), all, "{path}: the same stream from its beginning");
        let last = &all.last().unwrap().1;
        let ends = ["data: [DONE]", "message_stop", "response.completed"];
        assert!(ends.iter().any(|end| last.contains(end)), "{path}: {last}");
    }
    assert_eq!(server.metrics.generated_tokens.get(), 6 * 14, "nothing was generated twice");
    server.has_counted("/v1/chat/completions", "ok", 2).await;
}

#[tokio::test]
async fn an_answer_goes_on_without_its_client_and_the_rest_can_be_read_after_its_end() {
    let server = Server::start(resumable());
    let answer = server.post(NATIVE, &json!({ "prompt": "Please", "stream": true })).send().await.unwrap();
    let id = stream_id(&answer);
    drop(read(answer, 1).await);
    server.is_idle().await;
    let resume = |position: String| server.post(&format!("{NATIVE}?resume={position}"), &json!({})).send();
    let rest = resume(format!("{id}:1")).await.unwrap().text().await.unwrap();
    let events = with_ids(&rest);
    assert!(events[0].0.ends_with(":2") && events.last().unwrap().1.ends_with("data: [DONE]"), "{rest}");
    let whole = resume(id.clone()).await.unwrap().text().await.unwrap();
    let texts = with_ids(&whole).into_iter().filter_map(|(_, event)| {
        let data: Value = serde_json::from_str(event.split_once("data: ")?.1).ok()?;
        // The last event repeats the text.
        data["finish_reason"].is_null().then(|| data["text"].as_str().unwrap_or_default().to_owned())
    });
    assert_eq!(texts.collect::<String>(), ANSWER);
    let after = resume(format!("{id}:9999")).await.unwrap();
    assert_eq!(code(after).await, (400, "invalid_value".into()));
    let elsewhere = server.post("/v1/completions", &json!({})).header("last-event-id", &id);
    assert_eq!(code(elsewhere.send().await.unwrap()).await, (404, "stream_not_found".into()));
    let metrics = server.metrics.render().unwrap();
    assert!(metrics.contains("eka_stream_resumes_total{outcome=\"resumed\"} 2\n"), "{metrics}");
}

#[tokio::test]
async fn a_stream_over_http2_is_resumed_over_http1_and_the_other_way_round() {
    let server = Server::start(resumable());
    let address = server.url.strip_prefix("http://").unwrap();
    let body = json!({ "messages": [{ "role": "user", "content": "Please" }], "stream": true });
    let path = "/v1/chat/completions";
    let connection = client(TcpStream::connect(address).await.unwrap()).await;
    let asked = connection.clone().send_request(request(&server, path, Some(&body))).await.unwrap();
    let id = asked.headers()["x-eka-stream-id"].to_str().unwrap().to_owned();
    drop((asked, connection));
    let resumed = server.post(path, &json!({})).header("last-event-id", format!("{id}:0"));
    let all = with_ids(&read(resumed.send().await.unwrap(), 4).await);
    let connection = client(TcpStream::connect(address).await.unwrap()).await;
    let rest = format!("{path}?resume={}", all.last().unwrap().0);
    let rest = connection.clone().send_request(request(&server, &rest, Some(&json!({})))).await.unwrap();
    let rest = with_ids(&text(rest).await);
    assert_eq!(rest[0].0, format!("{id}:{}", all.len() + 1));
    assert!(rest.last().unwrap().1.ends_with("data: [DONE]"));
}

#[tokio::test]
async fn a_client_that_does_not_return_in_time_frees_the_slot() {
    let window = Duration::from_millis(300);
    let server = Server::start(ServerOptions {
        resume_window: window,
        step: Duration::from_millis(50),
        ..ServerOptions::default()
    });
    let answer = server.post(NATIVE, &endless()).send().await.unwrap();
    let id = stream_id(&answer);
    drop(read(answer, 1).await);
    server.has_queued(0).await;
    server.is_idle().await;
    assert!(server.metrics.generated_tokens.get() < 200, "it was cancelled, not finished");
    server.has_counted(NATIVE, "client_gone", 1).await;
    let late = server.get(&format!("/v1/streams/{id}")).send().await.unwrap();
    assert_eq!(code(late).await, (404, "stream_not_found".into()));
    assert_eq!(server.metrics.streams_abandoned.get(), 1);
}

#[tokio::test]
async fn a_deleted_stream_ends_its_generation_and_its_connection() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(50), ..resumable() });
    let answer = server.post(NATIVE, &endless()).send().await.unwrap();
    let path = format!("/v1/streams/{}", stream_id(&answer));
    server.has_queued(0).await;
    let deleted = server.client.delete(format!("{}{path}", server.url)).send().await.unwrap();
    assert_eq!(deleted.json::<Value>().await.unwrap()["deleted"], true);
    server.is_idle().await;
    assert!(answer.text().await.is_err(), "a stream that is not complete does not look complete");
    assert_eq!(code(server.get(&path).send().await.unwrap()).await, (404, "stream_not_found".into()));
}

#[tokio::test]
async fn the_later_of_two_connections_reads_the_stream() {
    let server = Server::start(resumable());
    let first = server.post(NATIVE, &endless()).send().await.unwrap();
    let path = format!("/v1/streams/{}", stream_id(&first));
    let second = server.get(&path).send().await.unwrap();
    assert!(timeout(MINUTE, first.text()).await.unwrap().is_err(), "the first one is closed");
    let all = with_ids(&second.text().await.unwrap());
    assert!(all.len() > 100 && all.last().unwrap().1.ends_with("data: [DONE]"));
}

#[tokio::test]
async fn a_stream_that_takes_too_much_memory_without_its_client_says_so_at_its_end() {
    let server = Server::start(ServerOptions { resume_memory: Bytes::kib(64), ..resumable() });
    let answer = server.post(NATIVE, &endless()).send().await.unwrap();
    let id = stream_id(&answer);
    drop(read(answer, 1).await);
    server.is_idle().await;
    assert!(server.metrics.generated_tokens.get() < 200, "it was cancelled");
    let cut = server.get(&format!("/v1/streams/{id}")).header("last-event-id", format!("{id}:1"));
    let cut = with_ids(&cut.send().await.unwrap().text().await.unwrap());
    assert!(cut.len() < 60 && cut.last().unwrap().1.contains("stream_too_long"), "{cut:?}");
    server.has_counted(NATIVE, "stream_too_long", 1).await;
}

#[tokio::test]
async fn earlier_events_of_a_long_stream_that_its_client_has_are_not_kept() {
    let server = Server::start(ServerOptions { resume_memory: Bytes::kib(64), ..resumable() });
    let answer = server.post(NATIVE, &endless()).send().await.unwrap();
    let id = stream_id(&answer);
    let seen = with_ids(&answer.text().await.unwrap());
    assert!(seen.len() > 100, "a client that stays connected gets everything");
    let beginning = server.get(&format!("/v1/streams/{id}")).send().await.unwrap();
    assert_eq!(code(beginning).await, (410, "stream_events_dropped".into()));
    let near_end = format!("{id}:{}", seen.len() - 2);
    let rest = server.post(&format!("{NATIVE}?resume={near_end}"), &json!({})).send().await.unwrap();
    assert_eq!(with_ids(&rest.text().await.unwrap()), seen[seen.len() - 2..]);
}

#[tokio::test]
async fn without_the_setting_streams_have_no_ids_and_a_disconnected_client_ends_its_answer() {
    let server = Server::start(ServerOptions { step: Duration::from_millis(50), ..ServerOptions::default() });
    let answer = server.post(NATIVE, &endless()).send().await.unwrap();
    assert!(!answer.headers().contains_key("x-eka-stream-id"));
    server.has_queued(0).await;
    drop(answer);
    server.is_idle().await;
    let resumed = server.post(NATIVE, &json!({ "prompt": "x" })).header("last-event-id", "stream_x:1");
    let resumed = resumed.send().await.unwrap();
    assert_eq!(resumed.status(), 404);
    let message = resumed.json::<Value>().await.unwrap()["error"]["message"].to_string();
    assert!(message.contains("server.resume_ms is 0"), "{message}");
    let plain = server.stream(NATIVE, &json!({ "prompt": "x", "stream": true })).await;
    assert!(!plain.contains("id: "), "{plain}");
}

#[tokio::test]
async fn a_shutdown_lets_a_stream_without_its_client_finish() {
    let mut server = Server::start(resumable());
    let answer = server.post(NATIVE, &json!({ "prompt": "Please", "stream": true })).send().await.unwrap();
    drop(answer);
    let ended = server.shut_down();
    timeout(MINUTE, ended).await.unwrap().unwrap();
    eventually("its tokens", || server.metrics.generated_tokens.get() == 14).await;
}
