//! Prompts saved to files by one server and restored by another, with the same answers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use eka::{
    device::{DeviceError, DeviceTensor, HostCopy, SessionOptions},
    device_spec::CacheChoice,
    engine::{self, Forward, Speculation, Timeline, TimelineOptions},
    job::{AdapterKey, Job, JobId, LogprobOptions, PromptScope},
    model::Model,
    units::Bytes,
};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    soak,
    support::{
        json_schema::{check, closed, examples, schema_of, validator},
        models::{OPTIONS, base_only_model, lock_host_pool, long_model, pool, runtime},
        processes::send_signal,
        program::{Program, argument, expected},
        server::{Server, ServerOptions, eventually},
    },
};

const CACHE: &str = "/admin/cache";

fn tokens(seed: u64, length: usize) -> Vec<u32> {
    soak::prompt(&mut StdRng::seed_from_u64(seed), length)
}

/// What follows `prompt`, with the bits of log-probabilities where a model gives the same in every pass; and how much of the
/// prompt was kept.
fn answer(timeline: &mut Timeline, prompt: &[u32]) -> (Vec<u32>, usize) {
    let logprobs = timeline.model().is_row_invariant().then_some(LogprobOptions::default());
    let (job, mut said) = (Job { logprobs, ..Job::new(JobId(0), prompt.to_vec(), 12) }, Vec::new());
    let outcome = engine::generate(timeline, &job, None, &mut Speculation::new(), |step| {
        match step {
            engine::Step::Token(token) => said.push(token),
            engine::Step::Logprobs(score) => said.push(score.logprob.to_bits()),
            engine::Step::Progress { .. } | engine::Step::Embedding(_) => {}
        }
        std::ops::ControlFlow::Continue(())
    });
    let cached = outcome.unwrap().usage.cached_tokens;
    timeline.settle(true);
    (said, cached)
}

/// Keys and values of `prompt`, as a file has them.
fn saved(timeline: &mut Timeline, prompt: &[u32]) -> Vec<Vec<u8>> {
    timeline.rewind(0);
    for chunk in prompt.chunks(timeline.chunk()) {
        timeline.forward(chunk).unwrap();
    }
    let mut tensors = Vec::new();
    timeline
        .copy_out(|tensor| {
            tensors.push(tensor.to_vec());
            Ok::<_, DeviceError>(())
        })
        .unwrap();
    let shape = timeline.model().cache_shape();
    assert_eq!(tensors.len(), 2 * shape.layers);
    assert!(tensors.iter().all(|tensor| Some(tensor.len()) == shape.tensor_bytes(prompt.len())));
    tensors
}

fn restore(timeline: &mut Timeline, name: &str, prompt: &[u32], tensors: &[Vec<u8>]) {
    let mut kept = timeline.model().host_cache(prompt.len()).unwrap();
    assert_eq!(kept.bytes(), timeline.model().cache_shape().bytes(prompt.len()));
    kept.tensors_mut().zip(tensors).for_each(|(to, from)| to.copy_from_slice(from));
    let scope = PromptScope { salt: None, adapters: AdapterKey::NONE };
    timeline.restore(name.into(), scope, prompt.to_vec(), kept);
}

