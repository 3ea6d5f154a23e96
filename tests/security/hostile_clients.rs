//! Hostile and broken clients: thousands of invalid requests, slow heads, and silent connections.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

use crate::support::{
    processes::resident_kib,
    program::Program,
    server::{Server, ServerOptions, events, eventually},
};

const ROUTES: [&str; 3] = ["/generate-lite", "/v1/completions", "/v1/chat/completions"];

/// Asked at once.
const CLIENTS: usize = 16;

/// The bytes of a request, and whether the HTTP itself is malformed, which allows several statuses or a reset.
struct Wrong {
    bytes: Vec<u8>,
    is_http: bool,
}

/// A request that no server should answer with anything but a 4xx.
fn wrong(seed: u64) -> Wrong {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let route = ROUTES[random.random_range(0..3)];
    if random.random_bool(0.4) {
        return Wrong { bytes: broken_http(&mut random, route), is_http: true };
    }
    let body = broken_body(&mut random);
    let (length, json) = (body.len(), "connection: close\r\ncontent-type: application/json");
    let head = format!("POST {route} HTTP/1.1\r\nhost: x\r\n{json}\r\ncontent-length: {length}\r\n\r\n");
    Wrong { bytes: [head.as_bytes(), &body].concat(), is_http: false }
}

/// Ambiguous and malformed requests.
fn broken_http(random: &mut ChaCha8Rng, route: &str) -> Vec<u8> {
    let head =
        |lines: &str| format!("POST {route} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n\r\n");
    let smuggled = "0\r\n\r\nGET /admin/trim HTTP/1.1\r\nhost: x\r\n\r\n";
    let text = match random.random_range(0..18) {
        0 => head("content-length: 5\r\ntransfer-encoding: chunked") + smuggled,
        1 => head("transfer-encoding: chunked\r\ncontent-length: 60") + smuggled,
        2 => head("content-length: 5\r\ncontent-length: 6") + "hello!",
        3 => head("transfer-encoding: xchunked") + smuggled,
        4 => head("transfer-encoding: chunked\r\ntransfer-encoding: chunked") + smuggled,
        5 => head("transfer-encoding: identity, chunked") + smuggled,
        6 => head("transfer-encoding : chunked") + smuggled,
        7 => head("x-folded: a\r\n b"),
        8 => head("content-length: 5\0"),
        9 => head("x-bare: a\rb"),
        10 => head(&format!(
            "content-length: {}",
            ["-1", "+5", "1e3", "0x5", "99999999999999999999", "5, 5", "५"][random.random_range(0..7)]
        )),
        11 => {
            head("transfer-encoding: chunked")
                + ["zz\r\n", "-1\r\n", "fffffffffffffffff\r\n", "5;a\rb\r\n"][random.random_range(0..4)]
        }
        12 => head(
            &(0..random.random_range(97..300))
                .map(|n| format!("x-{n}: {n}"))
                .collect::<Vec<_>>()
                .join("\r\n"),
        ),
        13 => head(&format!("x-long: {}", "a".repeat(random.random_range(140_000..200_000)))),
        14 => format!("POST {route} HTTP/9.9\r\n\r\n"),
        15 => format!("POST {route} x HTTP/1.1\r\n\r\n"),
        16 => format!("POST {route} HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{smuggled}"),
        _ => {
            let noise = (0..random.random_range(1..200)).map(|_| random.random::<u8>() | 0x80);
            return noise.chain(*b"\r\n\r\n").collect();
        }
    };
    text.into_bytes()
}

/// Bodies that are not JSON or not a valid request.
fn broken_body(random: &mut ChaCha8Rng) -> Vec<u8> {
    let deep = random.random_range(130..8_000);
    let digits = "9".repeat(random.random_range(20..400));
    let text = match random.random_range(0..20) {
        0 => format!("{{\"prompt\": {}", "[".repeat(deep)),
        1 => format!("{{\"prompt\": {}{}}}", "[".repeat(deep), "]".repeat(deep)),
        2 => format!("{}1{}", "{\"a\":".repeat(deep), "}".repeat(deep)),
        3 => r#"{"prompt": "\ud800"}"#.into(),
        4 => r#"{"prompt": "\udc00\ud800 a"}"#.into(),
        5 => r#"{"prompt": "a", "prompt": "b"}"#.into(),
        6 => r#"{"messages": [{"role": "user", "role": "system", "content": "a"}]}"#.into(),
        7 => format!("{{\"prompt\": [{digits}]}}"),
        8 => format!("{{\"prompt\": \"a\", \"max_tokens\": {digits}, \"max_new_tokens\": {digits}}}"),
        9 => "{\"prompt\": \"a\", \"temperature\": 1e999}".into(),
        10 => format!("{{\"prompt\": \"a\", \"seed\": 0.5{digits}}}"),
        11 => "{\"prompt\": \"a\"} {}".into(),
        12 => "{\"prompt\": \"a\", }".into(),
        13 => "// a\n{\"prompt\": \"a\"}".into(),
        14 => "\u{feff}{\"prompt\": \"a\"}".into(),
        15 => "{\"prompt\": \"a\nb\"}".into(),
        16 => format!("{{\"prompt\": \"a\", \"x{digits}\": 1}}"),
        17 => format!("{{\"prompt\": {{\"{digits}\": null}}}}"),
        18 => return [&b"{\"prompt\": \""[..], &[0xc0, 0xaf, 0xff], b"\"}"].concat(),
        _ => {
            let noise = (0..random.random_range(0..300)).map(|_| random.random::<u8>());
            return noise.collect();
        }
    };
    text.into_bytes()
}

