//! Several devices, each with a worker; the tests use the CPU twice.

use std::{fs, path::Path, sync::Arc, time::Duration};

use eka::{
    device::{
        affinity::core_ids,
        cuda::{NoCuda, probe},
    },
    job::{GroupedJob, Job, JobId, Readiness},
    metrics::Metrics,
    supervise::{WorkerConfig, WorkerPool},
};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    files::copy,
    models::base_only_model,
    processes::{send_signal, workers_of},
    program::{Program, argument, expected, run, text},
    server::{events, eventually},
    worker::recycling,
};

const BOTH: [&str; 2] = ["--device", "cpu,cpu"];

/// The program with two workers that are both up.
async fn start(flags: &[&str]) -> Program {
    let program = Program::start(&[&BOTH, flags].concat()).await;
    states_are(&program, |states| states == ["ready", "ready"]).await;
    program
}

/// Waits until the devices are as they should; the server is ready all the while.
async fn states_are(program: &Program, wanted: impl Fn(&[&str]) -> bool) {
    for _ in 0..1_000 {
        let response = program.get("/readyz").await;
        assert_eq!(response.status(), 200, "{}", program.log());
        let ready: Value = response.json().await.unwrap();
        let states: Vec<_> =
            ["cpu:0", "cpu:1"].iter().filter_map(|name| ready["devices"][name].as_str()).collect();
        if wanted(&states) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", program.log());
}

/// A request to the demonstration model and its expected text.
fn chapter(stream: bool) -> (Value, Value) {
    let first = &expected()[0];
    let request = json!({ "messages": [{ "role": "user", "content": first.prompt }], "stream": stream });
    (request, json!(first.text))
}

/// An answer that is on its way.
struct Answer {
    bytes: std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    received: Vec<u8>,
}

impl Answer {
    async fn ask(program: &Program, request: &Value) -> Self {
        let response = program.post("/generate-lite", request).send().await.unwrap();
        assert_eq!(response.status(), 200);
        Self { bytes: Box::pin(response.bytes_stream()), received: Vec::new() }
    }

    /// Waits for the first tokens.
    async fn begins(&mut self) {
        while !text(&self.received).contains("data: ") {
            self.received.extend(self.bytes.next().await.expect("it has not ended").unwrap());
        }
        assert!(!self.is_over(), "{}", text(&self.received));
    }

    fn is_over(&self) -> bool {
        text(&self.received).contains("finish_reason")
    }

    /// The last event of a complete answer.
    async fn ends(mut self) -> Value {
        while let Some(piece) = self.bytes.next().await {
            self.received.extend(piece.unwrap());
        }
        let (documents, is_done) = events(&text(&self.received));
        let (last, pieces) = documents.split_last().unwrap();
        assert!(is_done, "{last}");
        let spoken: String = pieces.iter().filter_map(|piece| piece["text"].as_str()).collect();
        assert_eq!(last["text"], spoken);
        last.clone()
    }
}

#[tokio::test]
async fn two_devices_answer_in_parallel_and_survive_crashes() {
    // Neither can end before its worker does.
    let program = start(&["--faults", "hang@decode:5,job=1;hang@decode:5,job=2"]).await;
    let (request, right) = chapter(true);
    let mut first = Answer::ask(&program, &request).await;
    first.begins().await;
    let mut second = Answer::ask(&program, &request).await;
    second.begins().await;
    assert!(!first.is_over());
    program.metrics_with("eka_slot_busy 2\n").await;
    let third = tokio::spawn(program.post("/generate-lite", &chapter(false).0).send());
    program.metrics_with("eka_queue_jobs 1\n").await;

    let workers = workers_of(program.pid());
    assert_eq!(workers.len(), 2);
    // The answer that lost its worker continues, and so does the queue; the other still hangs.
    send_signal("KILL", workers[0]);
    let third: Value = third.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(third["text"], right, "{}", program.log());
    program.metrics_with("eka_slot_busy 1\n").await;
    send_signal("KILL", workers[1]);
    for answer in [first, second] {
        let last = answer.ends().await;
        assert_eq!((&last["text"], &last["timings"]["resumed"]), (&right, &json!(1)), "{}", program.log());
    }
}

#[tokio::test]
async fn an_answer_moves_to_the_other_device_without_a_worker() {
    let folder = tempfile::tempdir().unwrap();
    let (there, gone) = (folder.path().join("demo"), folder.path().join("elsewhere"));
    copy(&Program::start(&[]).await.export(), &there);
    let program = start(&["--model", argument(&there), "--faults", "hang@decode:5,job=1"]).await;
    let (request, right) = chapter(true);
    let mut answer = Answer::ask(&program, &request).await;
    answer.begins().await;

    // Which of them has the job is not to be seen from outside.
    for worker in workers_of(program.pid()) {
        std::fs::rename(&there, &gone).unwrap();
        send_signal("KILL", worker);
        states_are(&program, |states| states.contains(&"ready") && states != ["ready", "ready"]).await;
        program.metrics_with("eka_worker_exits_total{reason=\"load_failed\",device=").await;
        let (whole, text) = chapter(false);
        if !program.metrics().await.contains("eka_slot_busy 1\n") {
            let (status, other) = program.ask("/generate-lite", &whole).await;
            assert_eq!((status, &other["text"]), (200, &text), "the other device answers");
        }
        std::fs::rename(&gone, &there).unwrap();
        states_are(&program, |states| states == ["ready", "ready"]).await;
    }
    let last = answer.ends().await;
    assert_eq!((&last["text"], &last["timings"]["resumed"]), (&right, &json!(1)), "{}", program.log());
    program.has_logged("job_moved").await;
}

#[tokio::test]
async fn a_drain_waits_for_all_devices() {
    let mut program = start(&[]).await;
    let (request, right) = chapter(true);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(Answer::ask(&program, &request).await);
    }
    let workers = workers_of(program.pid());
    let (status, draining) = program.ask("/admin/drain", &json!({})).await;
    assert_eq!((status, &draining["draining"]), (202, &json!(true)));
    for answer in answers {
        assert_eq!(answer.ends().await["text"], right);
    }
    assert!(program.end().await.success(), "{}", program.log());
    assert!(workers.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

#[tokio::test]
async fn requests_go_to_the_device_that_has_their_model() {
    let models = base_only_model();
    let one_at_a_time = ["--models", argument(models.path()), "--set", "models.memory_bytes=1"];
    let program = start(&one_at_a_time).await;
    for _ in 0..4 {
        for model in ["base-only", "demo"] {
            let request = json!({ "model": model, "prompt": "Once", "max_new_tokens": 12 });
            let (status, answer) = program.ask("/generate-lite", &request).await;
            assert_eq!((status, &answer["model"]), (200, &json!(model)), "{}", program.log());
        }
    }
    program.has_logged("model_loading").await;
    assert_eq!(program.logged("model_loading").len(), 1, "{}", program.log());

    let list: Value = program.get("/v1/models").await.json().await.unwrap();
    let mut loaded = Vec::new();
    for model in list["data"].as_array().unwrap() {
        assert!(!model["eka"]["loaded"].is_null(), "on one of the devices it is: {model}");
        for device in model["eka"]["devices"].as_array().unwrap() {
            assert_eq!(device["worker"]["device"], "the CPU");
            if !device["loaded"].is_null() {
                loaded.push([device["device"].clone(), model["id"].clone()]);
            }
        }
    }
    assert_eq!(loaded, [["cpu:1", "demo"], ["cpu:0", "base-only"]]);
}

#[tokio::test]
async fn admin_commands_run_on_every_device_and_metrics_have_labels() {
    let program = start(&[]).await;
    for (path, loaded) in [
        ("/admin/trim", json!(["demo"])),
        ("/admin/models/demo/unload", json!([])),
        ("/admin/models/demo/load", json!(["demo"])),
    ] {
        let (status, done) = program.ask(path, &json!({})).await;
        let states: Vec<_> =
            done["devices"].as_array().unwrap().iter().map(|one| [&one["device"], &one["loaded"]]).collect();
        assert_eq!(
            (status, states),
            (200, vec![[&json!("cpu:0"), &loaded], [&json!("cpu:1"), &loaded]]),
            "{done}"
        );
    }
    let figures = program.metrics().await;
    for line in [
        "eka_worker_ready{device=\"cpu:0\"} 1",
        "eka_worker_ready{device=\"cpu:1\"} 1",
        "eka_memory_bytes{process=\"worker\",kind=\"resident\",device=\"cpu:1\"} ",
        "eka_memory_bytes{process=\"parent\",kind=\"resident\"} ",
        "eka_graph_nodes{provider=\"CPUExecutionProvider\",device=\"cpu:0\"} ",
    ] {
        assert!(figures.contains(line), "{line} is missing from\n{figures}");
    }
}

#[tokio::test]
async fn a_missing_device_does_not_stop_the_others() {
    if probe() != Err(NoCuda::NoDriver) {
        return;
    }
    let program = Program::start(&["--device", "cuda,cpu"]).await;
    let (request, right) = chapter(false);
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["text"]), (200, &right), "{}", program.log());
    let ready: Value = program.get("/readyz").await.json().await.unwrap();
    assert_eq!(ready["devices"], json!({ "cuda:0": "down", "cpu": "ready" }));
    eventually("the log to say so", || {
        program
            .log()
            .lines()
            .any(|line| line.contains("worker{device=cuda:0}") && line.contains("no NVIDIA driver"))
    })
    .await;
}

