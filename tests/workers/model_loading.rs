//! Several models in one slot, and workers that are recycled.

use std::{sync::Arc, time::Duration};

use eka::{
    job::{Event, GroupedJob, Job, JobId, Readiness},
    metrics::Metrics,
    supervise::WorkerPool,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    faulty_worker::{hanging, stream_and},
    files::copy,
    models::base_only_model,
    processes::{send_signal, worker_of},
    program::{Program, argument, expected},
    server::{events, eventually},
    worker::recycling,
};

struct TwoModels {
    program: Program,
    _models: tempfile::TempDir,
}

impl TwoModels {
    async fn start(flags: &[&str]) -> Self {
        let models = base_only_model();
        let flags = [&["--models", argument(models.path())], flags].concat();
        Self { program: Program::start(&flags).await, _models: models }
    }

    async fn ask(&self, model: &str) -> Value {
        let request = json!({ "model": model, "prompt": "Once", "max_new_tokens": 12, "ignore_eos": true });
        let (status, answer) = self.program.ask("/generate-lite", &request).await;
        assert_eq!(status, 200, "{answer}\n{}", self.program.log());
        assert_eq!(answer["model"], model);
        answer
    }

    async fn order(&self, path: &str, body: &Value) -> Value {
        let (status, done) = self.program.ask(path, body).await;
        assert_eq!(status, 200, "{done}");
        done
    }