/// What comes back until the connection ends; one that is reset is an answer as well.
async fn exchange(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // A server that has rejected does not read the rest.
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "no end to: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
    answer
}

/// Sends a wrong request; panics unless it is rejected as it should be.
async fn attack(address: &str, seed: u64) {
    let Wrong { bytes, is_http } = wrong(seed);
    let answer = exchange(address, &bytes).await;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let text = String::from_utf8_lossy(&answer);
    if is_http {
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.0 4"),
            "{shown}\n{text}"
        );
        assert!(text.matches("HTTP/1.1 4").count() <= 1, "two answers: {shown}\n{text}");
        // Unread bytes reset the connection, perhaps before the answer arrives.
        if text.is_empty() {
            return;
        }
    } else {
        assert!(text.starts_with("HTTP/1.1 400 "), "seed {seed}: {shown}\n{text}");
    }
    let body = text.split_once("\r\n\r\n").unwrap().1;
    let error: Value = serde_json::from_str(body).unwrap();
    assert!(error["error"]["code"].is_string(), "{shown}\n{text}");
    assert!(error["error"]["message"].as_str().unwrap().len() > 15, "{shown}\n{text}");
}

async fn attack_all(address: &str, seeds: std::ops::Range<u64>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    let attacks = seeds.map(|seed| {
        let (places, address) = (Arc::clone(&places), address.to_owned());
        tokio::spawn(async move {
            let _place = places.acquire().await.unwrap();
            attack(&address, seed).await;
        })
    });
    for attacked in join_all(attacks).await {
        attacked.unwrap();
    }
}

#[tokio::test]
async fn ten_thousand_invalid_requests_are_refused_while_streams_continue() {
    let program = Program::start(&["--set", "log.level=warn,eka::cli=info"]).await;
    let address = program.url.strip_prefix("http://").unwrap().to_owned();
    let request = json!({ "prompt": "Please", "max_new_tokens": 40, "temperature": 0, "stream": true, "ignore_eos": true });
    let stream = async || {
        let text = program.post("/generate-lite", &request).send().await.unwrap().text().await.unwrap();
        let (events, is_done) = events(&text);
        assert!(is_done, "{text}");
        events.last().unwrap()["text"].clone()
    };
    let undisturbed = stream().await;
    attack_all(&address, 0..1_000).await;
    let before = resident_kib(program.pid());
    let attacks = attack_all(&address, 1_000..10_000);
    tokio::pin!(attacks);
    let mut streams = 0;
    loop {
        tokio::select! {
            () = &mut attacks => break,
            text = stream() => {
                assert_eq!(text, undisturbed);
                streams += 1;
            }
        }
    }
    let after = resident_kib(program.pid());
    eprintln!("{streams} streams meanwhile; resident {before} KiB before, {after} KiB after");
    assert!(streams >= 3, "{streams}");
    assert!(after < before + (16 << 10), "{before} KiB before, {after} KiB after");
    let metrics = program.metrics().await;
    assert!(!metrics.contains("internal_error") && !metrics.contains("worker_lost"), "{metrics}");
    assert!(!program.log().contains("ERROR"), "what clients do wrong is no error of the server's");
}

