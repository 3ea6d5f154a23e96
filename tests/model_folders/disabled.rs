//! Unusable models next to a usable one.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{
    files::{copy, cut, make_fifo},
    model_folder::Folder,
    program::{Program, argument, run, text},
    server::eventually,
};

/// A name, the damage to a copy of the model, and a part of the reason that clients see.
type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: [Damage; 8] = [
    (
        "template",
        |dir| fs::write(dir.join("chat_template.jinja"), "{% for %}").unwrap(),
        "chat_template.jinja: the chat template is not valid",
    ),
    (
        "nested",
        |dir| {
            let nested = ["(", ")"].map(|bracket| bracket.repeat(100_000)).join("1");
            fs::write(dir.join("chat_template.jinja"), format!("{{{{ {nested} }}}}")).unwrap();
        },
        "chat_template.jinja: the chat template is not valid",
    ),
    ("tokenizer", |dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap(), "tokenizer.json: "),
    (
        "fifo",
        |dir| {
            fs::remove_file(dir.join("tokenizer_config.json")).unwrap();
            make_fifo(&dir.join("tokenizer_config.json"));
        },
        "tokenizer_config.json: it is a FIFO",
    ),
    ("manifest", |dir| fs::remove_file(dir.join("eka.json")).unwrap(), "its directory is incomplete"),
    ("weights", |dir| cut(&dir.join("model.onnx.data"), 4096), "model.onnx.data: truncated: "),
    (
        "graph",
        |dir| fs::write(dir.join("model.onnx"), "no graph").unwrap(),
        "model.onnx: it is not an ONNX model",
    ),
    (
        "vocabulary",
        |dir| {
            let manifest = fs::read_to_string(dir.join("eka.json")).unwrap();
            let changed = manifest.replace("\"vocab\": ", "\"vocab\": 1");
            fs::write(dir.join("eka.json"), changed).unwrap();
        },
        "model.onnx: \"logits\" is float32",
    ),
];

async fn get(program: &Program, path: &str) -> Value {
    let response = program.client.get(format!("{}{path}", program.url)).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.unwrap()
}

#[tokio::test]
async fn a_broken_model_is_disabled_with_a_reason_and_others_are_served() {
    let folder = Folder::new();
    let models = tempfile::tempdir().unwrap();
    for (name, damage, _) in DAMAGES {
        let dir = models.path().join(name);
        copy(&folder.path(), &dir);
        damage(&dir);
    }
    let program =
        Program::start(&["--model", argument(&folder.path()), "--models", argument(models.path())]).await;
    let request = json!({ "prompt": "Once", "max_new_tokens": 2 });
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["model"]), (200, &json!("model")), "{answer}");
    let list = get(&program, "/v1/models").await;
    let listed = list["data"].as_array().unwrap();
    assert_eq!((listed.len(), &listed[0]["eka"]["status"]), (9, &json!("available")));
    let folder_name = models.path().file_name().unwrap().to_str().unwrap();
    for (name, _, reason) in DAMAGES {
        let one = get(&program, &format!("/v1/models/{name}")).await;
        assert_eq!(one["eka"]["status"], "unavailable", "{one}");
        assert!(one["eka"]["error"].as_str().unwrap().contains(reason), "{one}");
        let (status, refused) =
            program.ask("/v1/completions", &json!({ "model": name, "prompt": "a" })).await;
        assert_eq!((status, &refused["error"]["code"]), (503, &json!("model_unavailable")), "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().contains(reason), "{refused}");
        assert!(!refused.to_string().contains(folder_name), "{refused}");
        let model = format!("model=\"{name}\"");
        let is_logged = || program.logged("model_unavailable").iter().any(|line| line.contains(&model));
        eventually(name, is_logged).await;
    }
}

#[tokio::test]
async fn a_broken_first_model_is_not_replaced_by_another() {
    let folder = Folder::new();
    let models = tempfile::tempdir().unwrap();
    copy(&folder.path(), &models.path().join("other"));
    fs::write(folder.file("chat_template.jinja"), "{% for %}").unwrap();
    let program =
        Program::start(&["--model", argument(&folder.path()), "--models", argument(models.path())]).await;
    let mut request = json!({ "prompt": "Once", "max_new_tokens": 2 });
    let (status, refused) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("model_unavailable")), "{refused}");
    request["model"] = json!("other");
    let (status, answer) = program.ask("/generate-lite", &request).await;
    assert_eq!((status, &answer["model"]), (200, &json!("other")), "{answer}");
}

#[test]
fn without_a_usable_model_the_server_exits_with_the_reason() {
    let folder = Folder::new();
    let template = folder.file("chat_template.jinja");
    fs::write(&template, "{% for %}").unwrap();
    let refused = run(&["serve", "--port", "0", "--model", argument(&folder.path())]);
    let error = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{error}");
    assert!(
        error.contains(argument(&template)) && error.contains("remove it to serve only prompts"),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_model_name_that_is_not_utf_8_disables_only_that_model() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let folder = Folder::new();
    let models = tempfile::tempdir().unwrap();
    copy(&folder.path(), &models.path().join("good"));
    copy(&folder.path(), &models.path().join(OsStr::from_bytes(b"bad\xff")));
    let path = folder.path();
    let flags = ["--model", argument(&path), "--model-id", "first", "--models", argument(models.path())];
    let program = Program::start(&flags).await;
    for (model, status) in [("bad\u{fffd}", 503), ("good", 200), ("first", 200)] {
        let (answered, answer) = program
            .ask("/v1/completions", &json!({ "model": model, "prompt": "Once", "max_tokens": 2 }))
            .await;
        assert_eq!(answered, status, "{model}: {answer}");
    }
}