/// A second timeline continues what the first saved, and requests in between do not evict it.
fn goes_on(mut open: impl FnMut() -> Timeline) {
    let [stem, other] = [1, 2].map(|seed| tokens(seed, 300));
    let longer = |own| [&stem[..], &tokens(own, 20)].concat();
    let mut first = open();
    let tensors = saved(&mut first, &stem);
    first.clear();
    let expected = [10, 11].map(|own| answer(&mut first, &longer(own)).0);
    drop(first);

    let mut second = open();
    assert_eq!(answer(&mut second, &other).1, 0);
    restore(&mut second, "stem", &stem, &tensors);
    let kept = second.kept();
    for _ in 0..3 {
        for (own, expected) in [10, 11].into_iter().zip(&expected) {
            let (said, cached) = answer(&mut second, &longer(own));
            assert_eq!((&said, cached >= stem.len()), (expected, true), "{cached}");
            assert_eq!(answer(&mut second, &tokens(100 + own, 400)).1, 0);
        }
        second.clear();
        second.clear_to(Bytes(0));
        assert!(second.kept() >= second.model().cache_shape().bytes(stem.len()) && second.kept() <= kept);
    }
    // Prompts that differ early, and prompts that may not use it.
    let parted = [&stem[..100], &other[..50]].concat();
    assert_eq!(answer(&mut second, &parted).1, 100);
    let room = second.room_to_restore("another");
    assert!(room < second.room_to_restore("stem"));
    second.forget_restored(Some("another"));
    second.clear();
    assert_eq!(answer(&mut second, &longer(10)).1, 300);
    second.forget_restored(Some("stem"));
    second.clear();
    assert_eq!((second.kept(), answer(&mut second, &longer(10))), (Bytes(0), (expected[0].clone(), 0)));
}

fn mapped(cache: CacheChoice, own_operators: bool) -> Timeline {
    let session = SessionOptions { cache, own_operators, ..OPTIONS };
    let model = Model::open(runtime(), long_model(), session).unwrap();
    let prefixes = Bytes::mib(4);
    Timeline::new(model, TimelineOptions { chunk: 48, prefixes, ..TimelineOptions::default() }).unwrap()
}

#[test]
fn a_saved_sequence_continues_with_every_cache_type() {
    for cache in [CacheChoice::Float32, CacheChoice::Float16, CacheChoice::Int8] {
        goes_on(|| mapped(cache, true));
    }
    goes_on(|| mapped(CacheChoice::Auto, false));
}

#[test]
fn in_a_pool_a_restored_prompt_is_copied_into_the_cache() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    for keep in [Bytes(0), Bytes::mib(64)] {
        goes_on(|| {
            let model = Model::open_in(&pool, long_model(), OPTIONS).unwrap();
            let options =
                TimelineOptions { chunk: 48, keep, prefixes: Bytes::mib(4), ..TimelineOptions::default() };
            Timeline::new(model, options).unwrap()
        });
        assert_eq!(pool.stats().scratch, Bytes(0), "what crossed is given back");
    }
}

#[test]
fn cache_rows_copied_out_of_a_pool_and_back_are_identical() {
    let _lock = lock_host_pool();
    let pool = pool(None);
    let tensors = DeviceTensor::in_pool::<i8>(&pool, &[1, 2, 5, 3], 2).unwrap();
    let mut copies = [0, 1].map(|_| HostCopy::new::<i8>(&[1, 2, 4, 3]).unwrap());
    for (n, (tensor, copy)) in (0..).zip(tensors.iter().zip(&mut copies)) {
        copy.bytes_mut().iter_mut().zip(100 * n..).for_each(|(byte, n)| *byte = n);
        tensor.copy_in(copy, 4).unwrap();
    }
    for (tensor, copy) in tensors.iter().zip(&copies) {
        let mut first = HostCopy::new::<i8>(&[1, 2, 3, 3]).unwrap();
        tensor.copy_out(&mut first).unwrap();
        assert_eq!(first.bytes(), [&copy.bytes()[..9], &copy.bytes()[12..21]].concat());
        assert!(tensor.copy_in(copy, 5).is_err());
    }
}

/// A directory for saved prompts, with its setting.
struct Place {
    dir: tempfile::TempDir,
    setting: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setting = format!("engine.prefix_cache_dir={}", dir.path().join("prompts").display());
        Self { dir, setting }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("prompts/{name}.safetensors"))
    }

    async fn start(&self, flags: &[&str]) -> Program {
        self.start_on("cpu", flags).await
    }

    async fn start_on(&self, device: &str, flags: &[&str]) -> Program {
        Program::start(&[&["--device", device, "--set", &self.setting], flags].concat()).await
    }
}

fn messages(n: usize) -> Value {
    json!([{ "role": "user", "content": expected()[n].prompt }])
}

