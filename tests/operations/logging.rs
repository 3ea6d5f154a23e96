//! The server keeps working when its stderr is not read.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    processes::{send_signal, worker_of},
    program::{cache_setting, eka, root},
    server::eventually,
};

/// `eka serve` with a log that is not read. Dropping it kills it.
struct Unread {
    child: Child,
    stderr: Option<ChildStderr>,
    url: String,
    client: reqwest::Client,
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Unread {
    fn start() -> Self {
        let cache = cache_setting();
        let flags = ["--set", "log.level=trace", "--set", "log.prompts=true"];
        let mut command = eka(&["serve", "--port", "0", "--set", &cache]);
        let directory = tempfile::tempdir().unwrap();
        let ready_file = directory.path().join("ready.json");
        command.arg("--ready-file").arg(&ready_file);
        let mut child = command.args(flags).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let url = read_address(&ready_file);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { child, stderr: Some(stderr), url, client }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn ask(&self, body: &Value) -> u16 {
        let request = self.client.post(format!("{}/generate-lite", self.url)).json(body);
        request.send().await.unwrap().status().as_u16()
    }

    async fn is_ready(&self) {
        while self.get("/readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn dropped(&self) -> u64 {
        let metrics = self.get("/metrics").await.1;
        let line = metrics.lines().find_map(|line| line.strip_prefix("eka_log_lines_dropped_total "));
        line.unwrap().parse().unwrap()
    }

    /// Logs more than the pipe and the queue hold together.
    async fn overflow(&self) {
        let long = json!({ "prompt": vec![20; 50_000], "max_new_tokens": 1 });
        for _ in 0..100 {
            assert_eq!(self.ask(&long).await, 400, "it does not fit the context");
            if self.dropped().await > 0 {
                return;
            }
        }
        panic!("nothing was dropped, so the pipe was never full");
    }

    async fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the program to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }
}

fn read_address(ready_file: &Path) -> String {
    loop {
        if let Ok(text) = fs::read(ready_file) {
            let document: Value = serde_json::from_slice(&text).unwrap();
            return document["url"].as_str().unwrap().into();
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn read_to_end(mut stderr: ChildStderr) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut rest = Vec::new();
        stderr.read_to_end(&mut rest).unwrap();
        String::from_utf8_lossy(&rest).into_owned()
    })
}

#[tokio::test]
async fn a_blocked_stderr_drops_log_lines_and_counts_them() {
    let mut program = Unread::start();
    program.is_ready().await;
    program.overflow().await;
    let short = json!({ "prompt": "Once", "max_new_tokens": 4 });
    assert_eq!(program.ask(&short).await, 200);
    // The words of a worker are passed on to the same pipe.
    send_signal("SEGV", worker_of(program.child.id()).unwrap());
    assert_eq!(program.ask(&short).await, 200);
    assert_eq!(program.get("/livez").await.0, 200);

    let log = read_to_end(program.stderr.take().unwrap());
    assert_eq!(program.ask(&short).await, 200);
    send_signal("TERM", program.child.id());
    assert_eq!(program.ended().await, Some(0));
    let log = log.join().unwrap();
    let notices = log.matches("event=\"log_lines_dropped\"").count();
    assert_eq!(notices, 1, "{} bytes of log", log.len());
    assert!(log.contains("event=\"shutdown_started\""), "the last lines are there");
}

#[tokio::test]
async fn a_server_with_a_blocked_stderr_exits_on_sigterm() {
    let mut program = Unread::start();
    program.is_ready().await;
    program.overflow().await;
    send_signal("TERM", program.child.id());
    assert_eq!(program.ended().await, Some(0));
}

#[test]
fn every_log_event_is_documented() {
    let docs = fs::read_to_string(root().join("docs/log-events.md")).unwrap();
    let documented: BTreeSet<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|row| row.0)
        .collect();
    let mut logged = BTreeSet::new();
    for file in rust_files(&root().join("src")) {
        let source = fs::read_to_string(file).unwrap();
        for (_, rest) in
            source.match_indices("event = \"").map(|(at, found)| (at, &source[at + found.len()..]))
        {
            logged.insert(rest.split_once('"').unwrap().0.to_owned());
        }
    }
    assert_eq!(documented, logged.iter().map(String::as_str).collect());
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] }).collect()
}
