//! `GET /v1/slot`, the web page, and the metrics of the dashboard.

use std::{fs, sync::Arc};

use eka::{
    auth::{AccessControl, Keys, Rules},
    config::MetricNames,
    job::Readiness,
    units::Bytes,
};
use serde_json::{Value, json};

use crate::support::{
    processes::{send_signal, worker_of},
    program::{Program, cluster_metrics, root},
    server::{ANSWER_IDS, MODEL, Server, ServerOptions, eventually},
};

const NATIVE: &str = "/generate-lite";
const ASHA: &str = "asha-0123456789abcdef";
const RAVI: &str = "ravi-0123456789abcdef";

/// Answers that take as long as they are let.
fn endless() -> Value {
    json!({ "prompt": "a secret", "stream": true, "ignore_eos": true, "max_new_tokens": 200 })
}

fn slow() -> ServerOptions {
    ServerOptions { step: std::time::Duration::from_millis(20), ..ServerOptions::default() }
}

async fn slot(server: &Server, key: &str) -> Value {
    let answer = server.get("/v1/slot").bearer_auth(key).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    assert!(!text.contains("secret"), "neither prompts nor paths: {text}");
    serde_json::from_str(&text).unwrap()
}

fn with_keys(wish: ServerOptions) -> Server {
    let admin = "head-0123456789abcdef";
    let file = tempfile::NamedTempFile::new().unwrap();
    let key = |name: &str, key: &str| format!("[[key]]\nname = \"{name}\"\nkey = \"{key}\"\n");
    let text = key("asha", ASHA) + &key("ravi", RAVI) + &key("head", admin) + "admin = true\n";
    fs::write(file.path(), text).unwrap();
    let rules = Rules { keys: Keys::read(Some(file.path()), None).unwrap(), ..Rules::default() };
    Server::start_with(wish, |state| state.access = Arc::new(AccessControl::new(rules)))
}

#[tokio::test]
async fn v1_slot_shows_running_queued_and_finished_requests() {
    let server = Server::start(slow());
    server.ask(NATIVE, &json!({ "prompt": "a secret" })).await;
    let begin = async |id| server.post(NATIVE, &endless()).header("x-request-id", id).send().await.unwrap();
    let running = begin("first").await;
    server.has_queued(0).await;
    let waiting = [begin("second").await, begin("third").await];
    server.has_queued(2).await;
    let seen = slot(&server, "").await;
    let device = &seen["devices"][0];
    assert_eq!((&device["state"], &device["models"]), (&json!("ready"), &json!([MODEL])));
    assert_eq!((&device["running"]["id"], &device["running"]["key"]), (&json!("first"), &Value::Null));
    assert_eq!(device["running"]["max_tokens"], 200);
    let queue = &seen["queue"];
    assert_eq!((&queue["length"], &queue["limit"]), (&json!(2), &json!(8)));
    let [second, third] = [&queue["waiting"][0], &queue["waiting"][1]];
    assert_eq!(
        (&second["id"], &second["position"], &second["model"]),
        (&json!("second"), &json!(1), &json!(MODEL))
    );
    assert!(
        second["estimate_ms"].as_u64() > Some(0)
            && third["estimate_ms"].as_u64() > second["estimate_ms"].as_u64()
    );
    let past = &seen["history"][0];
    assert_eq!((&past["outcome"], &past["generated_tokens"]), (&json!("stop"), &json!(ANSWER_IDS.len())));
    assert_eq!(past["memory"]["peak"]["resident"], Bytes::mib(400).0);
    assert_eq!(past["memory"]["trimmed"], Value::Null, "the next one has not said what it found");
    drop((running, waiting));
    server.is_idle().await;
    let seen = slot(&server, "").await;
    assert_eq!(seen["requests"], json!({ "done": 1, "cancelled": 3, "failed": 0 }));
    assert_eq!(seen["history"][0]["memory"]["trimmed"]["resident"], Bytes::mib(300).0);
    assert_eq!(seen["devices"][0]["running"], Value::Null);
}

/// `eka_kv_cache_usage_ratio` of `/metrics`.
async fn kv_cache_usage(server: &Server) -> f64 {
    let text = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    let figure = text.lines().find_map(|line| line.strip_prefix("eka_kv_cache_usage_ratio "));
    figure.unwrap_or_else(|| panic!("not in:\n{text}")).parse().unwrap()
}

#[tokio::test]
async fn metric_names_repeats_metrics_under_the_names_of_others_in_both_formats() {
    let server = Server::start(ServerOptions { metric_names: MetricNames::All, ..ServerOptions::default() });
    assert_eq!(server.ask("/generate-lite", &json!({ "prompt": "x" })).await.0, 200);
    let metrics = async |accept: &str| {
        server.get("/metrics").header("accept", accept).send().await.unwrap().text().await.unwrap()
    };
    for text in [metrics("*/*").await, metrics("application/openmetrics-text").await] {
        for name in [
            "vllm:num_requests_waiting{",
            "vllm:time_to_first_token_seconds_bucket{",
            "vllm:generation_tokens_total{",
            "gen_ai_server_request_duration_seconds_count{",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(name) && line.contains("\"demo\"")),
                "{name} is missing in\n{text}"
            );
        }
        let heads: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let unique: std::collections::HashSet<_> = heads.iter().collect();
        assert_eq!(heads.len(), unique.len(), "every metric is described once");
    }
}

