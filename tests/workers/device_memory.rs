//! Device memory in the real program; `device.host_pool` uses host memory on the same code path.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{processes::worker_of, program::Program, server::eventually};

async fn with(settings: &[&str]) -> Program {
    let mut flags = vec!["--device", "cpu", "--set", "device.host_pool=true"];
    flags.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    Program::start(&flags).await
}

/// Requests an answer to a prompt of at least this many tokens.
async fn ask(program: &Program, words: usize, answer: usize) -> (u16, Value) {
    let prompt = "Once upon a time ".repeat(words);
    let request = json!({ "prompt": prompt, "ignore_eos": true, "max_new_tokens": answer });
    program.ask("/generate-lite", &request).await
}

async fn answered(program: &Program, words: usize, answer: usize) -> Value {
    let (status, body) = ask(program, words, answer).await;
    assert_eq!(status, 200, "{body}\n{}", program.log());
    body["memory"].clone()
}

fn bytes(figure: &Value) -> u64 {
    figure.as_u64().unwrap_or_else(|| panic!("{figure} is no figure"))
}

/// A figure of the worker's memory as it is scraped.
async fn scraped(program: &Program, kind: &str) -> Option<u64> {
    let metrics = program.metrics().await;
    let line = format!("eka_memory_bytes{{process=\"worker\",kind=\"{kind}\"}} ");
    Some(metrics.split_once(&line)?.1.lines().next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn without_a_pool_no_device_memory_is_reported() {
    let program = Program::start(&["--device", "cpu"]).await;
    let memory = answered(&program, 1, 2).await;
    assert_eq!([&memory["before"]["device"], &memory["peak"]["device"]], [&Value::Null; 2]);
    assert_eq!(memory["after"]["device"], Value::Null);
    assert_eq!(scraped(&program, "device_used").await, None);
}

#[tokio::test]
async fn hundreds_of_requests_keep_only_weights_and_kv_keep_bytes() {
    const KEEP: u64 = 3 << 20;
    let program = with(&[&format!("device.trim=always,keep={KEEP}")]).await;
    let weights = bytes(&answered(&program, 1, 1).await["before"]["device"]["used"]);
    assert!(weights > 0);
    let mut peaks = Vec::new();
    for n in 0..200 {
        let memory = answered(&program, 1 + n * 7 % 40, 1 + n % 5).await;
        let [before, peak, after] = ["before", "peak", "after"].map(|when| &memory[when]["device"]);
        assert_eq!((bytes(&before["used"]), bytes(&after["used"])), (weights, weights), "{n}: {memory}");
        assert!(bytes(&before["reserved"]) <= KEEP.max(weights), "{n}: {memory}");
        assert!(bytes(&peak["used"]) > weights, "{n}: {memory}");
        assert!(bytes(&peak["reserved"]) >= bytes(&after["reserved"]), "{n}: {memory}");
        assert_eq!(before["free"], Value::Null, "the host is not asked");
        peaks.push(bytes(&peak["used"]));
    }
    // Some request did take more than may stay.
    assert!(peaks.iter().max().unwrap() > &KEEP.max(weights), "{peaks:?}");
    assert_eq!(scraped(&program, "device_used").await, Some(weights));
    assert_eq!(scraped(&program, "device_peak_used").await, peaks.last().copied());
    // The trim comes after the answer.
    let mut reserved = u64::MAX;
    for _ in 0..100 {
        reserved = scraped(&program, "device_reserved").await.unwrap();
        if reserved <= KEEP.max(weights) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reserved <= KEEP.max(weights), "{reserved}");
}

#[tokio::test]
async fn kept_memory_follows_the_trim_policy() {
    let never = with(&["device.trim=never"]).await;
    let memory = answered(&never, 40, 2).await;
    let [after, weights] = [&memory["after"]["device"]["reserved"], &memory["after"]["device"]["used"]];
    assert!(bytes(after) > bytes(weights), "{memory}");
    let memory = answered(&never, 1, 1).await;
    assert_eq!(&memory["before"]["device"]["reserved"], after);

    let idle = with(&["device.trim=idle=300"]).await;
    let memory = answered(&idle, 40, 2).await;
    let [after, weights] = ["reserved", "used"].map(|figure| bytes(&memory["after"]["device"][figure]));
    assert!(after > weights);
    let mut reserved = after;
    for _ in 0..500 {
        reserved = scraped(&idle, "device_reserved").await.unwrap();
        if reserved == weights {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reserved, weights);
}

#[tokio::test]
async fn kv_keep_bytes_keeps_the_cache_until_a_trim() {
    let program = with(&["device.kv_keep_bytes=1073741824"]).await;
    let memory = answered(&program, 10, 2).await;
    let [weights, kept] = ["before", "after"].map(|when| bytes(&memory[when]["device"]["used"]));
    assert!(kept > weights, "{memory}");
    let memory = answered(&program, 1, 2).await;
    let [before, after] = ["before", "after"].map(|when| bytes(&memory[when]["device"]["used"]));
    assert_eq!((before, after), (kept, kept), "{memory}");
    assert_eq!(program.ask("/admin/trim", &json!({})).await.0, 200);
    assert_eq!(scraped(&program, "device_used").await, Some(weights));
}

#[tokio::test]
async fn out_of_memory_fails_only_its_request_with_the_fix() {
    let free = with(&[]).await;
    let small = bytes(&answered(&free, 1, 2).await["peak"]["device"]["used"]);
    let large = bytes(&answered(&free, 40, 2).await["peak"]["device"]["used"]);
    assert!(small < large);
    drop(free);

    let limit = u64::midpoint(small, large).max(1 << 20);
    let program = with(&[&format!("device.memory_limit_bytes={limit}")]).await;
    let worker = worker_of(program.pid());
    for _ in 0..3 {
        let (status, body) = ask(&program, 40, 2).await;
        assert_eq!((status, &body["error"]["code"]), (413, &json!("out_of_memory")), "{body}");
        let reason = body["error"]["message"].as_str().unwrap();
        assert!(reason.contains("shorten the prompt"), "{reason}");
        for word in ["no room for ", "device.memory_limit_bytes", "shorter prompt", "engine.context_length"] {
            eventually(word, || program.log().contains(word)).await;
        }
        answered(&program, 1, 2).await;
    }
    assert_eq!(worker_of(program.pid()), worker, "{}", program.log());
}

#[tokio::test]
async fn device_out_of_memory_fails_the_request_and_a_lost_device_restarts_the_worker() {
    let program = Program::start(&["--faults", "starve@decode:1,job=1;poison@decode:1,job=2"]).await;
    let worker = worker_of(program.pid());
    let (status, body) = ask(&program, 1, 3).await;
    assert_eq!(status, 413, "{body}");
    eventually("the way out in the log", || program.log().contains("use a shorter prompt")).await;
    assert_eq!(worker_of(program.pid()), worker);
    answered(&program, 1, 3).await;
    eventually("another worker", || worker_of(program.pid()).is_some_and(|pid| Some(pid) != worker)).await;
    eventually("a lost device", || {
        program.logged("worker_lost").iter().any(|line| line.contains("kind=\"poisoned\""))
    })
    .await;
}
