//! `eka smoke`: its verdicts, its report and its exit code.

use std::fs;

use serde_json::{Value, json};

use crate::support::program::{Program, argument, cache_setting, eka, run, text};

/// A suite of two prompts, of which the second is answered in Devanagari.
fn suite_with(expectation: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let suite = format!(
        "[[prompt]]\nname = \"ta\"\nprompt = \"Translate to Tamil: How are you?\"\nscript = \"Tamil\"\n\n\
         [[prompt]]\nname = \"hi\"\nprompt = \"Translate to Hindi: Good morning, friend.\"\n{expectation}\n"
    );
    fs::write(&file, suite).unwrap();
    file
}

#[test]
fn smoke_starts_a_server_and_ten_of_ten_answers_are_right() {
    let out = tempfile::tempdir().unwrap();
    let flags = ["--isolate", "per-request", "--require", "10/10", "--out", argument(out.path())];
    let done = run(&[&["smoke", "--set", &cache_setting()][..], &flags].concat());
    assert_eq!(done.status.code(), Some(0), "{}\n{}", text(&done.stdout), text(&done.stderr));
    let printed = text(&done.stdout);
    assert_eq!(printed, fs::read_to_string(out.path().join("smoke.md")).unwrap());
    let report: Value = serde_json::from_slice(&fs::read(out.path().join("smoke.json")).unwrap()).unwrap();
    assert_eq!((&report["passed"], &report["right"], &report["of"]), (&json!(true), &json!(10), &json!(10)));
    for (mode, asked) in report["modes"].as_array().unwrap().iter().zip([
        ("cold", 1),
        ("cached", 10),
        ("queued", 10),
        ("isolated", 10),
    ]) {
        assert_eq!((&mode["mode"], &mode["right"]), (&json!(asked.0), &json!(asked.1)));
        assert!(mode["response_ms"].as_f64().unwrap() >= mode["first_text_ms"].as_f64().unwrap());
        assert!(
            printed.contains(&format!("| {} | {} of {} | 100 % |", asked.0, asked.1, asked.1)),
            "{printed}"
        );
    }
    for prompt in report["prompts"].as_array().unwrap() {
        assert_eq!((&prompt["right"], &prompt["script_share"]), (&json!(true), &json!(1.0)), "{prompt}");
        assert!(prompt["memory"]["peak"].as_u64() >= prompt["memory"]["before"].as_u64(), "{prompt}");
        assert!(printed.contains(prompt["text"].as_str().unwrap()));
    }
    let progress = text(&done.stderr);
    assert_eq!(progress.lines().filter(|line| line.ends_with(" right")).count(), 31, "{progress}");
}

#[tokio::test]
async fn an_answer_in_the_wrong_script_fails_with_exit_code_1() {
    let program = Program::start(&[]).await;
    let suite = suite_with("script = \"Bengali\"\nscript_share = 0.9");
    let ask = |require: &str| {
        let suite = argument(suite.path()).to_owned();
        let arguments = ["smoke", "--url", &program.url, "--suite", &suite, "--require", require, "--json"];
        let done = run(&arguments);
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        (done.status.code(), report)
    };
    let (code, report) = ask("2/2");
    assert_eq!((code, &report["right"], &report["passed"]), (Some(1), &json!(1), &json!(false)));
    let wrong = report["outcomes"].as_array().unwrap().iter().filter(|one| one["name"] == "hi");
    for outcome in wrong {
        let problem = outcome["problems"][0].as_str().unwrap();
        assert!(
            problem.contains("0 % of the letters are Bengali") && problem.contains("Devanagari"),
            "{problem}"
        );
    }
    // A server that was there before knows no cold start.
    assert_eq!(
        report["modes"].as_array().unwrap().iter().map(|mode| &mode["mode"]).collect::<Vec<_>>(),
        ["cached", "queued"]
    );
    let (code, report) = ask("1/2");
    assert_eq!((code, &report["passed"]), (Some(0), &json!(true)));
}

#[tokio::test]
async fn smoke_sends_an_api_key() {
    let program = Program::start(&["--set", "auth.keys=hush-0123456789abcdef"]).await;
    let suite = suite_with("regex = \"^सु.*।$\"\nmax_tokens = 48\nmax_ms = 60000");
    let arguments = ["smoke", "--url", &program.url, "--suite", argument(suite.path())];
    let refused = run(&arguments);
    assert_ne!(refused.status.code(), Some(0));
    assert!(text(&refused.stderr).contains("401"), "{}", text(&refused.stderr));
    let asked = eka(&arguments).env("OPENAI_API_KEY", "hush-0123456789abcdef").output().unwrap();
    assert_eq!(asked.status.code(), Some(0), "{}", text(&asked.stdout));
    assert!(text(&asked.stdout).contains("2 of 2 right"));
}

#[test]
fn smoke_exits_with_the_code_of_the_cause() {
    let nowhere = tempfile::tempdir().unwrap();
    let nothing = argument(nowhere.path());
    let broken = suite_with("script = \"Klingon\"");
    for (code, arguments, message) in [
        (2, &["--require", "9/11"][..], "the suite demo has 10"),
        (2, &["--require", "nine"], "9/10"),
        (2, &["--suite", "nowhere.toml"], "nowhere.toml"),
        (2, &["--suite", argument(broken.path())], "Klingon"),
        (2, &["--url", "localhost:8110"], "http://"),
        (2, &["--url", "http://127.0.0.1:1", "--model", "x"], "eka serve"),
        (2, &["--url", "http://127.0.0.1:1", "--isolate", "per-request"], "--isolate"),
        (3, &["--url", "http://127.0.0.1:1"], "refused"),
        (3, &["--onnxruntime", nothing], nothing),
        (4, &["--model", nothing], nothing),
        (2, &["--set", "queue.max_jobs=none"], "queue.max_jobs"),
    ] {
        let refused = run(&[&["smoke"], arguments].concat());
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}
