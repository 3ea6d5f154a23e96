//! HTTP/2, by prior knowledge and over TLS: the same answers as over HTTP/1, and the same limits for clients.

use std::time::Duration;

use futures_util::future::join_all;
use hyper::{
    Request, Response, StatusCode,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    http2::{client, request, text},
    server::{Server, ServerOptions, events, eventually},
};

const MINUTE: Duration = Duration::from_secs(60);

async fn client_of(server: &Server) -> SendRequest<String> {
    let address = server.url.strip_prefix("http://").unwrap();
    client(TcpStream::connect(address).await.unwrap()).await
}

async fn ask(client: &SendRequest<String>, request: Request<String>) -> (u16, Value) {
    let answer = client.clone().send_request(request).await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&text(answer).await).unwrap())
}

#[tokio::test]
async fn whole_and_streamed_answers_over_http2_are_those_of_http1() {
    let server = Server::start(ServerOptions::default());
    let client = client_of(&server).await;
    let chat = json!({ "messages": [{ "role": "user", "content": "Please" }], "seed": 1 });
    let path = "/v1/chat/completions";
    let (status, whole) = ask(&client, request(&server, path, Some(&chat))).await;
    let (_, of_http1) = server.ask(path, &chat).await;
    assert_eq!((status, &whole["choices"]), (200, &of_http1["choices"]), "{whole}");

    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    let answer = client.clone().send_request(request(&server, path, Some(&streamed))).await.unwrap();
    assert!(answer.headers().contains_key("x-request-id") && !answer.headers().contains_key("connection"));
    let (chunks, is_done) = events(&text(answer).await);
    let content: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(
        (content.as_str(), is_done),
        (whole["choices"][0]["message"]["content"].as_str().unwrap(), true)
    );
}

#[tokio::test]
async fn one_connection_carries_many_requests_at_once() {
    let server = Server::start(ServerOptions { max_jobs: 64, ..ServerOptions::default() });
    let client = client_of(&server).await;
    let body = json!({ "prompt": "x", "max_new_tokens": 3 });
    // The first answer comes after the server's settings: from then on the client keeps to its limit.
    assert_eq!(ask(&client, request(&server, "/livez", None)).await.0, 200);
    let all = join_all((0..300).map(|_| ask(&client, request(&server, "/generate-lite", Some(&body))))).await;
    assert!(all.iter().all(|(status, _)| [200, 429].contains(status)), "{all:?}");
    assert!(all.iter().filter(|(status, _)| *status == 200).count() >= 32);
    assert_eq!(ask(&client, request(&server, "/nothing", None)).await.0, 404);
}

