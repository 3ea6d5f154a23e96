//! The first steps of a new user: wrong paths and flags, Ctrl-C, a checkpoint as it is published, models by name.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    files::names,
    processes::send_signal,
    program::{Program, argument, cache_setting, eka, root, run, text},
};

/// The lines of an error on stderr.
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn a_model_that_does_not_exist_is_said_with_the_nearest_name() {
    let demo = root().join("models/demo");
    let misspelt = root().join("models/dmeo");
    let error = refused(&run(&["serve", "--port", "0", "--model", argument(&misspelt)]));
    let expected = format!("{} does not exist: did you mean {}?", misspelt.display(), demo.display());
    assert!(error.contains(&expected), "{error}");
    let error = refused(&run(&["serve", "--port", "0", "--model", "nothing-like-it"]));
    assert!(error.contains("nothing-like-it does not exist; set model.path or --model"), "{error}");
    let error = refused(&run(&["serve", "--port", "0", "--model", argument(&demo.join("adapter"))]));
    assert!(error.contains("is a LoRA adapter, not a model; export it with its base"), "{error}");
}

#[test]
fn a_device_that_cannot_be_used_is_said_once() {
    let model = argument(&root().join("models/demo")).to_owned();
    let cache = cache_setting();
    for command in [&["serve", "--port", "0"][..], &["generate", "x"]] {
        let error =
            refused(&run(&[command, &["--model", &model, "--device", "cuda:77", "--set", &cache]].concat()));
        assert_eq!(error.matches("cannot be used").count(), 1, "{error}");
        assert_eq!(error.matches("error:").count(), 1, "{error}");
    }
}

#[test]
fn the_usage_of_a_command_is_the_same_whatever_the_environment_sets() {
    let usage = |environment: &[(&str, &str)], arguments: &[&str]| {
        let output = eka(arguments).envs(environment.iter().copied()).output().unwrap();
        let error = refused(&output);
        error.lines().find(|line| line.starts_with("Usage: ")).unwrap().to_owned()
    };
    let set = [("EKA_ENGINE_DEVICE", "cpu"), ("EKA_ONNXRUNTIME_DIR", "/x"), ("OPENAI_API_KEY", "x")];
    for arguments in [&["export"][..], &["export", "--bogus"], &["bench", "--bogus"], &["smoke", "--bogus"]] {
        assert_eq!(usage(&set, arguments), usage(&[], arguments), "{arguments:?}");
    }
    assert_eq!(usage(&set, &["export"]), "Usage: eka export [OPTIONS] --out <DIR>");
}

#[test]
fn help_lists_the_flags_that_a_command_uses() {
    let help = |command: &str| text(&run(&[command, "--help"]).stdout);
    for (command, has, lacks) in [
        ("serve", &["--port", "--queue", "--model ", "--listen"][..], &["--temperature"][..]),
        (
            "generate",
            &["--model ", "--temperature", "--threads"],
            &["--port", "--queue", "--listen", "--join"],
        ),
        ("run", &["<MODEL>", "--temperature"], &["--port", "--queue"]),
    ] {
        let help = help(command);
        has.iter().for_each(|flag| assert!(help.contains(flag), "{command} --help lacks {flag}"));
        lacks.iter().for_each(|flag| assert!(!help.contains(flag), "{command} --help lists {flag}"));
    }
}

#[test]
fn a_context_length_above_the_models_is_said() {
    let model = argument(&root().join("models/demo")).to_owned();
    let asked = ["generate", "x", "--max-new-tokens", "1", "--context-length", "70000", "--model", &model];
    let output = run(&[&asked[..], &["--set", &cache_setting()]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let warning = text(&output.stderr);
    assert!(warning.contains("engine.context_length is 70000 tokens, but demo has "), "{warning}");
}

#[test]
fn a_checkpoint_as_it_is_published_is_exported_and_run() {
    let sources = tempfile::tempdir().unwrap();
    let checkpoint = sources.path().join("published");
    fs::create_dir(&checkpoint).unwrap();
    for entry in fs::read_dir(root().join("models/demo/base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), checkpoint.join(entry.file_name())).unwrap();
    }
    let cache = format!("model.cache_dir={}", argument(&sources.path().join("cache")));
    let arguments =
        ["run", argument(&checkpoint), "Hello", "--max-new-tokens", "2", "--json", "--set", &cache];
    let output = run(&arguments);
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    assert_eq!((&answer["model"], &answer["usage"]["completion_tokens"]), (&json!("published"), &json!(2)));
}

/// A configuration of about 60 million weights.
fn large_config(at: &Path) {
    let fixture = root().join("tests/fixtures/llama/base/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    for (field, value) in
        [("num_hidden_layers", 6), ("hidden_size", 1024), ("head_dim", 256), ("intermediate_size", 2752)]
    {
        config[field] = json!(value);
    }
    fs::write(at, config.to_string()).unwrap();
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_an_export_removes_its_partial_folder_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    large_config(&config);
    let out = directory.path().join("models/large");
    let mut command = eka(&["export", "--random-weights", argument(&config), "--out", argument(&out)]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let parent = out.parent().unwrap();
    let is_writing = || parent.is_dir() && names(parent).iter().any(|name| name.contains(".partial-"));
    let begun = Instant::now();
    while !is_writing() {
        assert!(child.try_wait().unwrap().is_none(), "the export ended before");
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
    send_signal("INT", child.id());
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("SIGINT: removing what is written"), "{said}");
    assert!(said.contains("the export was cancelled; what it had written is removed"), "{said}");
    assert!(names(parent).is_empty(), "{:?}", names(parent));
}

#[tokio::test]
async fn list_rm_ps_and_stop_show_and_remove_models() {
    let cache = tempfile::tempdir().unwrap();
    let setting = format!("model.cache_dir={}", argument(cache.path()));
    let model = argument(&root().join("models/demo")).to_owned();
    let flags = ["--set", &setting, "--model", &model];
    let document = |arguments: &[&str]| -> Value {
        let output = run(&[arguments, &["--json"], &flags].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
    };
    let kinds = |listed: &Value| -> Vec<String> {
        listed["models"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["kind"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(kinds(&document(&["list"])), ["source"]);
    document(&["generate", "x", "--max-new-tokens", "1"]);
    let listed = document(&["list"]);
    assert_eq!(kinds(&listed), ["source", "cache"]);
    let export = listed["models"][1]["path"].as_str().unwrap();
    assert!(Path::new(export).is_dir() && listed["models"][1]["bytes"].as_u64().unwrap() > 1_000_000);

    let error = refused(&run(&[&["rm", "other"], &flags[..]].concat()));
    assert!(error.contains("other is not an export in"), "{error}");
    assert_eq!(document(&["rm", "demo"])["removed"][0]["path"], export);
    assert!(!Path::new(export).exists() && root().join("models/demo/base").is_dir());

    let program = Program::start(&[]).await;
    let url = ["--url", &program.url];
    let shown = text(&run(&[&["ps"], &url[..]].concat()).stdout);
    assert!(shown.starts_with("NAME") && shown.lines().nth(1).unwrap().starts_with("demo "), "{shown}");
    let unloaded = run(&[&["stop", "demo"], &url[..]].concat());
    assert_eq!(text(&unloaded.stdout), "unloaded demo\n", "{}", text(&unloaded.stderr));
    let missing = refused(&run(&[&["stop", "other"], &url[..]].concat()));
    assert!(missing.contains("404 model_not_found"), "{missing}");
}