/// Asks for a chapter of the phrasebook, whose answer is known; how much of the prompt was kept, and how long it is.
async fn right(program: &Program, n: usize) -> [u64; 2] {
    let (status, answer) =
        program.ask("/generate-lite", &json!({ "messages": messages(n), "temperature": 0 })).await;
    assert_eq!((status, &answer["text"]), (200, &json!(expected()[n].text)), "{}", program.log());
    let usage = &answer["usage"];
    [&usage["prompt_tokens_details"]["cached_tokens"], &usage["prompt_tokens"]].map(|n| n.as_u64().unwrap())
}

async fn done(program: &Program, order: &Value) -> Value {
    let (status, answer) = program.ask(CACHE, order).await;
    assert_eq!(status, 200, "{order} {answer}\n{}", program.log());
    answer
}

async fn save(program: &Program, name: &str, n: usize) -> Value {
    done(program, &json!({ "action": "save", "name": name, "messages": messages(n) })).await
}

async fn restored(program: &Program, name: &str) -> Value {
    done(program, &json!({ "action": "restore", "name": name })).await
}

async fn list(program: &Program) -> Vec<Value> {
    let answer = program.client.get(format!("{}{CACHE}", program.url)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["object"], "list");
    serde_json::from_value(answer["data"].take()).unwrap()
}

/// Status, code and message of a rejected request.
async fn refused(program: &Program, order: &Value) -> (u16, String, String) {
    let (status, answer) = program.ask(CACHE, order).await;
    let told = |field: &str| answer["error"][field].as_str().unwrap_or_default().to_owned();
    (status, told("code"), told("message"))
}

#[tokio::test]
async fn a_saved_prompt_is_restored_by_the_next_server_with_the_same_answer() {
    let place = Place::new();
    let program = place.start(&[]).await;
    assert!(list(&program).await.is_empty());
    let [_, length] = right(&program, 0).await;
    let saved = save(&program, "greeting", 0).await;
    assert_eq!((&saved["saved"]["tokens"], &saved["cached_tokens"]), (&json!(length), &json!(length - 1)));
    let bytes = fs::metadata(place.file("greeting")).unwrap().len();
    assert_eq!(saved["saved"]["bytes"], bytes);
    assert_eq!(list(&program).await, [saved["saved"].clone()]);
    assert_eq!((&saved["saved"]["model"], &saved["saved"]["kv_cache"]), (&json!("demo"), &json!("float32")));
    assert_eq!(saved["saved"]["error"], Value::Null);
    drop(program);

    let program = place.start(&[]).await;
    assert_eq!(list(&program).await, [saved["saved"].clone()]);
    let answer = restored(&program, "greeting").await;
    assert_eq!(answer["saved"], saved["saved"]);
    let memory = &answer["done"]["memory"];
    assert!(memory["after"]["prefix_cache"].as_u64() > memory["before"]["prefix_cache"].as_u64());
    assert_eq!(right(&program, 0).await, [length - 1, length]);
    // Others come and go, and so do their prompts.
    for n in 1..10 {
        right(&program, n).await;
    }
    assert_eq!(right(&program, 0).await, [length - 1, length]);
    let metrics = program.metrics().await;
    let line = "eka_saved_prompts_total{action=\"restore\",outcome=\"ok\"} 1";
    assert!(metrics.contains(line));
}

