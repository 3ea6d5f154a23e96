//! The interface that scripts rely on: exit codes, JSON, `--quiet`, completions and man pages.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    models::exported,
    processes::send_signal,
    program::{argument, cache_setting, eka, expected, run, text},
};

const COMMANDS: [&str; 20] = [
    "serve",
    "gateway",
    "node",
    "generate",
    "run",
    "export",
    "export-adapter",
    "inspect",
    "list",
    "rm",
    "ps",
    "stop",
    "verify",
    "doctor",
    "bench",
    "smoke",
    "health",
    "settings",
    "completions",
    "man",
];

const REFERENCE: &str = "tests/fixtures/llama/expected.safetensors";

/// The one document on stdout.
fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output.stderr)))
}

#[test]
fn every_exit_code_is_in_the_documented_table() {
    let empty = tempfile::tempdir().unwrap();
    let nothing = argument(empty.path());
    let (cache, model) = (cache_setting(), exported("llama"));
    let broken = empty.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for entry in fs::read_dir(&model).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), broken.join(entry.file_name())).unwrap();
    }
    fs::write(broken.join("model.onnx"), "no graph").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (code, arguments) in [
        (0, &["inspect", &model][..]),
        (1, &["verify", &model, REFERENCE, "--atol", "0"]),
        (2, &["frobnicate"]),
        (2, &["generate", "x", "--temperature=-1"]),
        (2, &["generate", "", "--system", "x", "--max-new-tokens", "100000", "--set", &cache]),
        (2, &["generate", "--set", &cache]),
        (2, &["serve", "--set", "queue.max_jobs=none"]),
        (2, &["verify", &model, REFERENCE, "--logits", "none"]),
        (2, &["doctor", "--set", "queue.max_jobs=none"]),
        (3, &["bench", &model, "--onnxruntime", nothing]),
        (3, &["generate", "x", "--set", &cache, "--onnxruntime", nothing]),
        (3, &["serve", "--port", &port, "--set", &cache]),
        (3, &["doctor", "--onnxruntime", nothing]),
        (4, &["serve", "--port", "0", "--model", nothing]),
        (4, &["serve", "--port", "0", "--model", argument(&broken)]),
        (4, &["bench", argument(&broken)]),
        (4, &["inspect", nothing]),
        (4, &["export", "--base", nothing, "--out", argument(&empty.path().join("out"))]),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {}", text(&ended.stderr));
    }
}

