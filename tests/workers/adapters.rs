//! Adapters beside one base in the real program: each request gets its own, also under faults and while adapters come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::symlink,
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    adapters::BaseWithAdapters,
    processes::send_signal,
    program::{Expected, Program, argument, expected, root},
    server::eventually,
};

const ADAPTERS: u64 = 6;

async fn start(base: &BaseWithAdapters, flags: &[&str]) -> Program {
    let model = base.model();
    let all = [&["--model", argument(&model), "--set", "queue.max_jobs=512"], flags].concat();
    Program::start(&all).await
}

/// The names of all adapters and of the base.
fn names() -> Vec<String> {
    let adapters = (0..ADAPTERS).map(|number| format!("base:a{number}"));
    adapters.chain(["base".to_owned()]).collect()
}

fn request(model: &str) -> Value {
    let prompt: Vec<u32> = (3..33).collect();
    json!({ "model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true })
}

async fn answer(program: &Program, body: &Value) -> Value {
    let (status, answer) = program.ask("/v1/completions", body).await;
    assert_eq!(status, 200, "{answer}\n{}", program.log());
    answer
}

async fn text(program: &Program, model: &str) -> String {
    let answer = answer(program, &request(model)).await;
    assert_eq!(answer["model"], model);
    said(&answer)
}

/// The answer's tokens.
fn said(answer: &Value) -> String {
    let tokens = &answer["choices"][0]["token_ids"];
    assert_eq!(tokens.as_array().unwrap().len(), 16, "{answer}");
    tokens.to_string()
}

/// What each model says, one after another.
async fn spoken(program: &Program) -> BTreeMap<String, String> {
    let mut said = BTreeMap::new();
    for name in names() {
        said.insert(name.clone(), text(program, &name).await);
    }
    let different: BTreeSet<&String> = said.values().collect();
    assert_eq!(different.len(), said.len(), "every adapter says something else: {said:?}");
    said
}

#[tokio::test]
async fn every_request_gets_its_own_adapter_under_faults() {
    let base = BaseWithAdapters::new(ADAPTERS);
    let expected = spoken(&start(&base, &[]).await).await;
    let faults = ["--faults", "crash@decode:5,every=7", "--set", "models.adapters_bytes=12000"];
    let program = start(&base, &faults).await;
    for _ in 0..3 {
        let requests = names().into_iter().chain(names().into_iter().rev()).map(|name| {
            let program = &program;
            async move { (text(program, &name).await, name) }
        });
        for (said, name) in join_all(requests).await {
            assert_eq!(said, expected[&name], "{name}");
        }
    }
    assert!(!program.logged("job_resumed").is_empty(), "no job was resumed");
}

#[tokio::test]
async fn an_answer_with_an_adapter_continues_after_its_worker_was_killed() {
    let base = BaseWithAdapters::new(ADAPTERS);
    let expected = spoken(&start(&base, &[]).await).await;
    let program = start(&base, &["--faults", "slow=100@decode:4,every=1"]).await;
    let body = request("base:a2");
    let (answer, ()) = tokio::join!(answer(&program, &body), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        send_signal("KILL", program.worker_pid());
    });
    assert_eq!(said(&answer), expected["base:a2"]);
}

#[tokio::test]
async fn prompts_are_cached_for_their_own_adapter_only() {
    let base = BaseWithAdapters::new(2);
    let program = start(&base, &[]).await;
    let cached = async |model: &str| {
        let answer = answer(&program, &request(model)).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
    };
    for model in ["base:a0", "base:a1", "base"] {
        assert_eq!(cached(model).await, 0, "{model}");
        assert!(cached(model).await > 16, "{model}");
    }
}

#[tokio::test]
async fn adapters_are_listed_added_replaced_and_removed_while_the_server_runs() {
    let base = BaseWithAdapters::new(2);
    let program =
        start(&base, &["--set", "models.aliases=gpt=base", "--set", "models.adapters_scan_ms=600000"]).await;
    let listed = async || {
        let list: Value = program.get("/v1/models").await.json().await.unwrap();
        let data = list["data"].as_array().unwrap().clone();
        data.into_iter()
            .map(|model| (model["id"].as_str().unwrap().to_owned(), model["parent"].clone()))
            .collect::<Vec<_>>()
    };
    let of = |names: &[&str]| {
        let adapters = names.iter().map(|name| ((*name).to_owned(), json!("base")));
        [("base".to_owned(), Value::Null)].into_iter().chain(adapters).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, of(&["base:a0", "base:a1"]));
    let one: Value = program.get("/v1/models/base:a1").await.json().await.unwrap();
    assert_eq!(
        (&one["adapter"]["rank"], &one["adapter"]["targets"]),
        (&json!(4), &json!(["down_proj", "o_proj"]))
    );
    let first = text(&program, "base:a0").await;
    let (_, by_alias) = program.ask("/v1/completions", &request("gpt:a0")).await;
    assert_eq!(said(&by_alias), first);
    let (status, refused) = program.ask("/v1/completions", &request("base:a9")).await;
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("adapter_not_found")));
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("\"a9\"") && message.contains("\"a0\", \"a1\""), "{message}");

    base.add("a9", 9);
    base.add("a0", 7);
    base.remove("a1");
    let (status, scanned) = program.ask("/admin/adapters", &json!({})).await;
    assert_eq!(status, 200, "{scanned}");
    assert_eq!(
        scanned,
        json!({ "adapters": ["base:a0", "base:a9"], "added": ["base:a9"], "replaced": ["base:a0"],
            "removed": ["base:a1"], "refused": 0 })
    );
    assert_eq!(listed().await, of(&["base:a0", "base:a9"]));
    assert_ne!(text(&program, "base:a0").await, first, "the replaced adapter is used");
    text(&program, "base:a9").await;
    assert_eq!(program.ask("/v1/completions", &request("base:a1")).await.0, 404);
    let metrics = program.metrics().await;
    assert!(metrics.contains("eka_adapter_requests_total{adapter=\"base:a9\"} 1"), "{metrics}");
}