#[tokio::test]
async fn request_smuggling_is_rejected() {
    let server = Server::start(ServerOptions::default());
    let address = server.url.strip_prefix("http://").unwrap();
    let inner = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    for (line, lengths) in [
        (
            "POST /generate-lite HTTP/1.1",
            format!("content-length: {}\r\ntransfer-encoding: chunked", inner.len() + 5),
        ),
        ("POST /generate-lite HTTP/1.1", "transfer-encoding: chunked\r\ncontent-length: 5".into()),
        ("GET /v1/models HTTP/1.0", "connection: keep-alive\r\ntransfer-encoding: chunked".into()),
    ] {
        let request = format!("{line}\r\nhost: x\r\n{lengths}\r\n\r\n0\r\n\r\n{inner}");
        let answer = String::from_utf8(exchange(address, request.as_bytes()).await).unwrap();
        assert!(
            answer.starts_with("HTTP/1.") && answer.contains(" 400 ") && !answer.contains("alive"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn slow_request_heads_time_out_while_others_are_served() {
    let server = Server::start(ServerOptions::default());
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let loris = || async {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(b"POST /generate-lite HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        let (mut reader, mut writer) = socket.split();
        let dribble = async {
            while writer.write_all(b"x-a: b\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut answer = Vec::new();
        tokio::select! {
            _ = reader.read_to_end(&mut answer) => {}
            () = dribble => {}
        }
        String::from_utf8(answer).unwrap()
    };
    let lorises = join_all((0..200).map(|_| loris()));
    let others = async {
        for _ in 0..20 {
            assert_eq!(server.ask("/generate-lite", &json!({ "prompt": "x" })).await.0, 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (answers, ()) =
        timeout(Duration::from_secs(60), futures_util::future::join(lorises, others)).await.unwrap();
    let is_told = |answer: &String| answer.starts_with("HTTP/1.1 408") && answer.contains("head_too_slow");
    assert!(answers.iter().all(|answer| answer.is_empty() || is_told(answer)), "{:?}", answers[0]);
    assert!(answers.iter().any(is_told));
}

#[tokio::test]
async fn malformed_http_is_explained_and_counted() {
    let server = Server::start(ServerOptions::default());
    let address = server.url.strip_prefix("http://").unwrap();
    let head = |lines: &str| format!("POST /generate-lite HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n");
    let many: Vec<_> = (0..120).map(|n| format!("x-{n}: {n}")).collect();
    for (sent, status, code, words) in [
        (head("nocolon"), 400, "malformed_http", "begins with \"nocolon\" has no colon"),
        (
            head("content-length: 5\r\ncontent-length: 5") + "hello",
            400,
            "malformed_http",
            "Content-Length is sent more than once",
        ),
        (
            head("content-length: 5\r\ntransfer-encoding: chunked"),
            400,
            "malformed_http",
            "both Content-Length and Transfer-Encoding",
        ),
        (head(&many.join("\r\n")), 431, "head_too_large", "more than 96 headers"),
        // After a request that is answered, on the same connection.
        (
            format!("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n{}", head("nocolon")),
            400,
            "malformed_http",
            "is not HTTP",
        ),
    ] {
        let answer = String::from_utf8(exchange(address, sent.as_bytes()).await).unwrap();
        let place = answer.rfind("HTTP/1.1 ").unwrap();
        let (head, body) = answer[place..].split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}: {answer}");
        for field in ["x-request-id: ", "connection: close", "content-type: application/json"] {
            assert!(head.contains(&format!("\r\n{field}")), "{head}");
        }
        let error: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&error["error"]["code"], &error["error"]["type"]),
            (&json!(code), &json!("invalid_request_error"))
        );
        assert!(error["error"]["message"].as_str().unwrap().contains(words), "{error}");
    }
    server.has_counted("other", "malformed_http", 4).await;
    server.has_counted("other", "head_too_large", 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let write_timeout = Duration::from_millis(200);
    let server =
        Server::start(ServerOptions { write_timeout, max_connections: 1, ..ServerOptions::default() });
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stuck = TcpStream::connect(address).await.unwrap();
    // Far more than a system keeps for a reader who does not read.
    let asked = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    stuck.write_all(asked.as_bytes()).await.unwrap();
    tokio::time::sleep(5 * write_timeout).await;
    let next = timeout(Duration::from_secs(60), server.get("/openapi.json").send()).await;
    let size = next.expect("there is room for the next").unwrap().bytes().await.unwrap().len();
    let mut received = Vec::new();
    let _ = timeout(Duration::from_secs(60), stuck.read_to_end(&mut received)).await.unwrap();
    assert!(received.len() < 400 * size, "all of it was sent: {} B", received.len());
}

#[tokio::test]
async fn five_thousand_idle_connections_are_cheap_and_block_no_client() {
    const CONNECTIONS: usize = 5_000;
    let program = Program::start(&["--set", "server.max_connections=6000"]).await;
    let address = program.url.strip_prefix("http://").unwrap().to_owned();
    let before = resident_kib(program.pid());
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        sockets.push(socket);
    }
    for socket in &mut sockets {
        let mut first = [0; 12];
        socket.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    let after = resident_kib(program.pid());
    eprintln!("resident {before} KiB before, {after} KiB with {CONNECTIONS} connections");
    assert!(after < before + (200 << 10), "{before} KiB before, {after} KiB after");
    let (status, answer) =
        program.ask("/generate-lite", &json!({ "prompt": "x", "max_new_tokens": 3 })).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_client_that_stops_reading_does_not_block_the_slot() {
    let server = Server::start(ServerOptions::default());
    let address = server.url.strip_prefix("http://").unwrap();
    let body = r#"{"prompt": "x", "stream": true, "ignore_eos": true, "max_new_tokens": 200}"#;
    let mut stuck = TcpStream::connect(address).await.unwrap();
    let json = "content-type: application/json";
    let head = format!(
        "POST /generate-lite HTTP/1.1\r\nhost: x\r\n{json}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stuck.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let is_over = || server.metrics.render().unwrap().contains("eka_job_duration_seconds_count 1\n");
    eventually("the answer that nobody reads", is_over).await;
    assert_eq!(server.ask("/generate-lite", &json!({ "prompt": "x" })).await.0, 200);
}