#[tokio::test]
async fn a_restored_prompt_survives_workers_and_loads_until_trim_or_delete() {
    let place = Place::new();
    let models = base_only_model();
    let program = place.start(&["--models", argument(models.path())]).await;
    let length = save(&program, "greeting", 0).await["saved"]["tokens"].as_u64().unwrap();
    restored(&program, "greeting").await;
    send_signal("KILL", program.worker_pid());
    // What the worker was given before it was known to be gone would go on without waiting for it.
    let is_restored = || program.logged("prompt_restored").len() == 2;
    eventually("the next worker to have it", is_restored).await;
    assert_eq!(right(&program, 0).await, [length - 1, length], "another worker");
    assert_eq!(program.ask("/admin/models/demo/unload", &json!({})).await.0, 200);
    assert_eq!(right(&program, 0).await, [length - 1, length], "the model was loaded again");
    // Switching to another model clears the prefix cache but not restored prompts.
    let other = json!({ "model": "base-only", "prompt": "Once upon a time", "max_new_tokens": 2 });
    assert_eq!(program.ask("/generate-lite", &other).await.0, 200);
    assert_eq!(right(&program, 0).await, [length - 1, length], "another model had its turn");

    assert_eq!(program.ask("/admin/trim", &json!({})).await.0, 200);
    assert_eq!(right(&program, 0).await, [0, length]);
    restored(&program, "greeting").await;
    let gone = done(&program, &json!({ "action": "delete", "name": "greeting" })).await;
    assert!(!place.file("greeting").exists() && list(&program).await.is_empty());
    let memory = &gone["done"]["memory"];
    assert!(memory["after"]["prefix_cache"].as_u64() < memory["before"]["prefix_cache"].as_u64(), "{gone}");
    send_signal("KILL", program.worker_pid());
    assert_eq!(right(&program, 0).await, [0, length], "what was deleted is not restored again");
}

#[tokio::test]
async fn a_missing_or_damaged_file_is_not_restored_again() {
    let place = Place::new();
    let program = place.start(&[]).await;
    let length = save(&program, "greeting", 0).await["saved"]["tokens"].as_u64().unwrap();
    restored(&program, "greeting").await;
    fs::write(place.file("greeting"), "damaged").unwrap();
    send_signal("KILL", program.worker_pid());
    assert_eq!(right(&program, 0).await, [0, length]);
    program.has_logged("prompt_restore_failed").await;
}

