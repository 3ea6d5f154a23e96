//! Workers that die or hang at any moment are replaced, and answers continue.

use std::{fs, os::unix::fs::PermissionsExt};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{
    faulty_worker::{hanging, signal_when_hung, stream_and},
    files::copy,
    processes::{resident_kib, send_signal, worker_of},
    program::{Program, argument, cache_setting, expected, run, text},
    server::{events, eventually},
};

/// Fills the demo's context: long enough to be interrupted.
fn long() -> Value {
    json!({ "prompt": "Once", "ignore_eos": true, "max_new_tokens": 500, "stream": true })
}

#[tokio::test]
async fn a_worker_killed_between_requests_is_replaced() {
    let program = Program::start(&[]).await;
    let first = &expected()[0];
    let request = json!({ "messages": [{ "role": "user", "content": first.prompt }] });
    let killed = program.worker_pid();
    send_signal("KILL", killed);
    for _ in 0..3 {
        let (status, answer) = program.ask("/generate-lite", &request).await;
        assert_eq!((status, &answer["text"]), (200, &json!(first.text)), "{}", program.log());
    }
    assert_ne!(program.worker_pid(), killed);
}

/// A worker of another version might have another protocol.
#[tokio::test]
async fn a_worker_is_replaced_by_one_of_the_same_version_after_an_upgrade_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eka");
    let program = Program::start_as(&file).await;
    fs::remove_file(&file).unwrap();
    fs::write(&file, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    send_signal("KILL", program.worker_pid());
    let (status, answer) =
        program.ask("/generate-lite", &json!({ "prompt": "Once", "max_new_tokens": 2 })).await;
    assert_eq!(status, 200, "{answer}\n{}", program.log());
}

fn spoken(documents: &[Value]) -> String {
    documents.iter().filter_map(|document| document["text"].as_str()).collect()
}

#[tokio::test]
async fn a_worker_killed_during_an_answer_is_replaced_and_the_answer_continues() {
    let plan = hanging([(2, 1), (3, 3), (4, 8), (6, 1), (7, 3), (8, 8)]);
    let program = Program::start(&["--faults", &plan]).await;
    for sampling in [
        json!({}),
        json!({ "temperature": 1.2, "seed": 7, "top_k": 50, "repetition_penalty": 1.1, "typical_p": 0.9, "dry_multiplier": 0.8 }),
    ] {
        let mut request = long();
        request.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
        request["stream"] = json!(false);
        request["max_new_tokens"] = json!(150);
        let (_, undisturbed) = program.ask("/generate-lite", &request).await;
        assert_eq!(undisturbed["timings"]["resumed"], 0);
        for _ in 0..3 {
            let (documents, is_done) = stream_and(&program, &request, "KILL", 1).await;
            let (last, pieces) = documents.split_last().unwrap();
            assert!(is_done, "{last}");
            assert_eq!(last["text"], undisturbed["text"]);
            assert_eq!(json!(spoken(pieces)), undisturbed["text"]);
            assert_eq!(last["usage"]["total_tokens"], undisturbed["usage"]["total_tokens"]);
            assert_eq!(last["timings"]["resumed"], 1);
        }
    }
}

