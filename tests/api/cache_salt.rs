//! The number of cached tokens reveals nothing of another client's prompts.

use std::fs;

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::support::{
    processes::send_signal,
    program::{Program, argument},
};

const ASHA: &str = "asha-0123456789abcdef";
const RAVI: &str = "ravi-0123456789abcdef";
const HEAD: &str = "head-0123456789abcdef";

/// Every generating route, the field of its prompt, and how that begins: as no other route's.
const ROUTES: [(&str, &str, &str); 4] = [
    ("/generate-lite", "messages", "Rivers"),
    ("/v1/completions", "prompt", "Mountains"),
    ("/v1/chat/completions", "messages", "Forests"),
    ("/v1/responses", "input", "Oceans"),
];

/// A server with three keys. The file may go when it is read.
async fn with_keys(flags: &[&str]) -> (Program, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    let key = |name: &str, key: &str| format!("[[key]]\nname = \"{name}\"\nkey = \"{key}\"\n");
    let text = key("asha", ASHA) + &key("ravi", RAVI) + &key("head", HEAD) + "admin = true\n";
    fs::write(file.path(), text).unwrap();
    let keys = format!("auth.keys_file={}", argument(file.path()));
    let program = Program::start(&[&["--set", &keys], flags].concat()).await;
    (program, file)
}