#[tokio::test]
async fn a_save_continues_on_the_next_worker() {
    let place = Place::new();
    let program = place.start(&["--faults", "crash@prefill:1", "--set", "engine.prefill_chunk=8"]).await;
    let saved = save(&program, "greeting", 0).await;
    assert!(place.file("greeting").exists(), "{saved}");
    program.has_logged("job_resumed").await;
    restored(&program, "greeting").await;
    let left: Vec<_> = fs::read_dir(place.file("").parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn a_conversation_is_saved_up_to_the_next_message() {
    let place = Place::new();
    let program = place.start(&[]).await;
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let begun =
        [turn("user", "Translate to Hindi: Good morning, friend."), turn("assistant", "सुप्रभात, दोस्त।")];
    let order = json!({ "action": "save", "name": "begun", "messages": begun });
    let tokens = done(&program, &order).await["saved"]["tokens"].as_u64().unwrap();
    assert!(tokens > 20, "{tokens}");
    drop(program);
    let program = place.start(&[]).await;
    restored(&program, "begun").await;
    for next in ["Translate to Urdu: Good night.", "1 and 2", "(what?)", "क्या?"] {
        let messages = [&begun[..], &[turn("user", next)]].concat();
        let request = json!({ "messages": messages, "max_new_tokens": 2, "temperature": 0 });
        let (status, answer) = program.ask("/generate-lite", &request).await;
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(status == 200 && cached >= tokens, "{next}: {cached} of {tokens}");
    }
}

#[tokio::test]
async fn two_devices_share_the_file_and_each_restores_it() {
    let place = Place::new();
    let program = place.start_on("cpu,cpu", &[]).await;
    let length = save(&program, "greeting", 0).await["saved"]["tokens"].as_u64().unwrap();
    let answer = restored(&program, "greeting").await;
    let devices = answer["done"]["devices"].as_array().unwrap();
    assert!(devices.len() == 2 && devices.iter().all(|one| one["memory"].is_object()), "{answer}");
    for _ in 0..4 {
        assert_eq!(right(&program, 0).await, [length - 1, length]);
    }
}

#[tokio::test]
async fn saved_prompts_of_another_model_or_cache_type_and_damaged_ones_are_rejected() {
    let place = Place::new();
    let program = place.start(&["--set", "engine.kv_cache=float16"]).await;
    save(&program, "halves", 0).await;
    let file = fs::read(place.file("halves")).unwrap();
    drop(program);
    let models = base_only_model();
    let program = place.start(&["--models", argument(models.path())]).await;
    save(&program, "greeting", 0).await;
    let restore = |name: &str| json!({ "action": "restore", "name": name });
    let (status, code, message) = refused(&program, &restore("halves")).await;
    assert_eq!((status, code.as_str()), (409, "saved_prompt_unusable"));
    assert!(message.contains("are float16, expected float32"), "{message}");
    let other = json!({ "action": "restore", "name": "greeting", "model": "base-only" });
    let (status, _, message) = refused(&program, &other).await;
    assert!(
        status == 409
            && message
                .contains("another export of the model (demo), not by the one that is loaded as base-only"),
        "{message}"
    );
    let mut damaged = fs::read(place.file("greeting")).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(place.file("greeting"), &damaged).unwrap();
    assert!(refused(&program, &restore("greeting")).await.2.contains("SHA-256"));
    fs::write(place.file("cut"), &file[..file.len() / 2]).unwrap();
    assert!(refused(&program, &restore("cut")).await.2.contains("truncated or corrupt"));
    let listed = list(&program).await;
    assert_eq!(listed.iter().map(|one| one["error"].is_null()).collect::<Vec<_>>(), [false, true, true]);
    // Other prompts are not affected.
    right(&program, 0).await;
}

#[tokio::test]
async fn invalid_cache_requests_are_rejected_with_name_value_and_fix() {
    let place = Place::new();
    fs::create_dir(place.dir.path().join("prompts")).unwrap();
    let program = place.start(&["--set", "engine.prefix_cache_bytes=8192"]).await;
    let save = |more: Value| {
        let mut order = json!({ "action": "save", "name": "a" });
        order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        order
    };
    let wrong = [
        (json!({}), "missing_field", "action is required"),
        (json!({ "action": "save" }), "missing_field", "name is required"),
        (
            json!({ "action": "erase", "name": "a" }),
            "invalid_value",
            r#"expected "save", "restore" or "delete""#,
        ),
        (json!({ "action": "save", "name": "../a" }), "invalid_value", "invalid name for a saved prompt"),
        (save(json!({})), "missing_field", "prompt or messages is required"),
        (save(json!({ "prompt": "a", "messages": messages(0) })), "invalid_value", "send one of them"),
        (save(json!({ "prompt": "" })), "empty_prompt", "empty"),
        (save(json!({ "prompt": [1, 999_999] })), "invalid_value", "prompt[1] is 999999"),
        (save(json!({ "prompt": "a", "max_tokens": 4 })), "unknown_field", "max_tokens"),
        (
            save(json!({ "prompt": vec![5; 512] })),
            "context_length_exceeded",
            "your messages resulted in 512 tokens",
        ),
        (json!({ "action": "restore", "name": "a", "prompt": "b" }), "unknown_field", "prompt"),
        (json!({ "action": "delete", "name": "a", "model": "demo" }), "unknown_field", "model"),
    ];
    for (order, code, said) in wrong {
        let (status, found, message) = refused(&program, &order).await;
        assert_eq!((status, found.as_str()), (400, code), "{order} {message}");
        assert!(message.contains(said), "{order} {message}");
    }
    for action in ["restore", "delete"] {
        let (status, code, message) = refused(&program, &json!({ "action": action, "name": "none" })).await;
        assert_eq!((status, code.as_str()), (404, "saved_prompt_not_found"));
        assert!(message.contains("\"none\"") && message.contains("GET /admin/cache"), "{message}");
    }
    let unknown = refused(&program, &save(json!({ "prompt": "a", "model": "none" }))).await;
    assert_eq!((unknown.0, unknown.1.as_str()), (404, "model_not_found"));
    // A prompt that exceeds this server's cache is saved too, for a server with more memory.
    done(&program, &save(json!({ "prompt": vec![5; 200] }))).await;
    let (status, _, message) = refused(&program, &json!({ "action": "restore", "name": "a" })).await;
    assert!(status == 409 && message.contains("engine.prefix_cache_bytes leaves 8.00 KiB"), "{message}");
    // Where nothing can be written.
    fs::remove_dir_all(place.dir.path().join("prompts")).unwrap();
    fs::write(place.dir.path().join("prompts"), "a file in its place").unwrap();
    let (status, code, message) = refused(&program, &save(json!({ "prompt": "a" }))).await;
    assert_eq!((status, code.as_str()), (500, "saved_prompt_failed"), "{message}");
    assert!(!message.contains(argument(place.dir.path())), "{message}");
    eventually("the error's code", || program.log().contains("code=\"saved_prompt_failed\"")).await;
    let method = program.client.put(format!("{}{CACHE}", program.url)).send().await.unwrap();
    assert_eq!(method.status(), 405);
    assert_eq!(method.headers()["allow"], "GET, HEAD, POST");
}

#[tokio::test]
async fn admin_cache_needs_admin_access() {
    const ADMIN: &str = "admin-0123456789abcdef";
    const ASHA: &str = "asha-0123456789abcdef";
    let place = Place::new();
    let keys = place.dir.path().join("keys.toml");
    let text = format!(
        "[[key]]\nname = \"admin\"\nkey = \"{ADMIN}\"\nadmin = true\n[[key]]\nname = \"asha\"\nkey = \"{ASHA}\"\n"
    );
    fs::write(&keys, text).unwrap();
    let setting = format!("auth.keys_file={}", keys.display());
    let program = place.start(&["--set", &setting]).await;
    let order = json!({ "action": "save", "name": "a", "prompt": "Once upon a time" });
    for (key, expected) in [(None, 401), (Some(ASHA), 403), (Some(ADMIN), 200)] {
        let with = |request: reqwest::RequestBuilder| match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let posted = with(program.post(CACHE, &order)).send().await.unwrap();
        let listed = with(program.client.get(format!("{}{CACHE}", program.url))).send().await.unwrap();
        assert_eq!([posted.status().as_u16(), listed.status().as_u16()], [expected; 2], "{key:?}");
    }
    drop(program);
    let program = place.start(&[]).await;
    let page = program.post(CACHE, &order).header("origin", "https://evil.example").send().await.unwrap();
    assert_eq!(page.status(), 403, "no page of another origin");
    // The scripted server has no workers that could run the command.
    let server = Server::start(ServerOptions::default());
    assert_eq!(server.post(CACHE, &order).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn admin_cache_matches_the_openapi_document() {
    let place = Place::new();
    let program = place.start(&[]).await;
    let document = program.get("/openapi.json").await;
    let document = closed(document.json().await.unwrap());
    let route = &document["paths"][CACHE];
    let request = &route["post"]["requestBody"]["content"]["application/json"]["schema"];
    // They are described in the order of their names, and make sense in this one.
    let mut examples: Vec<_> = examples(&route["post"]).collect();
    examples.sort_by_key(|example| ["save", "restore", "delete"].map(|action| example["action"] != action));
    for example in examples {
        check(&validator(&document, request), example, "an example");
        let (status, answer) = program.ask(CACHE, example).await;
        assert_eq!(status, 200, "{example} {answer}");
        check(&validator(&document, schema_of(&route["post"], 200)), &answer, "an answer");
        let listed = program.client.get(format!("{}{CACHE}", program.url)).send().await.unwrap();
        let listed: Value = listed.json().await.unwrap();
        check(&validator(&document, schema_of(&route["get"], 200)), &listed, "the list");
    }
    let missing = json!({ "action": "delete", "name": "support" });
    let (status, answer) = program.ask(CACHE, &missing).await;
    check(&validator(&document, schema_of(&route["post"], status)), &answer, "a refusal");
    assert!(!Path::new(&place.file("support")).exists());
}