#[tokio::test]
async fn an_answer_of_two_workers_has_the_log_probabilities_of_one() {
    let plan = hanging([(2, 1), (3, 3), (4, 12)]);
    let program = Program::start(&["--faults", &plan]).await;
    let request = json!({
        "model": "demo", "prompt": "Once upon a time", "max_tokens": 40, "logprobs": 2, "echo": true,
        "temperature": 0.8, "seed": 5, "ignore_eos": true,
    });
    let (status, undisturbed) = program.ask("/v1/completions", &request).await;
    assert_eq!(status, 200, "{undisturbed}");
    assert!(undisturbed["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().len() > 40);
    for _ in 0..3 {
        let answer = program.ask("/v1/completions", &request);
        let ((status, answer), ()) = tokio::join!(answer, signal_when_hung(&program, "KILL", 1));
        assert_eq!(status, 200, "{answer}");
        // Printed so that a number of other bits has other digits.
        assert_eq!(answer["choices"], undisturbed["choices"]);
    }
}

/// A worker that is stopped hangs, as one does whose device never answers.
#[tokio::test]
async fn a_worker_that_hangs_before_or_during_an_answer_is_replaced() {
    // Short enough for a test, long enough for a busy machine.
    let settings =
        ["watchdog.decode_floor_ms=2000", "watchdog.prefill_base_ms=2000", "watchdog.idle_ms=2000"];
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let plan = hanging([(3, 8)]);
    let program = Program::start(&[&settings[..], &["--faults", &plan]].concat()).await;
    let mut request = long();
    request["stream"] = json!(false);
    request["max_new_tokens"] = json!(100);
    let (_, undisturbed) = program.ask("/generate-lite", &request).await;
    assert_eq!(undisturbed["timings"]["resumed"], 0);

    let hung = program.worker_pid();
    send_signal("STOP", hung);
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["text"]), (200, &undisturbed["text"]), "{}", program.log());
    assert_eq!(answer["timings"]["resumed"], 1);
    assert_ne!(program.worker_pid(), hung);

    let (documents, is_done) = stream_and(&program, &request, "STOP", 1).await;
    let (last, pieces) = documents.split_last().unwrap();
    assert!(is_done, "{last}");
    assert_eq!(json!(spoken(pieces)), undisturbed["text"]);
    assert_eq!(last["timings"]["resumed"], 1);
    program.has_logged("worker_lost").await;
    let lost = program.logged("worker_lost");
    assert!(lost.iter().all(|line| line.contains("kind=\"hung\"")), "{lost:?}");
}

#[tokio::test]
async fn an_idle_worker_that_hangs_is_replaced() {
    let program = Program::start(&["--set", "watchdog.idle_ms=2000"]).await;
    let hung = program.worker_pid();
    send_signal("STOP", hung);
    let is_another = || worker_of(program.pid()).is_some_and(|worker| worker != hung);
    eventually("another worker", is_another).await;
    eventually("it to be ready", || program.logged("worker_ready").len() >= 2).await;
    assert!(program.logged("worker_lost")[0].contains("kind=\"hung\""), "{}", program.log());
    let first = &expected()[0];
    let request = json!({ "messages": [{ "role": "user", "content": first.prompt }] });
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["text"]), (200, &json!(first.text)), "{}", program.log());
    assert_eq!(answer["timings"]["resumed"], 0, "no job was lost");
}

#[tokio::test]
async fn a_worker_that_stops_right_before_a_request_is_replaced_before_the_budget_of_a_prompt() {
    let program = Program::start(&["--set", "watchdog.idle_ms=2000"]).await;
    let first = &expected()[0];
    let request = json!({ "messages": [{ "role": "user", "content": first.prompt }] });
    send_signal("STOP", program.worker_pid());
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["text"]), (200, &json!(first.text)), "{}", program.log());
    program.has_logged("worker_lost").await;
    let lost = &program.logged("worker_lost")[0];
    // Found by a ping or by the job, whichever was first; the budget of a prompt is 30 s and more.
    assert!(lost.contains("kind=\"hung\"") && !lost.contains("while the worker read"), "{lost}");
}

#[tokio::test]
async fn a_stopped_worker_ends_with_its_parent() {
    let mut program = Program::start(&[]).await;
    let worker = program.worker_pid();
    send_signal("STOP", worker);
    program.end_with("KILL").await;
    eventually("the worker to be gone", || is_gone(worker)).await;
}