#[test]
fn an_invalid_device_list_is_rejected_at_start() {
    for (list, message) in
        [("auto,cpu", "auto cannot be combined"), ("cuda:1,cuda:1", "cuda:1 is given twice")]
    {
        let refused = run(&["serve", "--device", list]);
        let error = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && error.contains(message), "{error}");
    }
}

/// Both are due after their first job, and neither has room for a successor beside it.
#[tokio::test]
async fn workers_are_recycled_one_after_the_other() {
    let export = Program::start(&[]).await.export();
    let command = |label: &str| WorkerConfig { label: Some(label.into()), ..recycling(export.clone()) };
    let metrics = Arc::new(Metrics::for_devices(&["a".into(), "b".into()]));
    let (mut workers, supervision) = WorkerPool::new(vec![command("a"), command("b")], &metrics);
    let supervised = tokio::spawn(supervision);
    let ready = |workers: &WorkerPool| {
        workers.devices().filter(|(_, state)| matches!(*state.borrow(), Readiness::Ready(_))).count()
    };
    while ready(&workers) < 2 {
        workers.changed().await;
    }
    for (slot, id) in (0..workers.size()).zip(1..) {
        let job = Job { model: "demo".into(), ..Job::new(JobId(id), vec![1, 2, 3], 4) };
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        let jobs = vec![GroupedJob { job, cancel: CancellationToken::new() }];
        workers.run(slot, jobs, events).await.unwrap();
    }
    let starts = || ["a", "b"].map(|label| metrics.worker_starts.of(&Some(label).into()).get());
    while starts() != [2, 2] || ready(&workers) < 2 {
        workers.changed().await;
        assert!(ready(&workers) > 0, "both are gone");
    }
    workers.stop().await;
    supervised.await.unwrap();
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn pin_cores_gives_each_worker_its_own_cores() {
    let pinned = ["--set", "engine.pin_cores=true", "--threads"];
    let refused = run(&[&["serve", "--port", "0"], &BOTH[..], &pinned, &["1024"]].concat());
    assert_eq!(refused.status.code(), Some(3));
    let error = text(&refused.stderr);
    assert!(error.contains("engine.pin_cores") && error.contains("needs 2048 physical cores"), "{error}");

    let cores = core_ids().unwrap();
    let [first, second, ..] = cores[..] else { return };
    let program = start(&[&pinned[..], &["1"]].concat()).await;
    let allowed = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        list.trim().parse::<usize>().unwrap()
    };
    let mut found: Vec<_> = workers_of(program.pid()).into_iter().map(allowed).collect();
    found.sort_unstable();
    assert_eq!(found, [first, second]);
}