async fn ask(program: &Program, key: &str, path: &str, body: &Value) -> (u16, Value) {
    let response = program.post(path, body).bearer_auth(key).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// How many tokens of a prompt of token ids were cached for a key.
async fn cached(program: &Program, key: &str, prompt: &[u32], more: Value) -> u64 {
    let mut body = json!({ "prompt": prompt, "max_new_tokens": 1, "temperature": 0 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = ask(program, key, "/generate-lite", &body).await;
    assert_eq!(status, 200, "{answer}");
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn prompt(from: u32) -> Vec<u32> {
    (from..from + 40).collect()
}

#[tokio::test]
async fn a_cached_prompt_is_reused_by_the_same_api_key_only() {
    let (program, _keys) = with_keys(&[]).await;
    let secret = prompt(20);
    for (key, expected) in [(ASHA, 0), (ASHA, 39), (RAVI, 0), (RAVI, 39), (ASHA, 39), (HEAD, 0)] {
        assert_eq!(cached(&program, key, &secret, json!({})).await, expected, "{key}");
    }
    let guess = [&secret[..20], &prompt(100)[..20]].concat();
    assert_eq!(cached(&program, ASHA, &guess, json!({})).await, 20, "its own prompt goes on otherwise");
    let seen = program.client.get(format!("{}/v1/slot", program.url)).bearer_auth(RAVI);
    let seen = seen.send().await.unwrap().text().await.unwrap();
    assert!(!seen.contains("asha") && !seen.contains("cached"), "{seen}");
}

#[tokio::test]
async fn prefix_cache_shared_shares_prompts_between_api_keys() {
    let (program, _keys) = with_keys(&["--set", "engine.prefix_cache_shared=true"]).await;
    let shared = prompt(20);
    for (key, expected) in [(ASHA, 0), (RAVI, 39), (HEAD, 39)] {
        assert_eq!(cached(&program, key, &shared, json!({})).await, expected, "{key}");
    }
    let salted = json!({ "cache_salt": "between us" });
    for (key, expected) in [(ASHA, 0), (RAVI, 39)] {
        assert_eq!(cached(&program, key, &shared, salted.clone()).await, expected, "{key}");
    }
}

#[tokio::test]
async fn a_cache_salt_keeps_prompts_apart_on_every_route() {
    let program = Program::start(&[]).await;
    for (path, field, beginning) in ROUTES {
        let text = format!("{beginning} have been there for longer than anybody who has ever seen them.");
        let of = |salt: Value| {
            let messages = json!([{ "role": "user", "content": text }]);
            let prompt = if field == "prompt" { json!(text) } else { messages };
            let mut body = json!({ field: prompt, "temperature": 0, "cache_salt": salt });
            body[if path == "/v1/responses" { "max_output_tokens" } else { "max_tokens" }] = json!(1);
            if path == "/generate-lite" {
                body.as_object_mut().unwrap().remove("max_tokens");
                body["max_new_tokens"] = json!(1);
            }
            body
        };
        for (salt, is_cached) in [
            (Value::Null, false),
            (json!("x"), false),
            (json!("x"), true),
            (json!("y"), false),
            (Value::Null, true),
        ] {
            let (status, answer) = program.ask(path, &of(salt.clone())).await;
            assert_eq!(status, 200, "{path}: {answer}");
            let usage = &answer["usage"];
            let details = [&usage["prompt_tokens_details"], &usage["input_tokens_details"]];
            let found = details.iter().find_map(|details| details["cached_tokens"].as_u64()).unwrap();
            let total = usage["prompt_tokens"].as_u64().or(usage["input_tokens"].as_u64()).unwrap();
            if is_cached {
                assert_eq!(found, total - 1, "{path} {salt}");
            } else {
                // What the chat template begins every conversation with is short, and other routes had it.
                assert!(found < total / 2, "{path} {salt}: {found} of {total}");
            }
        }
        for wrong in [json!(""), json!("s".repeat(257)), json!(7)] {
            let (status, refused) = program.ask(path, &of(wrong)).await;
            assert_eq!((status, &refused["error"]["param"]), (400, &json!("cache_salt")), "{refused}");
        }
    }
}

async fn admin(program: &Program, body: Value) -> (u16, Value) {
    ask(program, HEAD, "/admin/cache", &body).await
}

#[tokio::test]
async fn a_restored_prompt_serves_the_api_key_that_restored_it() {
    let dir = TempDir::new().unwrap();
    let prompts = format!("engine.prefix_cache_dir={}", argument(dir.path()));
    let (program, _keys) = with_keys(&["--set", &prompts]).await;
    let saved = prompt(20);
    let save = json!({ "action": "save", "name": "system", "prompt": saved });
    assert_eq!(admin(&program, save).await.0, 200);
    let restore = async |more: Value| {
        let mut body = json!({ "action": "restore", "name": "system" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        admin(&program, body).await
    };
    // No request has sent a prompt with this beginning, so the cached tokens were restored.
    let beginning = |key: &'static str, next: u32| {
        let prompt = [&saved[..], &prompt(next)].concat();
        let program = &program;
        async move { cached(program, key, &prompt, json!({ "cache_prompt": true })).await }
    };
    assert_eq!(restore(json!({})).await.0, 200);
    assert_eq!(beginning(RAVI, 100).await, 0, "it was restored for the admin's key");
    // A trim clears the prefix cache and restored prompts.
    let trim = async || assert_eq!(ask(&program, HEAD, "/admin/trim", &json!({})).await.0, 200);
    trim().await;
    assert_eq!(restore(json!({ "key": "asha" })).await.0, 200);
    assert_eq!(beginning(ASHA, 100).await, 40);
    assert_eq!(beginning(RAVI, 150).await, 0);

    // A worker that replaces another reads it again, for the same key.
    send_signal("KILL", program.worker_pid());
    assert_eq!(beginning(RAVI, 200).await, 0);
    assert_eq!(beginning(ASHA, 200).await, 40);
    trim().await;
    assert_eq!(restore(json!({ "shared": true })).await.0, 200);
    assert_eq!(beginning(RAVI, 250).await, 40, "it is everybody's now");

    for (wrong, param) in [
        (json!({ "key": "nobody" }), "key"),
        (json!({ "shared": true, "key": "asha" }), "shared"),
        (json!({ "shared": true, "cache_salt": "x" }), "shared"),
        (json!({ "cache_salt": "" }), "cache_salt"),
    ] {
        let (status, refused) = restore(wrong).await;
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)), "{refused}");
    }
}
