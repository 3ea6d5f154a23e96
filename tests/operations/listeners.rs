//! Further addresses of a server, and further names of its models.

use std::{fs, path::Path, process::Command};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::support::{
    http2,
    program::{Program, run, text},
    server::eventually,
};

/// The answer of a server on a Unix socket.
async fn get(socket: &Path, path: &str) -> String {
    let mut connection = UnixStream::connect(socket).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_unix_socket_and_a_second_port_answer_like_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("eka.sock");
    let listen = format!("unix:{},127.0.0.1:0", socket.display());
    let program = Program::start(&["--listen", &listen]).await;
    for path in ["/readyz", "/admin/cache"] {
        assert!(get(&socket, path).await.starts_with("HTTP/1.1 200 OK"), "its clients are local: {path}");
    }
    // HTTP/2 as well, and its clients are local too.
    let mut over_http2 = http2::client(UnixStream::connect(&socket).await.unwrap()).await;
    let asked = hyper::Request::get("http://localhost/admin/cache").body(String::new()).unwrap();
    assert_eq!(over_http2.send_request(asked).await.unwrap().status(), 200);
    let lines = program.logged("listening_also");
    let second = lines.iter().find_map(|line| line.split_once("listening on 127.0.0.1:")).unwrap().1;
    let port: u16 = second.split(' ').next().unwrap().parse().unwrap();
    let answer = program.client.get(format!("http://127.0.0.1:{port}/v1/models")).send().await.unwrap();
    assert_eq!(answer.status(), 200);

    let other = run(&["serve", "--port", "0", "--listen", &format!("unix:{}", socket.display())]);
    assert!(
        !other.status.success() && text(&other.stderr).contains("another server listens on it"),
        "{}",
        text(&other.stderr)
    );
    // A server that was killed leaves its file behind, which the next one replaces and removes when it ends.
    drop(program);
    assert!(socket.exists());
    let next = Program::start(&["--listen", &format!("unix:{}", socket.display())]).await;
    assert!(get(&socket, "/livez").await.starts_with("HTTP/1.1 200 OK"));
    assert!(Command::new("kill").arg(next.pid().to_string()).status().unwrap().success());
    eventually("the end of the socket", || !socket.exists()).await;
}

#[test]
fn an_address_that_is_not_one_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "kept").unwrap();
    for (listen, words) in [
        ("localhost".to_owned(), "server.listen"),
        ("unix:".to_owned(), "server.listen"),
        (format!("unix:{}", file.display()), "correct server.listen"),
    ] {
        let refused = run(&["serve", "--port", "0", "--listen", &listen]);
        assert!(
            !refused.status.success() && text(&refused.stderr).contains(words),
            "{}",
            text(&refused.stderr)
        );
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "kept");
}

#[tokio::test]
async fn a_model_answers_to_its_aliases() {
    let program = Program::start(&["--set", "models.aliases=gpt-4o=demo, small=demo"]).await;
    for name in ["gpt-4o", "small", "small:latest", "demo"] {
        let body = json!({ "model": name, "prompt": "a", "max_tokens": 2 });
        let (status, answer) = program.ask("/v1/completions", &body).await;
        assert_eq!((status, &answer["model"]), (200, &json!("demo")), "{answer}");
        assert_eq!(program.get(&format!("/v1/models/{name}")).await.status(), 200, "{name}");
    }
    let refused = run(&["serve", "--port", "0", "--set", "models.aliases=gpt-4o=other"]);
    assert!(
        text(&refused.stderr).contains("gpt-4o stands for \"other\", which is not served"),
        "{}",
        text(&refused.stderr)
    );
}
