//! API keys, rate limits, CORS, security headers and the access log.

use std::{fs, io::Write, sync::Arc, time::Duration};

use eka::{
    auth::{AccessControl, Keys, Rules},
    config::Origins,
    job::{CommandOutcome, CommandReport, Failure, Memory, Readiness},
    text::TextError,
};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{
    processes::send_signal,
    program::{Program, argument},
    server::{ANSWER_IDS, MODEL, Server, ServerOptions, eventually},
};

const NATIVE: &str = "/generate-lite";
const COMPLETIONS: &str = "/v1/completions";

const ADMIN: &str = "admin-0123456789abcdef";
const ASHA: &str = "asha-0123456789abcdef";
const OTHER: &str = "other-0123456789abcdef";

/// An admin key, a key without limits, and a key for another model.
fn three_keys() -> String {
    format!(
        "[[key]]\nname = \"admin\"\nkey = \"{ADMIN}\"\nadmin = true\n\
         [[key]]\nname = \"asha\"\nkey = \"{ASHA}\"\n\
         [[key]]\nname = \"other\"\nkey = \"{OTHER}\"\nmodels = [\"else\"]\n"
    )
}

fn keys(text: &str) -> Keys {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Keys::read(Some(file.path()), None).unwrap()
}

fn behind(rules: Rules) -> Server {
    Server::start_with(ServerOptions::default(), |state| {
        state.access = Arc::new(AccessControl::new(rules));
    })
}

fn with_keys(text: &str) -> Server {
    behind(Rules { keys: keys(text), ..Rules::default() })
}