/// Whether a process has ended; a zombie counts.
fn is_gone(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

#[tokio::test]
async fn a_running_job_gets_a_503_if_the_weights_vanish() {
    let folder = tempfile::tempdir().unwrap();
    let (there, gone) = (folder.path().join("demo"), folder.path().join("elsewhere"));
    copy(&Program::start(&[]).await.export(), &there);
    let program = Program::start(&["--model", argument(&there), "--faults", &hanging([(1, 5)])]).await;
    let mut request = long();
    request["stream"] = json!(false);
    let in_flight = tokio::spawn(program.post("/generate-lite", &request).send());
    eventually("the job to run", || program.log().contains("injected fault: hang@")).await;
    std::fs::rename(&there, &gone).unwrap();
    send_signal("KILL", program.worker_pid());

    let in_flight = in_flight.await.unwrap().unwrap();
    let (status, new) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &new["error"]["code"]), (503, &json!("worker_down")), "{new}");
    assert_eq!(in_flight.status(), 503);
    assert!(in_flight.headers().contains_key("retry-after"));
    assert_eq!(in_flight.json::<Value>().await.unwrap()["error"], new["error"]);

    let (status, trim) = program.ask("/admin/trim", &json!({})).await;
    assert_eq!((status, &trim["error"]), (503, &new["error"]), "orders are answered as well");

    std::fs::rename(&gone, &there).unwrap();
    request["max_new_tokens"] = json!(4);
    eventually("the next worker", || program.logged("worker_ready").len() >= 2).await;
    assert_eq!(program.ask("/generate-lite", &request).await.0, 200);
}

#[test]
fn a_worker_that_does_not_load_in_time_fails_the_start_with_exit_code_3() {
    let cache = cache_setting();
    let refused = run(&["serve", "--port", "0", "--set", &cache, "--set", "watchdog.load_ms=1"]);
    assert_eq!(refused.status.code(), Some(3));
    let message = text(&refused.stderr);
    assert!(message.contains("no answer for 0.0 s while the worker started"), "{message}");
}

#[tokio::test]
async fn a_job_that_loses_two_workers_fails_and_the_queue_continues() {
    let program = Program::start(&["--faults", "hang@decode:5,job=1,always"]).await;
    let request = long();
    let waiting = async {
        eventually("the first to run", || program.log().contains("injected fault: hang@")).await;
        let short = json!({ "prompt": "Once", "max_new_tokens": 4 });
        program.post("/generate-lite", &short).send().await.unwrap().status()
    };
    let ((documents, is_done), status) = tokio::join!(stream_and(&program, &request, "KILL", 2), waiting);
    assert!(!is_done, "a broken answer does not claim to be whole");
    assert_eq!(documents.last().unwrap()["error"]["code"], "worker_lost");
    assert_eq!(status, 200);
}

/// The system rejects the worker any more memory than it has.
#[tokio::test]
async fn out_of_host_memory_fails_only_its_request() {
    let program = Program::start(&[]).await;
    let short = json!({ "prompt": "Once", "max_new_tokens": 2 });
    let long = json!({ "prompt": vec![20; 480], "max_new_tokens": 2 });
    assert_eq!(program.ask("/generate-lite", &short).await.0, 200);
    let worker = program.worker_pid();
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().trim_end_matches("kB").trim().parse().unwrap();
    limit_memory(worker, &((kib + 512) << 10).to_string());
    for _ in 0..2 {
        let (status, answer) = program.ask("/generate-lite", &long).await;
        assert_eq!((status, &answer["error"]["code"]), (413, &json!("out_of_memory")), "{answer}");
        assert_eq!(program.ask("/generate-lite", &short).await.0, 200);
    }
    limit_memory(worker, "unlimited");
    assert_eq!(program.ask("/generate-lite", &long).await.0, 200);
    assert_eq!(program.worker_pid(), worker, "it is the same worker throughout");
}

fn limit_memory(pid: u32, bytes: &str) {
    let arguments = ["--pid".into(), pid.to_string(), format!("--as={bytes}:unlimited")];
    assert!(std::process::Command::new("prlimit").args(arguments).status().unwrap().success());
}

#[tokio::test]
async fn three_hundred_requests_do_not_grow_memory() {
    let program = Program::start(&[]).await;
    let prompts = expected();
    let worker = program.worker_pid();
    let mut early = None;
    for (i, e) in (1..=300).zip(prompts.iter().cycle()) {
        let request = json!({ "messages": [{ "role": "user", "content": e.prompt }] });
        let (status, answer) = program.ask("/generate-lite", &request).await;
        assert_eq!((status, &answer["text"]), (200, &json!(e.text)), "request {i}");
        if i == 30 {
            early = Some([resident_kib(program.pid()), resident_kib(worker)]);
        }
    }
    let late = [resident_kib(program.pid()), resident_kib(worker)];
    for (before, after) in early.unwrap().into_iter().zip(late) {
        println!("resident after request 30: {before} KiB, after request 300: {after} KiB");
        assert!(after * 100 <= before * 102, "{before} KiB grew to {after} KiB");
    }
    assert_eq!(program.worker_pid(), worker, "it is the same worker throughout");
}