#[test]
fn ctrl_c_exits_with_130_and_keeps_the_printed_text() {
    let first = &expected()[0];
    let faults = ["--faults", "slow=200@decode:2"];
    let arguments = ["generate", &first.prompt, "--set", &cache_setting(), "--json"];
    let mut command = eka(&[&arguments[..], &faults].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The worker logs the slow step when it begins.
    let mut child = child;
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("slow=200") {
        line.clear();
        assert!(
            std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0,
            "it ended before the slow step"
        );
    }
    send_signal("INT", child.id());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let answer = document(&ended);
    assert_eq!(answer["finish_reason"], "cancelled");
    let partial = answer["text"].as_str().unwrap();
    assert!(partial.len() < first.text.len() && first.text.starts_with(partial), "{partial}");
}

#[test]
fn every_command_prints_json_with_the_flag() {
    let (cache, model) = (cache_setting(), exported("llama"));
    let out = tempfile::tempdir().unwrap();
    let exported = out.path().join("out");
    let corpus = out.path().join("text");
    let first = &expected()[0];
    fs::write(&corpus, &first.prompt).unwrap();
    let demo =
        ["--base", "models/demo/base", "--adapter", "models/demo/adapter", "--out", argument(&exported)];
    let export = [&["export", "--json", "--report", argument(&corpus)], &demo[..]].concat();
    let bench = ["bench", &model, "--prompt", "4", "--generate", "2", "--rounds", "1", "--json"];
    for (arguments, pointer, value) in [
        (&["generate", &first.prompt, "--json", "--set", &cache][..], "/text", json!(first.text)),
        (
            &["generate", &first.prompt, "--json", "--set", &cache],
            "/usage/completion_tokens",
            json!(first.tokens),
        ),
        (&["generate", &first.prompt, "--json", "--set", &cache], "/finish_reason", json!("stop")),
        (&["inspect", &model, "--json"], "/manifest/architecture", json!("llama")),
        (&["doctor", "--json"], "/healthy", json!(true)),
        (&["doctor", "--json"], "/findings/0/state", json!("ok")),
        (&["verify", &model, REFERENCE, "--json"], "/passed", json!(true)),
        (&["verify", &model, REFERENCE, "--json"], "/greedy/equal", json!(24)),
        (&bench, "/results/0/prompt_tokens", json!(4)),
        (&export, "/comparison/max_difference", json!(0.0)),
        (&["serve", "--print-config", "--json", "--port", "9"], "/server.port/value", json!(9)),
        (&["serve", "--print-config", "--json", "--port", "9"], "/server.port/origin", json!("--port")),
    ] {
        let done = run(arguments);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        let document = document(&done);
        assert_eq!(document.pointer(pointer), Some(&value), "{arguments:?}: {document}");
        if arguments[0] == "export" {
            fs::remove_dir_all(&exported).unwrap();
        }
    }
    let mut secret = eka(&["serve", "--print-config", "--json"]);
    let printed = text(&secret.env("EKA_AUTH_KEYS", "hush").output().unwrap().stdout);
    assert!(printed.contains("\"secret\": true") && !printed.contains("hush"), "{printed}");
}

#[test]
fn errors_are_json_with_the_flag() {
    for (arguments, code, name) in [
        (&["generate", "--json", "--frobnicate"][..], 2, "usage"),
        (&["inspect", "nowhere", "--json"], 4, "model"),
        (&["bench", "nowhere", "--json", "--onnxruntime", "nowhere"], 3, "machine"),
        (&["verify", "nowhere", "nowhere", "--json"], 2, "usage"),
        (&["export", "--base", "nowhere", "--out", "nowhere", "--json"], 4, "model"),
        (&["serve", "--print-config", "--json", "--set", "queue.max_jobs=none"], 2, "usage"),
    ] {
        let refused = run(arguments);
        let document: Value = serde_json::from_slice(&refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(code), "{document}");
        assert_eq!(
            (&document["error"]["code"], &document["error"]["exit_code"]),
            (&json!(name), &json!(code))
        );
        assert!(
            document["error"]["message"].as_str().is_some_and(|message| !message.is_empty()),
            "{document}"
        );
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn quiet_prints_nothing_on_stderr() {
    let first = &expected()[0];
    let answer = run(&["generate", &first.prompt, "--set", &cache_setting(), "--quiet"]);
    assert_eq!((text(&answer.stdout), text(&answer.stderr)), (format!("{}\n", first.text), String::new()));
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    let made = run(&["export", "--quiet", "--base", "models/demo/base", "--out", argument(&out)]);
    assert!(made.status.success() && made.stderr.is_empty(), "{}", text(&made.stderr));
    let healthy = run(&["doctor", "--quiet"]);
    assert!(healthy.status.success() && healthy.stdout.is_empty(), "{}", text(&healthy.stdout));
}

#[test]
fn a_prompt_may_be_read_from_stdin() {
    let first = &expected()[0];
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("prompt");
    fs::write(&file, &first.prompt).unwrap();
    let mut command = eka(&["generate", "--set", &cache_setting()]);
    let answer = command.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(text(&answer.stdout), format!("{}\n", first.text));
}

/// As `| head -c 0` does, before anything is written.
#[test]
fn a_closed_pipe_is_not_an_error() {
    let (cache, model) = (cache_setting(), exported("llama"));
    let prompt = &expected()[0].prompt;
    for arguments in [
        &["generate", prompt, "--set", &cache][..],
        &["generate", prompt, "--set", &cache, "--json"],
        &["inspect", &model],
        &["doctor"],
        &["verify", &model, REFERENCE],
        &["serve", "--print-config"],
        &["completions", "bash"],
        &["man"],
    ] {
        let mut command = eka(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let log = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {log}");
        assert!(!log.contains("panicked") && !log.contains("error"), "{arguments:?}: {log}");

        let mut child = command.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}, also of stderr");
    }
}

#[test]
fn completions_list_every_visible_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let made = run(&["completions", shell]);
        let script = text(&made.stdout);
        assert!(made.status.success(), "{}", text(&made.stderr));
        for command in COMMANDS {
            assert!(script.contains(command), "{command} is not in {shell}'s");
        }
        // As each shell's script writes a command; helps may speak of workers.
        let offers = |command: &str| {
            let spelt = ["(CMD)", "'CMD'", "'CMD:", "\"CMD\"", "eka__CMD", "eka__subcmd__CMD", "eka;CMD"];
            spelt.iter().any(|spelt| script.contains(&spelt.replace("CMD", command)))
        };
        assert!(offers("serve") && !offers("worker") && !script.contains("--faults"), "{shell}");
    }
}

#[test]
fn bash_completes_partial_words() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("eka.bash");
    fs::write(&script, run(&["completions", "bash"]).stdout).unwrap();
    let checked = Command::new("bash").args(["-n", argument(&script)]).status().unwrap();
    assert!(checked.success());
    for (words, typed, completed) in
        [("eka ver", "ver", "verify"), ("eka bench --roun", "--roun", "--rounds")]
    {
        let at = words.split(' ').count() - 1;
        let command = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD={at}; _eka eka '{typed}' x; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let shell = Command::new("bash").args(["--norc", "-c", &command]).output().unwrap();
        assert_eq!(text(&shell.stdout).trim(), completed, "{}", text(&shell.stderr));
    }
}

#[test]
fn there_is_a_man_page_for_each_command() {
    let directory = tempfile::tempdir().unwrap();
    let made = run(&["man", argument(directory.path())]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    for command in COMMANDS {
        assert!(read("eka.1").contains(&format!("eka\\-{}(1)", command.replace('-', "\\-"))), "{command}");
        let page = read(&format!("eka-{command}.1"));
        for section in ["NAME", "SYNOPSIS", "\"EXIT STATUS\"", "ENVIRONMENT", "FILES"] {
            assert!(page.contains(&format!(".SH {section}\n")), "{section} of {command}");
        }
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), COMMANDS.len() + 1);
    assert!(read("eka.1").contains("EKA_SERVER_PORT") && read("eka.1").contains("eka/history"));
    assert_eq!(text(&run(&["man"]).stdout), read("eka.1"));
}