/// Status and code of an answer.
async fn status_and_code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let answer: Value = response.json().await.unwrap();
    (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn ask(server: &Server, key: &str) -> reqwest::RequestBuilder {
    server.post(NATIVE, &json!({ "prompt": "x" })).bearer_auth(key)
}

#[tokio::test]
async fn requests_without_an_api_key_are_rejected_if_keys_are_set() {
    let server = with_keys(&three_keys());
    for path in ["/", "/v1/models", "/metrics", "/nowhere", "/%6civez"] {
        let refused = server.get(path).send().await.unwrap();
        assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"eka\"", "{path}");
        assert_eq!(status_and_code(refused).await, (401, "invalid_api_key".into()), "{path}");
    }
    let wrong = ask(&server, "wrong-0123456789abcdef").send().await.unwrap();
    assert!(wrong.headers()["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    let answer: Value = wrong.json().await.unwrap();
    assert_eq!(answer["error"]["type"], "invalid_request_error");
    assert!(!answer.to_string().contains("wrong-"), "a key is not repeated: {answer}");
    assert_eq!(ask(&server, ASHA).send().await.unwrap().status(), 200);
    let own_header = server.post(NATIVE, &json!({ "prompt": "x" })).header("x-api-key", ASHA);
    assert_eq!(own_header.send().await.unwrap().status(), 200);
    for probe in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(server.get(probe).send().await.unwrap().status(), 200, "{probe}");
    }
    assert_eq!(server.get("/metrics").bearer_auth(ASHA).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn open_metrics_needs_no_api_key() {
    let server = behind(Rules { keys: keys(&three_keys()), open_metrics: true, ..Rules::default() });
    assert_eq!(server.get("/metrics").send().await.unwrap().status(), 200);
    assert_eq!(server.get("/v1/models").send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_key_may_use_only_its_models() {
    let server = with_keys(&three_keys());
    let refused = ask(&server, OTHER).send().await.unwrap();
    assert_eq!(status_and_code(refused).await, (403, "model_not_allowed".into()));
    let refused = server.get("/v1/models/demo").bearer_auth(OTHER).send().await.unwrap();
    assert_eq!(status_and_code(refused).await, (403, "model_not_allowed".into()));
    // Neither that there is one nor that there is none.
    for asked in [MODEL, "nothing"] {
        let request = server.post(NATIVE, &json!({ "prompt": "x", "model": asked })).bearer_auth(OTHER);
        let answer = request.send().await.unwrap().text().await.unwrap();
        assert!(answer.contains(r#"it may use \"else\""#), "{answer}");
    }
    let list =
        async |key| server.get("/v1/models").bearer_auth(key).send().await.unwrap().text().await.unwrap();
    assert!(!list(OTHER).await.contains(MODEL));
    assert!(list(ASHA).await.contains(MODEL));
}

fn done() -> CommandReport {
    let memory = Memory::default();
    CommandReport { before: memory, after: memory, took: Duration::ZERO, loaded: vec![] }
}

/// What comes of an order on the only device.
fn alone(outcome: Result<CommandReport, Failure>) -> Vec<CommandOutcome> {
    vec![CommandOutcome { device: None, outcome }]
}

/// A server whose admin commands succeed at once without a worker.
fn with_commands(rules: Rules) -> Server {
    Server::start_with(ServerOptions::default(), |state| {
        state.access = Arc::new(AccessControl::new(rules));
        state.set_log_level = Some(Arc::new(|_| Ok(())));
        state.commands = Some(Arc::new(|_| Box::pin(async { alone(Ok(done())) })));
    })
}

#[tokio::test]
async fn admin_routes_need_an_admin_key_if_keys_are_set() {
    let server = with_commands(Rules { keys: keys(&three_keys()), ..Rules::default() });
    // However it is spelt.
    for path in ["/admin/trim", "/%61dmin/trim", "/admin/drain", "/admin/log", "/admin/models/demo/unload"] {
        let order = |key| server.client.post(format!("{}{path}", server.url)).bearer_auth(key).send();
        assert_eq!(
            status_and_code(order("x").await.unwrap()).await,
            (401, "invalid_api_key".into()),
            "{path}"
        );
        assert_eq!(
            status_and_code(order(ASHA).await.unwrap()).await,
            (403, "admin_key_required".into()),
            "{path}"
        );
    }
    let trimmed = server.post("/admin/trim", &json!({})).bearer_auth(ADMIN).send().await.unwrap();
    assert_eq!(trimmed.status(), 200);
}

#[tokio::test]
async fn without_keys_admin_routes_accept_local_non_browser_requests_only() {
    let server = with_commands(Rules::default());
    assert_eq!(server.ask("/admin/trim", &json!({})).await.0, 200);
    let page = server.post("/admin/trim", &json!({})).header("origin", "http://evil.example");
    assert_eq!(status_and_code(page.send().await.unwrap()).await, (403, "origin_not_allowed".into()));
    assert_eq!(server.ask("/admin/log", &json!({ "level": "debug" })).await.0, 200);
    let (status, answer) = server.ask("/admin/log", &json!({ "level": "loud" })).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("level")));
}

#[tokio::test]
async fn requests_over_a_keys_rate_limit_get_429_with_retry_after() {
    let server = with_keys(&format!("{}requests_per_minute = 2\n", three_keys()));
    let enter = async || server.get("/v1/models").bearer_auth(OTHER).send().await.unwrap();
    let first = enter().await;
    assert_eq!(first.headers()["x-ratelimit-limit-requests"], "2");
    assert_eq!(first.headers()["x-ratelimit-remaining-requests"], "1");
    assert_eq!(first.headers()["x-ratelimit-reset-requests"].to_str().unwrap().chars().last(), Some('s'));
    assert_eq!(enter().await.status(), 200);
    let refused = enter().await;
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(refused.headers()["x-ratelimit-remaining-requests"], "0");
    assert_eq!(status_and_code(refused).await, (429, "rate_limit_exceeded".into()));
    assert_eq!(server.get("/v1/models").bearer_auth(ASHA).send().await.unwrap().status(), 200);
    assert_eq!(server.get("/livez").bearer_auth(OTHER).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn token_limits_count_generated_tokens_also_of_disconnected_clients() {
    let mut text = three_keys();
    text =
        text.replace(&format!("key = \"{ASHA}\"\n"), &format!("key = \"{ASHA}\"\ntokens_per_minute = 20\n"));
    let server = with_keys(&text);
    let first = ask(&server, ASHA).send().await.unwrap();
    assert_eq!(first.headers()["x-ratelimit-limit-tokens"], "20");
    let usage: Value = first.json().await.unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], ANSWER_IDS.len());
    let stream = json!({ "prompt": "x", "stream": true, "ignore_eos": true, "max_new_tokens": 200 });
    let mut streamed = server.post(NATIVE, &stream).bearer_auth(ASHA).send().await.unwrap();
    assert_eq!(streamed.status(), 200);
    for _ in 0..20 {
        streamed.chunk().await.unwrap();
    }
    drop(streamed);
    server.has_counted(NATIVE, "client_gone", 1).await;
    let refused = ask(&server, ASHA).send().await.unwrap();
    assert_eq!(refused.headers()["x-ratelimit-remaining-tokens"], "0");
    let answer: Value = refused.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("20 tokens per minute"), "{answer}");
}

#[tokio::test]
async fn rate_limits_apply_to_each_ip_address() {
    let limit = std::num::NonZeroU32::new(3);
    let server = behind(Rules { requests_per_minute_per_ip: limit, ..Rules::default() });
    for left in ["2", "1", "0"] {
        let answer = server.get("/").send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-ratelimit-remaining-requests"]),
            (200, &left.parse().unwrap())
        );
    }
    assert_eq!(
        status_and_code(server.get("/").send().await.unwrap()).await,
        (429, "rate_limit_exceeded".into())
    );
    for _ in 0..5 {
        assert_eq!(server.get("/readyz").send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_security_headers() {
    let server = with_keys(&three_keys());
    let send = async |method: Method, path: &str, key: &str| {
        let request = server.client.request(method, format!("{}{path}", server.url));
        request.bearer_auth(key).header("x-request-id", "mine-1").send().await.unwrap()
    };
    for (method, path, key, status) in [
        (Method::GET, "/livez", "", 200),
        (Method::GET, "/nowhere", ASHA, 404),
        (Method::PUT, NATIVE, ASHA, 405),
        (Method::POST, NATIVE, ASHA, 415),
        (Method::POST, NATIVE, "wrong", 401),
        (Method::POST, "/admin/trim", ASHA, 403),
    ] {
        let answer = send(method, path, key).await;
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()["x-request-id"], "mine-1", "{path}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.headers()["cache-control"], "no-store", "{path}");
    }
    let stream = json!({ "prompt": "x", "stream": true });
    let streamed = server.post(NATIVE, &stream).bearer_auth(ASHA).send().await.unwrap();
    assert_eq!(streamed.headers()["x-request-id"].len(), 32, "one is made where none is given");
    let unfit = server.get("/livez").header("x-request-id", "a b\"c").send().await.unwrap();
    assert_eq!(unfit.headers()["x-request-id"].len(), 32);
}

fn for_origin(origins: &[&str]) -> Server {
    let origins = match origins {
        ["*"] => Origins::Any,
        these => Origins::List(these.iter().map(|one| (*one).to_owned()).collect()),
    };
    behind(Rules { keys: keys(&three_keys()), origins, ..Rules::default() })
}

async fn preflight(server: &Server, origin: &str, path: &str) -> Response {
    let request = server.client.request(Method::OPTIONS, format!("{}{path}", server.url));
    let request = request.header("origin", origin).header("access-control-request-method", "POST");
    request.header("access-control-request-headers", "authorization,content-type").send().await.unwrap()
}

#[tokio::test]
async fn cors_allows_listed_origins_only() {
    const PAGE: &str = "https://chat.example.org";
    let server = for_origin(&[PAGE]);
    for path in [NATIVE, COMPLETIONS, "/v1/models", "/livez"] {
        let allowed = preflight(&server, PAGE, path).await;
        assert_eq!(allowed.status(), 204, "no key is asked for");
        assert_eq!(allowed.headers()["access-control-allow-origin"], PAGE);
        assert_eq!(allowed.headers()["access-control-allow-headers"], "authorization,content-type");
        assert!(allowed.headers()["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    }
    let foreign = preflight(&server, "https://evil.example", NATIVE).await;
    assert!(!foreign.headers().contains_key("access-control-allow-origin"));
    assert_eq!(status_and_code(foreign).await, (403, "origin_not_allowed".into()));
    // Rejections have CORS headers too, otherwise the page could not show the reason.
    for key in [ASHA, "wrong"] {
        let answer = ask(&server, key).header("origin", PAGE).send().await.unwrap();
        assert_eq!(answer.headers()["access-control-allow-origin"], PAGE);
        assert!(answer.headers()["access-control-expose-headers"].to_str().unwrap().contains("x-request-id"));
        assert_eq!(answer.headers()["vary"], "origin");
    }
    let foreign = ask(&server, ASHA).header("origin", "https://evil.example").send().await.unwrap();
    assert!(!foreign.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn cors_star_allows_all_origins_and_an_empty_list_none() {
    let any = for_origin(&["*"]);
    let answer = ask(&any, ASHA).header("origin", "https://anything.example").send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "*");
    assert!(!answer.headers().contains_key("vary"));
    let none = for_origin(&[]);
    assert_eq!(preflight(&none, "https://anything.example", NATIVE).await.status(), 403);
    none.has_counted(NATIVE, "origin_not_allowed", 1).await;
}

/// Paths of this machine that an error could contain.
const PATH: &str = "/secret/models/demo";

#[tokio::test]
async fn error_messages_contain_no_server_paths() {
    let server = with_commands(Rules::default());
    let reason = || format!("{PATH}/model.onnx: no such file");
    for state in [
        Readiness::Restarting { reason: reason() },
        Readiness::Down { reason: reason(), retry_in: Some(Duration::from_secs(1)) },
        Readiness::Down { reason: reason(), retry_in: None },
    ] {
        server.readiness.send_replace(state);
        for path in ["/readyz", "/v1/models", "/v1/models/demo", "/", "/metrics"] {
            let text = server.get(path).send().await.unwrap().text().await.unwrap();
            assert!(!text.contains("secret"), "{path}: {text}");
        }
        let (_, answer) = server.ask(NATIVE, &json!({ "prompt": "x" })).await;
        assert!(!answer.to_string().contains("secret"), "{answer}");
    }
}

#[tokio::test]
async fn admin_errors_contain_no_server_paths() {
    let message = || format!("{PATH}/model.onnx: no such file");
    let failures: [fn(String) -> Failure; 4] = [
        |message| Failure::Model { model: "demo".into(), message },
        |message| Failure::Device { message },
        |message| Failure::WorkerLost { message },
        |message| Failure::NoWorker { message, retry_in: None },
    ];
    for failure in failures {
        let server = Server::start_with(ServerOptions::default(), |state| {
            state.commands = Some(Arc::new(move |_| Box::pin(async move { alone(Err(failure(message()))) })));
        });
        let (status, answer) = server.ask("/admin/trim", &json!({})).await;
        assert!(status >= 500 && !answer.to_string().contains("secret"), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().ends_with("see the server's log"), "{answer}");
    }
    assert!(TextError::Read { path: PATH.into(), source: std::io::Error::other("x") }.names_a_file());
}

/// A file of keys that the program is started with.
fn keys_file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.toml");
    fs::write(&path, text).unwrap();
    let setting = format!("auth.keys_file={}", argument(&path));
    (directory, setting)
}

async fn status(program: &Program, key: &str) -> u16 {
    let request = program.client.get(format!("{}/v1/models", program.url)).bearer_auth(key);
    request.send().await.unwrap().status().as_u16()
}

async fn comes_to(program: &Program, key: &str, wanted: u16) {
    for _ in 0..600 {
        if status(program, key).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{wanted} never came:\n{}", program.log());
}

#[tokio::test]
async fn api_keys_are_reloaded_and_an_invalid_file_keeps_the_old_ones() {
    let (directory, setting) = keys_file(&three_keys());
    let file = directory.path().join("keys.toml");
    let program = Program::start(&["--set", &setting]).await;
    assert_eq!((status(&program, ASHA).await, status(&program, "x").await), (200, 401));
    fs::write(&file, three_keys().replace("asha-0", "usha-0")).unwrap();
    comes_to(&program, ASHA, 401).await;
    assert_eq!(status(&program, "usha-0123456789abcdef").await, 200);
    fs::write(&file, format!("[[key]]\nname = \"a\"\nkey = \"{ASHA}\noops")).unwrap();
    program.has_logged("keys_reload_failed").await;
    assert_eq!(status(&program, "usha-0123456789abcdef").await, 200);
    let log = program.log();
    assert!(log.contains("keys.toml, line "), "{log}");
    assert!(![ASHA, ADMIN, OTHER, "usha-0"].iter().any(|key| log.contains(key)), "a key was logged:\n{log}");
}

#[tokio::test]
async fn sighup_applies_settings_and_names_those_that_need_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("eka.toml");
    fs::write(&file, "[log]\nlevel = \"warn,eka::cli=info\"\n").unwrap();
    let program = Program::start(&["--config", argument(&file)]).await;
    assert_eq!(status(&program, "").await, 200);
    fs::write(&file, format!("[log]\nlevel = \"debug\"\n[auth]\nkeys = \"{ASHA}\"\n[queue]\nmax_jobs = 3\ntimeout_ms = 1\nmax_switches = 3\n"))
        .unwrap();
    send_signal("HUP", program.pid());
    program.has_logged("settings_reloaded").await;
    let unchanged = program.logged("settings_need_restart");
    assert!(unchanged[0].contains("settings=\"queue.max_switches\""), "{unchanged:?}");
    let changed = program.logged("settings_reloaded");
    let list = "settings=\"auth.keys, queue.max_jobs, queue.timeout_ms, log.level\"";
    assert!(changed[0].contains(list), "{changed:?}");
    assert_eq!((status(&program, "").await, status(&program, ASHA).await), (401, 200));
    eventually("lines at debug", || program.log().contains("route=\"/v1/models\"")).await;
    fs::write(&file, "[server]\nport = \"high\"\n").unwrap();
    send_signal("HUP", program.pid());
    program.has_logged("settings_reload_failed").await;
    assert!(program.logged("settings_reload_failed")[0].contains("server.port"), "{}", program.log());
    assert_eq!(status(&program, ASHA).await, 200);
    // The value that the server was started with needs no restart, and the address that it listens on has not changed.
    fs::write(&file, format!("[log]\nlevel = \"debug\"\n[auth]\nkeys = \"{ASHA}\"\n[queue]\nmax_jobs = 4\n"))
        .unwrap();
    send_signal("HUP", program.pid());
    eventually("reloaded again", || program.logged("settings_reloaded").len() == 2).await;
    assert_eq!(program.logged("settings_need_restart").len(), 1, "{}", program.log());
}

/// The fields of the one line about this request.
async fn line_of(program: &Program, id: &str) -> Value {
    let find = || {
        let lines = program.log();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut ours =
            lines.filter(|line| line["fields"]["request_id"] == id && line["fields"]["message"] == "request");
        ours.next()
    };
    eventually(id, || find().is_some()).await;
    find().unwrap()["fields"].clone()
}

#[tokio::test]
async fn the_access_log_has_key_route_and_status_but_no_prompts() {
    let (_directory, setting) = keys_file(&three_keys());
    let program = Program::start(&["--set", &setting, "--set", "log.format=json"]).await;
    let secret = "a prompt that is nobody's business";
    let post = |key: &str, id: &str, body: Value| {
        program.post(COMPLETIONS, &body).bearer_auth(key).header("x-request-id", id).send()
    };
    post(ASHA, "whole", json!({ "prompt": secret, "max_tokens": 3, "ignore_eos": true }))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let line = line_of(&program, "whole").await;
    assert_eq!((&line["key"], &line["status"], &line["code"]), (&json!("asha"), &json!(200), &json!("ok")));
    assert_eq!(
        (&line["method"], &line["route"], &line["tokens_out"]),
        (&json!("POST"), &json!(COMPLETIONS), &json!(3))
    );
    assert!(line["tokens_in"].as_u64() > Some(3) && line["took_ms"].is_u64(), "{line}");
    assert_eq!(line["peer"], "127.0.0.1");
    let stream =
        json!({ "prompt": secret, "max_tokens": 4, "stream": true, "temperature": 0, "ignore_eos": true });
    post(ASHA, "streamed", stream).await.unwrap().text().await.unwrap();
    assert_eq!(line_of(&program, "streamed").await["tokens_out"], 4);
    post("x", "unknown", json!({ "prompt": secret })).await.unwrap();
    let line = line_of(&program, "unknown").await;
    assert_eq!(
        (&line["status"], &line["code"], &line["key"]),
        (&json!(401), &json!("invalid_api_key"), &Value::Null)
    );
    let log = program.log();
    assert!(!log.contains(secret) && !log.contains(ASHA), "{log}");
}

#[tokio::test]
async fn log_prompts_logs_prompts() {
    let program = Program::start(&["--set", "log.prompts=true"]).await;
    program.ask(NATIVE, &json!({ "prompt": "What did I ask?", "max_new_tokens": 1 })).await;
    eventually("the prompt", || program.log().contains("What did I ask?")).await;
}

#[tokio::test]
async fn listening_on_a_public_address_without_keys_is_a_warning() {
    let open = Program::start(&["--bind", "0.0.0.0"]).await;
    open.has_logged("no_api_keys").await;
    let (_directory, setting) = keys_file(&three_keys());
    let kept = Program::start(&["--bind", "0.0.0.0", "--set", &setting]).await;
    assert!(kept.logged("no_api_keys").is_empty(), "{}", kept.log());
}

#[tokio::test]
async fn admin_drain_finishes_requests_and_exits() {
    let mut program = Program::start(&[]).await;
    let request = json!({ "prompt": "x", "ignore_eos": true, "max_new_tokens": 200 });
    let running = tokio::spawn(program.post(NATIVE, &request).send());
    program.has_logged("listening").await;
    while !busy(&program).await {}
    let (status, answer) = program.ask("/admin/drain", &json!({})).await;
    assert_eq!((status, &answer["draining"]), (202, &json!(true)), "{answer}");
    // What Kubernetes does when its preStop hook has returned.
    send_signal("TERM", program.pid());
    assert_eq!(running.await.unwrap().unwrap().status(), 200, "{}", program.log());
    assert!(program.end().await.success(), "{}", program.log());
}

async fn busy(program: &Program) -> bool {
    let metrics = program.metrics().await;
    metrics.contains("eka_slot_busy 1")
}

#[tokio::test]
async fn a_stream_is_resumed_by_the_key_that_started_it_only() {
    let options = ServerOptions { resume_window: Duration::from_secs(60), ..ServerOptions::default() };
    let text = three_keys().replace("models = [\"else\"]\n", "");
    let server = Server::start_with(options, |state| {
        let rules = Rules { keys: keys(&text), ..Rules::default() };
        state.access = Arc::new(AccessControl::new(rules));
    });
    let body = json!({ "prompt": "x", "stream": true });
    let answer = server.post(NATIVE, &body).bearer_auth(ASHA).send().await.unwrap();
    let id = answer.headers()["x-eka-stream-id"].to_str().unwrap().to_owned();
    let url = format!("{}/v1/streams/{id}", server.url);
    for (method, key, expected) in [
        (Method::GET, OTHER, 404),
        (Method::DELETE, OTHER, 404),
        (Method::GET, ADMIN, 404),
        (Method::GET, ASHA, 200),
        (Method::DELETE, ASHA, 200),
        (Method::GET, ASHA, 404),
    ] {
        let asked = server.client.request(method.clone(), &url).bearer_auth(key).send().await.unwrap();
        assert_eq!(asked.status().as_u16(), expected, "{method} {key}");
    }
    assert_eq!(server.client.get(&url).send().await.unwrap().status(), 401);
}