#[tokio::test]
async fn a_reset_stream_and_a_lost_connection_end_their_generations() {
    let step = Duration::from_millis(20);
    let server = Server::start(ServerOptions { step, ..ServerOptions::default() });
    let long = json!({ "prompt": "x", "max_new_tokens": 200, "ignore_eos": true });
    for is_stream in [true, false] {
        let mut body = long.clone();
        body["stream"] = json!(is_stream);
        let client = client_of(&server).await;
        let mut sender = client.clone();
        let asked = tokio::spawn(sender.send_request(request(&server, "/generate-lite", Some(&body))));
        server.has_queued(0).await;
        // Dropping the future, or the answer of a stream, resets the stream.
        asked.abort();
        drop(asked.await.map(|answer| answer.map(Response::into_body)));
        timeout(MINUTE, server.is_idle()).await.unwrap();
        assert_eq!(
            ask(&client, request(&server, "/livez", None)).await.0,
            200,
            "the connection is still open"
        );
    }
    let (_client, connection) = {
        let socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
        let (mut client, connection) =
            http2::handshake::<_, _, String>(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
        let connection = tokio::spawn(connection);
        let asked = tokio::spawn(client.send_request(request(&server, "/generate-lite", Some(&long))));
        server.has_queued(0).await;
        drop(asked);
        (client, connection)
    };
    connection.abort();
    timeout(MINUTE, server.is_idle()).await.unwrap();
}

#[tokio::test]
async fn the_authority_is_checked_as_the_host_is() {
    let server = Server::start(ServerOptions::default());
    let client = client_of(&server).await;
    let foreign = Request::builder().uri("http://evil.example/v1/models").body(String::new()).unwrap();
    let (status, error) = ask(&client, foreign).await;
    assert_eq!((status, &error["error"]["code"]), (403, &json!("host_not_allowed")));
    // A host field does not hide the authority.
    let hidden = Request::builder().uri("http://evil.example/v1/models").header("host", "localhost");
    assert_eq!(ask(&client, hidden.body(String::new()).unwrap()).await.0, 403);
}

#[tokio::test]
async fn bodies_and_heads_that_are_too_large_are_refused_without_closing_the_connection() {
    let server = Server::start(ServerOptions::default());
    let client = client_of(&server).await;
    let large = json!({ "prompt": "a".repeat(1 << 20) });
    let (status, error) = ask(&client, request(&server, "/generate-lite", Some(&large))).await;
    assert_eq!((status, &error["error"]["code"]), (413, &json!("body_too_large")));
    let mut head = request(&server, "/livez", None);
    head.headers_mut().insert("x-long", "a".repeat(60 << 10).parse().unwrap());
    let refused = client.clone().send_request(head).await;
    assert!(refused.is_err() || refused.unwrap().status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(ask(&client, request(&server, "/livez", None)).await.0, 200);
}

#[tokio::test]
async fn a_client_that_makes_no_room_for_its_answer_is_disconnected() {
    let write_timeout = Duration::from_millis(300);
    let server = Server::start(ServerOptions { write_timeout, ..ServerOptions::default() });
    let socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(100);
    let (mut client, connection) = builder.handshake::<_, String>(TokioIo::new(socket)).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = json!({ "prompt": "x", "stream": true, "ignore_eos": true, "max_new_tokens": 200 });
    let answer = client.send_request(request(&server, "/generate-lite", Some(&body))).await.unwrap();
    // The answer is kept, and not read.
    timeout(MINUTE, connection).await.expect("the server closes the connection").unwrap().ok();
    drop(answer);
    server.is_idle().await;
}

#[tokio::test]
async fn an_idle_http2_connection_closes_for_a_new_one_and_one_with_an_answer_does_not() {
    let step = Duration::from_millis(50);
    let server = Server::start(ServerOptions { max_connections: 2, step, ..ServerOptions::default() });
    let busy = client_of(&server).await;
    let body = json!({ "prompt": "x", "stream": true, "ignore_eos": true, "max_new_tokens": 60 });
    let answer = busy.clone().send_request(request(&server, "/generate-lite", Some(&body))).await.unwrap();
    let idle = client_of(&server).await;
    assert_eq!(ask(&idle, request(&server, "/livez", None)).await.0, 200);
    let newcomer = client_of(&server).await;
    assert_eq!(ask(&newcomer, request(&server, "/livez", None)).await.0, 200);
    eventually("the idle connection to close", || idle.is_closed()).await;
    assert!(events(&text(answer).await).1, "the answer is complete");
}

#[tokio::test]
async fn a_connection_that_only_begins_like_http2_is_answered_as_http1() {
    let server = Server::start(ServerOptions::default());
    let address = server.url.strip_prefix("http://").unwrap();
    for (first, rest) in [
        ("P", "OST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"),
        ("PRI * H", "TTP/1.1\r\nhost: x\r\n\r\n"),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(first.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        socket.write_all(rest.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        timeout(MINUTE, socket.read_exact(&mut status)).await.unwrap().unwrap();
        assert!(status.starts_with(b"HTTP/1.1 4"), "{status:?}");
    }
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut answer = String::new();
    timeout(MINUTE, silent.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}