    async fn loaded(&self) -> Vec<String> {
        let list = self.program.get("/v1/models").await;
        let list: Value = list.json().await.unwrap();
        let is_loaded = |model: &&Value| !model["eka"]["loaded"].is_null();
        let models = list["data"].as_array().unwrap().iter().filter(is_loaded);
        models.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// ONNX Runtime's operators copy float weights; eka's read them where the file is mapped, which takes no memory of the process.
const COPIED_WEIGHTS: [&str; 2] = ["--set", "engine.own_operators=false"];

/// Room for neither model, so that each has the slot to itself.
const ONE_AT_A_TIME: [&str; 2] = ["--set", "models.memory_bytes=1"];

#[tokio::test]
async fn a_model_is_loaded_on_first_use_and_stays_loaded() {
    let two = TwoModels::start(&[]).await;
    assert_eq!(two.loaded().await, ["demo"]);
    let demo = two.ask("demo").await["text"].clone();
    let base = two.ask("base-only").await["text"].clone();
    assert_ne!(demo, base, "they are two models");
    assert_eq!(two.loaded().await, ["demo", "base-only"]);
    assert_eq!(two.ask("demo").await["text"], demo);
    assert_eq!(two.ask("base-only").await["text"], base);
    let (status, error) = two.program.ask("/generate-lite", &json!({ "model": "x", "prompt": "a" })).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    assert!(error["error"]["message"].as_str().unwrap().contains(r#""demo", "base-only""#), "{error}");
}

#[tokio::test]
async fn the_least_recently_used_model_is_unloaded_when_memory_is_short() {
    let two = TwoModels::start(&ONE_AT_A_TIME).await;
    let worker = two.program.worker_pid();
    let texts = [two.ask("demo").await["text"].clone(), two.ask("base-only").await["text"].clone()];
    assert_eq!(two.loaded().await, ["base-only"]);
    for _ in 0..3 {
        for (model, text) in ["demo", "base-only"].iter().zip(&texts) {
            assert_eq!(two.ask(model).await["text"], *text);
            assert_eq!(two.loaded().await, [*model]);
        }
    }
    assert_eq!(two.program.worker_pid(), worker, "switching needs no new worker");
}

#[tokio::test]
async fn models_beyond_the_device_limit_are_unloaded() {
    let pool = [&["--device", "cpu", "--set", "device.host_pool=true"][..], &COPIED_WEIGHTS].concat();
    let two = TwoModels::start(&pool).await;
    let bytes = |answer: &Value, when: &str| answer["memory"][when]["device"]["used"].as_u64().unwrap();
    let alone = bytes(&two.ask("demo").await, "peak");
    let both = bytes(&two.ask("base-only").await, "after");
    assert!(alone < both, "a request takes less than a model: {alone}, {both}");
    drop(two);

    let limit = format!("device.memory_limit_bytes={}", u64::midpoint(alone, both));
    let two = TwoModels::start(&[&pool[..], &["--set", &limit]].concat()).await;
    for model in ["demo", "base-only", "demo"] {
        two.ask(model).await;
        assert_eq!(two.loaded().await, [model], "{}", two.program.log());
    }
}

#[tokio::test]
async fn a_stream_reports_that_its_model_is_loading() {
    let two = TwoModels::start(&ONE_AT_A_TIME).await;
    let request = json!({ "model": "base-only", "prompt": "Once", "max_new_tokens": 3, "stream": true });
    let stream = two.program.post(
        "/v1/completions",
        &json!({
            "model": "base-only", "prompt": "Once", "max_tokens": 3, "stream": true
        }),
    );
    let stream = stream.send().await.unwrap().text().await.unwrap();
    assert!(stream.starts_with(": loading the model\n\ndata: "), "{stream}");
    let again = two.program.post("/generate-lite", &request).send().await.unwrap().text().await.unwrap();
    assert!(again.starts_with("data: ") && events(&again).1, "{again}");
}

#[tokio::test]
async fn an_answer_continues_on_a_model_loaded_for_it() {
    let plan = hanging([(2, 8)]);
    let two = TwoModels::start(&[&ONE_AT_A_TIME[..], &["--faults", &plan]].concat()).await;
    let request =
        json!({ "model": "base-only", "prompt": "Once", "max_new_tokens": 200, "ignore_eos": true });
    let (_, undisturbed) = two.program.ask("/generate-lite", &request).await;
    let (documents, is_done) = stream_and(&two.program, &request, "KILL", 1).await;
    let answer = documents.last().unwrap();
    assert!(is_done, "{answer}\n{}", two.program.log());
    assert_eq!(answer["text"], undisturbed["text"], "{}", two.program.log());
    assert_eq!(answer["timings"]["resumed"], 1);
    assert_eq!(two.loaded().await, ["base-only"], "the new worker has what the job needs and no more");
}

#[tokio::test]
async fn admin_load_and_unload_report_memory() {
    let two = TwoModels::start(&COPIED_WEIGHTS).await;
    let anonymous = |done: &Value, when: &str| done["memory"][when]["anonymous"].as_u64().unwrap();
    let loaded = two.order("/admin/models/base-only/load", &json!({})).await;
    assert_eq!(loaded["loaded"], json!(["demo", "base-only"]));
    let took = anonymous(&loaded, "after") - anonymous(&loaded, "before");
    assert!(took > 4 << 20, "{loaded}");
    let unloaded = two.order("/admin/models/base-only/unload", &json!({})).await;
    assert_eq!(unloaded["loaded"], json!(["demo"]));
    let returned = anonymous(&unloaded, "before") - anonymous(&unloaded, "after");
    println!("loading took {took} bytes, unloading gave back {returned}");
    assert!(returned * 100 >= took * 95, "{loaded} {unloaded}");
    let trimmed = two.order("/admin/trim", &json!({})).await;
    assert_eq!(trimmed["loaded"], json!(["demo"]));
    two.order("/admin/models/demo/unload", &json!({})).await;
    assert!(two.loaded().await.is_empty());
    assert_eq!(two.ask("demo").await["usage"]["completion_tokens"], 12, "it is loaded when it is asked for");
    for (path, body, status, code) in [
        ("/admin/models/nope/load", json!({}), 404, "model_not_found"),
        ("/admin/models/demo/load", json!({ "keep_alive": "soon" }), 400, "invalid_value"),
        ("/admin/models/demo/load", json!({ "keep": 1 }), 400, "unknown_field"),
    ] {
        let (found, error) = two.program.ask(path, &body).await;
        assert_eq!((found, &error["error"]["code"]), (status, &json!(code)), "{path}");
    }
    let empty = two.program.client.post(format!("{}/admin/models/demo/load", two.program.url)).send().await;
    assert_eq!(empty.unwrap().status(), StatusCode::OK, "a body is not needed");
}

#[tokio::test]
async fn a_model_is_unloaded_after_keep_alive() {
    let two = TwoModels::start(&[]).await;
    let mut request = json!({ "model": "base-only", "prompt": "Once", "max_new_tokens": 3, "keep_alive": 0 });
    let (status, _) = two.program.ask("/generate-lite", &request).await;
    assert_eq!(status, 200);
    eventually_loaded(&two, &["demo"]).await;
    request["keep_alive"] = json!("300ms");
    two.program.ask("/generate-lite", &request).await;
    assert_eq!(two.loaded().await, ["demo", "base-only"]);
    eventually_loaded(&two, &["demo"]).await;
    let ready = two.program.get("/readyz").await;
    assert_eq!(ready.status(), 200);
}

async fn eventually_loaded(two: &TwoModels, models: &[&str]) {
    for _ in 0..200 {
        if two.loaded().await == models {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{:?} instead of {models:?}\n{}", two.loaded().await, two.program.log());
}

#[tokio::test]
async fn a_model_that_fails_to_load_fails_only_its_requests() {
    let models = tempfile::tempdir().unwrap();
    let broken = models.path().join("broken");
    copy(&Program::start(&[]).await.export(), &broken);
    std::fs::write(broken.join("model.onnx"), b"this is no graph").unwrap();
    let program = Program::start(&["--models", argument(models.path())]).await;
    let worker = program.worker_pid();
    let (status, error) = program.ask("/generate-lite", &json!({ "model": "broken", "prompt": "a" })).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("model_unavailable")), "{error}");
    let (status, _) = program.ask("/generate-lite", &json!({ "prompt": "a", "max_new_tokens": 2 })).await;
    assert_eq!((status, program.worker_pid()), (200, worker));
}

#[tokio::test]
async fn recycling_after_jobs_delays_no_request() {
    let program = Program::start(&["--set", "recycle.after_jobs=3"]).await;
    let first = program.worker_pid();
    let answers = expected();
    let mut workers = std::collections::BTreeSet::new();
    for e in answers.iter().cycle().take(30) {
        let request = json!({ "messages": [{ "role": "user", "content": e.prompt }] });
        let (status, answer) = program.ask("/generate-lite", &request).await;
        assert_eq!((status, &answer["text"]), (200, &json!(e.text)), "{}", program.log());
        assert_eq!(answer["timings"]["resumed"], 0, "{}", program.log());
        workers.extend(worker_of(program.pid()));
    }
    eventually("the first worker to be gone", || !workers_of(&program).contains(&first)).await;
    assert!(workers.len() > 2, "{workers:?}\n{}", program.log());
}

fn workers_of(program: &Program) -> Vec<u32> {
    worker_of(program.pid()).into_iter().collect()
}

/// Without known memory for two workers, the old one exits before the new one starts.
#[tokio::test]
async fn without_room_for_two_workers_recycling_waits_for_idle() {
    let command = recycling(Program::start(&[]).await.export());
    let (workers, supervision) = WorkerPool::new(vec![command], &Arc::new(Metrics::new()));
    let supervised = tokio::spawn(supervision);
    let mut readiness = workers.readiness();
    let is_recycled = |seen: &Readiness| matches!(seen, Readiness::Restarting { reason } if reason.contains("after 1 jobs"));
    for _ in 0..2 {
        let job = Job { model: "demo".into(), ..Job::new(JobId(1), vec![1, 2, 3], 4) };
        let (events, mut received) = tokio::sync::mpsc::unbounded_channel();
        let jobs = vec![GroupedJob { job, cancel: CancellationToken::new() }];
        workers.run(0, jobs, events).await.unwrap();
        let mut tokens = 0;
        while let Ok((_, event)) = received.try_recv() {
            if let Event::Done(finish) = event {
                tokens = finish.usage.completion_tokens;
            }
        }
        assert_eq!(tokens, 4);
        readiness.wait_for(is_recycled).await.unwrap();
        readiness.wait_for(|seen| matches!(seen, Readiness::Ready(_))).await.unwrap();
    }
    workers.stop().await;
    supervised.await.unwrap();
}

#[tokio::test]
async fn recycle_between_requests_uses_a_new_worker_each_time() {
    let program = Program::start(&["--set", "recycle.between_requests=true"]).await;
    let answers = expected();
    let first = &answers[0];
    for _ in 0..8 {
        let request = json!({ "messages": [{ "role": "user", "content": first.prompt }] });
        let (status, answer) = program.ask("/generate-lite", &request).await;
        assert_eq!((status, &answer["text"]), (200, &json!(first.text)), "{}", program.log());
        assert_eq!(answer["timings"]["resumed"], 0);
    }
    let metrics = program.metrics().await;
    let recycled = metrics.lines().find_map(|line| {
        line.strip_prefix("eka_worker_exits_total{reason=\"recycled\"} ")?.parse::<u64>().ok()
    });
    assert!(recycled >= Some(7), "{metrics}");
}

#[tokio::test]
async fn a_server_recovers_when_its_missing_model_returns() {
    let folder = tempfile::tempdir().unwrap();
    let (there, gone) = (folder.path().join("demo"), folder.path().join("elsewhere"));
    copy(&Program::start(&[]).await.export(), &there);
    let program = Program::start(&["--model", argument(&there)]).await;
    let request = json!({ "prompt": "Once", "max_new_tokens": 4 });
    assert_eq!(program.ask("/generate-lite", &request).await.0, 200);

    std::fs::rename(&there, &gone).unwrap();
    send_signal("KILL", program.worker_pid());
    let waiting = tokio::spawn(program.post("/generate-lite", &request).send());
    let readyz = format!("{}/readyz", program.url);
    let down = loop {
        let response = program.client.get(&readyz).send().await.unwrap();
        if response.status() == 503 && response.headers().contains_key("retry-after") {
            let body: Value = response.json().await.unwrap();
            if body["error"]["code"] == "worker_down" && program.log().contains("eka.json") {
                break body;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(!down.to_string().contains("eka.json"), "where files lie is for the log: {down}");
    assert_eq!(
        waiting.await.unwrap().unwrap().status(),
        503,
        "what was queued has the answer of what comes now"
    );
    eventually_refused(&program, &request).await;
    let live = program.get("/livez").await;
    assert_eq!(live.status(), 200);

    std::fs::rename(&gone, &there).unwrap();
    while program.client.get(&readyz).send().await.unwrap().status() != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(program.ask("/generate-lite", &request).await.0, 200);
}

/// New requests get a 503 with `Retry-After` once a new worker has failed to load the model.
async fn eventually_refused(program: &Program, request: &Value) {
    for _ in 0..500 {
        let response =
            program.post("/generate-lite", request).timeout(Duration::from_millis(200)).send().await;
        if let Ok(response) = response
            && response.status() == 503
        {
            assert!(response.headers().contains_key("retry-after"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", program.log());
}