#[tokio::test]
async fn the_kv_cache_usage_grows_with_the_running_request_and_is_zero_without_one() {
    let server = Server::start(slow());
    assert_eq!(kv_cache_usage(&server).await, 0.0);
    let running = server.post(NATIVE, &endless()).send().await.unwrap();
    let mut seen = 0.0;
    for _ in 0..2 {
        let before = seen;
        for _ in 0..500 {
            seen = kv_cache_usage(&server).await;
            if seen > before {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(seen > before && seen <= 1.0, "{seen} after {before}");
    }
    drop(running);
    server.is_idle().await;
    assert_eq!(kv_cache_usage(&server).await, 0.0);
}

#[tokio::test]
async fn v1_slot_shows_a_key_its_own_requests_and_an_admin_all() {
    let server = with_keys(slow());
    let begin = async |key| server.post(NATIVE, &endless()).bearer_auth(key).send().await.unwrap();
    let _streams = [begin(ASHA).await, begin(RAVI).await];
    server.has_queued(1).await;
    let who = async |key| {
        let seen = slot(&server, key).await;
        [seen["devices"][0]["running"].clone(), seen["queue"]["waiting"][0].clone()]
    };
    let names = |[running, waiting]: [Value; 2]| [running["key"].clone(), waiting["key"].clone()];
    let seen = who(ASHA).await;
    assert!(seen[0]["id"].is_string() && seen[1]["id"].is_null() && seen[1]["model"] == MODEL, "{seen:?}");
    assert_eq!(names(seen), [json!("asha"), Value::Null]);
    assert_eq!(names(who(RAVI).await), [Value::Null, json!("ravi")]);
    assert_eq!(names(who("head-0123456789abcdef").await), [json!("asha"), json!("ravi")]);
    assert_eq!(server.get("/v1/slot").send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn v1_slot_shows_no_memory_for_a_lost_worker() {
    let server = Server::start(ServerOptions::default());
    for (readiness, word) in [
        (Readiness::Restarting { reason: "/secret".into() }, "restarting"),
        (Readiness::Down { reason: "/secret".into(), retry_in: None }, "down"),
    ] {
        server.readiness.send_replace(readiness);
        let device = slot(&server, "").await["devices"][0].take();
        assert_eq!(
            (&device["state"], &device["memory"], &device["name"]),
            (&json!(word), &Value::Null, &Value::Null)
        );
    }
}

#[tokio::test]
async fn the_index_is_a_self_contained_page_for_browsers_and_text_for_programs() {
    let server = with_keys(ServerOptions::default());
    let page = async |path| server.get(path).header("accept", "text/html,*/*;q=0.8").send().await.unwrap();
    let document = page("/").await;
    let (status, head) = (document.status(), document.headers().clone());
    assert_eq!((status.as_u16(), &head["content-type"]), (200, &"text/html; charset=utf-8".parse().unwrap()));
    let policy = head["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(
        (&head["x-frame-options"], &head["vary"]),
        (&"DENY".parse().unwrap(), &"accept, accept-encoding".parse().unwrap())
    );
    let text = document.text().await.unwrap();
    assert!(!text.contains(MODEL), "the page tells nothing of this server to those without a key");
    for name in ["page/style.css", "page/main.js", "page/icon.svg"] {
        assert!(text.contains(name));
        let file = server.get(&format!("/{name}")).send().await.unwrap();
        assert_eq!((file.status().as_u16(), &file.headers()["etag"]), (200, &head["etag"]), "{name}");
    }
    let again = server.get("/page/main.js").header("if-none-match", &head["etag"]).send().await.unwrap();
    assert_eq!((again.status().as_u16(), again.text().await.unwrap().as_str()), (304, ""));
    for path in ["/", "/page/", "/page/other.js", "/page/../v1/slot", "/%70age/main.js"] {
        assert_eq!(server.get(path).send().await.unwrap().status(), 401, "{path}");
    }
    let list = server.get("/").bearer_auth(ASHA).send().await.unwrap();
    assert!(list.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert!(list.text().await.unwrap().contains("/v1/slot"));
}

/// Names of metrics in an expression: what begins with `eka_`.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("eka_"))
}

#[tokio::test]
async fn every_metric_in_the_dashboard_exists() {
    let file = fs::read_to_string(root().join("scripts/deploy/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&file).unwrap();
    let program = Program::start(&["--device", "cpu"]).await;
    program.ask(NATIVE, &json!({ "prompt": "Once" })).await;
    // The exit of a worker adds members to `worker_exits`.
    send_signal("KILL", program.worker_pid());
    let has = program.metrics_with("eka_worker_exits_total{").await + &cluster_metrics();
    let is_there = |name: &str| {
        has.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
    };
    let panels = dashboard["panels"].as_array().unwrap();
    let expressions = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|t| t["expr"].as_str().unwrap());
    let mut checked = 0;
    for expression in expressions {
        assert!(names(expression).next().is_some(), "{expression} has no metric");
        for name in names(expression) {
            assert!(is_there(name), "{name} of {expression} is not in:\n{has}");
            checked += 1;
        }
    }
    assert!(checked >= 16, "{checked}");
    eventually("another worker", || worker_of(program.pid()).is_some()).await;
}
