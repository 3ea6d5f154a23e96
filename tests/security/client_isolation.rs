//! One client cannot block the others.

use std::{sync::Arc, time::Duration};

use eka::units::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use std::io::Write;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    processes::{send_signal, worker_of},
    program::Program,
    server::{Server, ServerOptions, eventually},
};

const NATIVE: &str = "/generate-lite";
const CHAT: &str = "/v1/chat/completions";

/// Far longer than a probe takes on a machine that has other things to do, and far less than a blocked server takes.
const SOON: Duration = Duration::from_secs(5);

fn large_bodies() -> Server {
    Server::start(ServerOptions { body_limit: Bytes::mib(4), ..ServerOptions::default() })
}

/// Polls `/livez` while `work` runs; returns the number of answers and the result of `work`.
async fn alive_during<T>(server: &Server, work: impl Future<Output = T>) -> (usize, T) {
    tokio::pin!(work);
    let mut answers = 0;
    loop {
        tokio::select! {
            done = &mut work => return (answers, done),
            probe = timeout(SOON, server.get("/livez").send()) => {
                assert_eq!(probe.expect("/livez is answered").unwrap().status(), 200);
                answers += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// What comes back until the connection ends, at most for a minute.
async fn rest(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "no end: {}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn forty_thousand_logit_biases_are_rejected_while_probes_are_answered() {
    let server = large_bodies();
    let biases: Map<String, Value> = (0..40_960).map(|id| (format!("{id:0>64}"), json!(1))).collect();
    let request = json!({ "prompt": "x", "logit_bias": biases });
    let (_, (status, answer)) = alive_during(&server, server.ask(NATIVE, &request)).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("logit_bias")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("at most 1024"), "{answer}");
}

#[tokio::test]
async fn long_stop_strings_are_rejected_with_the_limit() {
    let server = large_bodies();
    for (stop, words) in
        [(json!(vec!["a".repeat(200_000); 16]), "at most 1024"), (json!(vec!["a"; 17]), "at most 16")]
    {
        let (status, answer) = server.ask(NATIVE, &json!({ "prompt": "x", "stop": stop })).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("stop")));
        assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
    }
}

#[tokio::test]
async fn a_4_mib_prompt_is_rejected_before_tokenizing_while_probes_are_answered() {
    let server = large_bodies();
    let long = "नमस्ते ".repeat((4 << 20) / 20);
    let messages = json!([{ "role": "user", "content": long }]);
    for (path, request) in [
        (NATIVE, json!({ "prompt": long })),
        (CHAT, json!({ "messages": messages })),
        (NATIVE, json!({ "prompt": vec![20; 1 << 20] })),
        ("/tokenize", json!({ "prompt": long })),
    ] {
        let (_, (status, answer)) = alive_during(&server, server.ask(path, &request)).await;
        assert_eq!(
            (status, &answer["error"]["code"]),
            (400, &json!("context_length_exceeded")),
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn error_messages_are_short_for_huge_values() {
    let server = large_bodies();
    let long = "a\n".repeat(1 << 20);
    for request in [json!({ "prompt": "x", "model": long }), json!({ "prompt": "x", long: 1 })] {
        let response = server.post(NATIVE, &request).send().await.unwrap();
        let text = response.text().await.unwrap();
        assert!(text.len() < 20_000, "{} bytes", text.len());
    }
}

/// The head of a request that announces a body of `length` bytes.
fn head(length: usize, more: &str) -> String {
    format!(
        "POST {NATIVE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn a_body_announced_as_too_large_is_rejected_unread() {
    let server = large_bodies();
    for more in ["", "expect: 100-continue\r\n"] {
        let mut socket = connect(&server).await;
        socket.write_all(head((4 << 20) + 1, more).as_bytes()).await.unwrap();
        let answer = rest(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("x-request-id: ") && answer.contains("body_too_large"), "{answer}");
        assert!(answer.contains("4.00 MiB"), "{answer}");
    }
    let mut socket = connect(&server).await;
    socket.write_all(head(14, "expect: 100-continue\r\nconnection: close\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 25];
    socket.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(br#"{"prompt":"x"}"#).await.unwrap();
    assert!(rest(&mut socket).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn stalled_bodies_share_a_memory_limit_and_small_requests_are_served() {
    let server = large_bodies();
    let begin = async || {
        let mut socket = connect(&server).await;
        socket.write_all(head(4 << 20, "").as_bytes()).await.unwrap();
        // Rejected bodies are not read to their end.
        let _ = socket.write_all(&vec![b' '; (4 << 20) - 1]).await;
        socket
    };
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(begin().await);
    }
    // 16 MiB are not enough for a fifth, which is rejected at once.
    let refused = async {
        loop {
            let mut socket = begin().await;
            if let Ok(answer) = timeout(SOON, rest(&mut socket)).await {
                return answer;
            }
            stalled.push(socket);
        }
    };
    let refused = timeout(Duration::from_secs(25), refused).await.expect("one is refused");
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.is_empty() || refused.contains("retry-after: 5"), "{refused}");
    assert_eq!(server.ask(NATIVE, &json!({ "prompt": "x" })).await.0, 200);
    drop(stalled);
    let large = json!({ "prompt": "x", "user": " ".repeat(3 << 20) });
    for _ in 0..600 {
        if server.ask("/v1/completions", &large).await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the memory of bodies that are gone was not given back");
}

#[tokio::test]
async fn gzip_is_decoded_and_other_encodings_are_rejected() {
    let server = Server::start(ServerOptions::default());
    let gzip = |body: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    let ask = |encoding: &str, body: Vec<u8>| {
        let request = server.client.post(format!("{}{NATIVE}", server.url)).body(body);
        request.header("content-type", "application/json").header("content-encoding", encoding).send()
    };
    let answer = ask("gzip", gzip(br#"{"prompt": "x"}"#)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let bomb = ask("gzip", gzip(&vec![b' '; 8 << 20])).await.unwrap();
    assert_eq!(bomb.status(), 413);
    let brotli = ask("br", b"x".to_vec()).await.unwrap();
    assert_eq!(
        (brotli.status().as_u16(), &brotli.headers()["accept-encoding"]),
        (415, &"gzip, identity".parse().unwrap())
    );
    let lie = ask("gzip", br#"{"prompt": "x"}"#.to_vec()).await.unwrap();
    assert_eq!(lie.status(), 400);
    assert_eq!(lie.json::<Value>().await.unwrap()["error"]["code"], "invalid_gzip");
}

/// A connection on which one request has been answered, and which stays open.
async fn keep_alive(address: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    timeout(Duration::from_secs(60), socket.read_exact(&mut first))
        .await
        .expect("/livez is answered")
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    socket
}

#[tokio::test]
async fn idle_connections_are_closed_for_new_ones_and_streams_continue() {
    let server = Server::start(ServerOptions {
        max_connections: 4,
        step: Duration::from_millis(20),
        ..ServerOptions::default()
    });
    let endless = json!({ "prompt": "x", "ignore_eos": true, "max_new_tokens": 200, "stream": true });
    let mut stream = server.post(NATIVE, &endless).send().await.unwrap().bytes_stream();
    stream.next().await.unwrap().unwrap();
    let address = server.url.strip_prefix("http://").unwrap();
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(keep_alive(address).await);
    }
    // The first one was closed, as the server closes a connection that was idle for too long.
    rest(&mut idle[0]).await;
    let mut streamed = Vec::new();
    while let Some(piece) = stream.next().await {
        streamed.extend_from_slice(&piece.unwrap());
    }
    assert!(String::from_utf8(streamed).unwrap().ends_with("data: [DONE]\n\n"));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn with_1100_clients_and_1024_open_files_probes_and_new_workers_still_work() {
    let program = Program::start_with_files(1024, &[]).await;
    let lowered = program.logged("connections_limited");
    assert!(lowered[0].contains(" from=1024 "), "{lowered:?}");
    let address = program.url.strip_prefix("http://").unwrap();
    let mut clients = Vec::new();
    for _ in 0..1_100 {
        clients.push(keep_alive(address).await);
    }
    let worker = program.worker_pid();
    send_signal("KILL", worker);
    eventually("another worker", || worker_of(program.pid()).is_some_and(|other| other != worker)).await;
    let asked = json!({ "prompt": "x", "max_new_tokens": 2 });
    let mut status = 0;
    for _ in 0..600 {
        status = program.ask(NATIVE, &asked).await.0;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status, 200, "{}", program.log());
    assert!(!program.log().contains("Too many open files"), "{}", program.log());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn five_hundred_clients_that_connect_to_a_busy_server_all_queue() {
    let program = Program::start(&[]).await;
    let address = program.url.strip_prefix("http://").unwrap().parse().unwrap();
    // A server that accepts nothing for a while. The client that finds the queue full would try again after a second.
    send_signal("STOP", program.pid());
    let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(900));
    let clients: Vec<_> = (0..500).map(connect).collect();
    send_signal("CONT", program.pid());
    let refused = clients.iter().filter(|client| client.is_err()).count();
    assert_eq!(refused, 0, "of 500 clients");
}

#[tokio::test]
async fn a_large_answer_is_serialized_off_the_http_thread() {
    let server = Server::start(ServerOptions { body_limit: Bytes::mib(4), ..ServerOptions::default() });
    let server = Arc::new(server);
    let ids = vec![20; 300_000];
    let request = json!({ "tokens": ids });
    let (_, (status, answer)) = alive_during(&server, server.ask("/detokenize", &request)).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["content"].as_str().unwrap().len() >= 300_000);
}