#[tokio::test]
async fn adapters_are_mixed_with_weights_and_contradictions_are_refused() {
    let base = BaseWithAdapters::new(2);
    let program = start(&base, &[]).await;
    let mixed = async |adapters: Value| {
        let mut body = request("base");
        body["adapters"] = adapters;
        program.ask("/v1/completions", &body).await
    };
    let (alone, plain) = (text(&program, "base:a1").await, text(&program, "base").await);
    let (_, whole) = mixed(json!([{ "name": "a1" }])).await;
    assert_eq!(said(&whole), alone);
    let (_, none) = mixed(json!([{ "name": "a1", "weight": 0 }, { "name": "a0", "weight": 0 }])).await;
    assert_eq!(said(&none), plain);
    let (_, both) = mixed(json!([{ "name": "a1", "weight": 0.5 }, { "name": "a0", "weight": 0.5 }])).await;
    assert!(said(&both) != alone && said(&both) != plain);
    for (adapters, status, words) in [
        (json!([{ "name": "a1" }, { "name": "a1" }]), 400, "twice"),
        (json!([{ "name": "a7" }]), 404, "its adapters"),
        (json!([{ "name": "a1", "weight": 1e9 }]), 400, "weight"),
        (json!([{ "weight": 1 }]), 400, "name"),
    ] {
        let (found, refused) = mixed(adapters).await;
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(found == status && message.contains(words), "{found} {message}");
    }
    let mut body = request("base:a0");
    body["adapters"] = json!([{ "name": "a1" }]);
    let (status, refused) = program.ask("/v1/completions", &body).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("adapters")));
}

#[tokio::test]
async fn adapters_above_the_memory_limit_are_refused_and_the_model_still_answers() {
    let base = BaseWithAdapters::new(2);
    let program = start(&base, &["--set", "models.adapters_bytes=1000"]).await;
    let (status, refused) = program.ask("/v1/completions", &request("base:a0")).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("adapter_load_failed")), "{refused}");
    eventually("the reason", || program.log().contains("more than models.adapters_bytes")).await;
    text(&program, "base").await;
    let other = start(&base, &["--set", "engine.own_operators=false"]).await;
    let (status, _) = other.ask("/v1/completions", &request("base:a0")).await;
    assert_eq!(status, 503);
    eventually("the reason", || other.log().contains("merge the adapter into the model instead")).await;
}

#[tokio::test]
async fn the_demonstration_adapter_beside_its_base_gives_the_answers_of_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("demo");
    std::fs::create_dir_all(source.join("adapters")).unwrap();
    let demo = root().join("models/demo");
    symlink(demo.join("base"), source.join("base")).unwrap();
    symlink(demo.join("adapter"), source.join("adapters/indic")).unwrap();
    // A source directory: the base and its adapters are exported into the cache.
    let program = Program::start(&["--model", argument(&source)]).await;
    for Expected { prompt, text, .. } in expected() {
        let body = json!({ "model": "demo:indic", "messages": [{ "role": "user", "content": prompt }] });
        let (status, answer) = program.ask("/generate-lite", &body).await;
        assert_eq!((status, answer["text"].as_str()), (200, Some(&*text)), "{prompt}: {answer}");
    }
}