#[tokio::test]
async fn a_hundred_clients_get_an_answer_or_retry_after_from_a_queue_of_eight() {
    let program = Program::start(&["--queue", "8"]).await;
    let clients = (0..100).map(|_| async {
        let request = json!({ "prompt": "Once", "ignore_eos": true, "max_new_tokens": 20 });
        let response = program.post("/generate-lite", &request).send().await.unwrap();
        match response.status().as_u16() {
            200 => true,
            429 => {
                let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
                assert!(seconds >= 1);
                false
            }
            other => panic!("{other}: {}", response.text().await.unwrap()),
        }
    });
    let answered = futures_util::future::join_all(clients).await;
    let served = answered.iter().filter(|served| **served).count();
    assert!((9..100).contains(&served), "{served} of 100 were served");
}

#[tokio::test]
async fn twenty_queued_clients_that_disconnect_do_not_affect_the_stream() {
    let program = Program::start(&[]).await;
    let mut undisturbed = long();
    undisturbed["stream"] = json!(false);
    let (_, alone) = program.ask("/generate-lite", &undisturbed).await;
    let mut stream = program.post("/generate-lite", &long()).send().await.unwrap().bytes_stream();
    let mut received = stream.next().await.unwrap().unwrap().to_vec();
    let queued: Vec<_> =
        (0..20).map(|_| tokio::spawn(program.post("/generate-lite", &long()).send())).collect();
    let mut left = false;
    while let Some(piece) = stream.next().await {
        received.extend(piece.unwrap());
        if !left && received.len() > 2_000 {
            queued.iter().for_each(tokio::task::JoinHandle::abort);
            left = true;
        }
    }
    let (documents, is_done) = events(&text(&received));
    assert!(left && is_done);
    assert_eq!(documents.last().unwrap()["text"], alone["text"]);
    program.metrics_with("eka_slot_busy 0\n").await;
}

#[tokio::test]
async fn a_client_that_disconnects_frees_the_slot_for_the_next() {
    let program = Program::start(&[]).await;
    let mut stream = program.post("/generate-lite", &long()).send().await.unwrap().bytes_stream();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    program.metrics_with("eka_slot_busy 0\n").await;
    let metrics = program.metrics().await;
    let generated =
        metrics.lines().find_map(|line| line.strip_prefix("eka_generated_tokens_total ")).unwrap();
    assert!(generated.parse::<u64>().unwrap() < 500, "it was generated to its end");
}

#[tokio::test]
async fn sigterm_finishes_the_running_answer_and_exits_with_0() {
    for signal in ["TERM", "INT"] {
        let mut program = Program::start(&[]).await;
        let worker = program.worker_pid();
        let mut stream = program.post("/generate-lite", &long()).send().await.unwrap().bytes_stream();
        let mut received = stream.next().await.unwrap().unwrap().to_vec();
        let reading = tokio::spawn(async move {
            while let Some(piece) = stream.next().await {
                received.extend(piece.unwrap());
            }
            received
        });
        let status = program.end_with(signal).await;
        assert_eq!(status.code(), Some(0), "{}", program.log());
        let (documents, is_done) = events(&text(&reading.await.unwrap()));
        assert!(is_done && documents.last().unwrap()["usage"]["completion_tokens"] == 500);
        eventually("the worker to be gone", || !std::fs::exists(format!("/proc/{worker}")).unwrap()).await;
    }
}

#[tokio::test]
async fn a_worker_exits_when_its_parent_is_killed() {
    let mut program = Program::start(&[]).await;
    let worker = program.worker_pid();
    program.end_with("KILL").await;
    eventually("the worker to be gone", || !std::fs::exists(format!("/proc/{worker}")).unwrap()).await;
    assert_eq!(worker_of(program.pid()), None);
}
