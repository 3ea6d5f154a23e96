//! Commands that run to their end: output, errors and exit codes.

use std::fs;

use crate::support::{
    files::OLD_LIBRARY,
    models::exported,
    program::{argument, cache, cache_setting, eka, expected, run, text},
};

#[test]
fn verify_matches_transformers_and_peft_on_the_fixtures() {
    for fixture in ["llama", "llama3-rope-rslora"] {
        let reference = format!("tests/fixtures/{fixture}/expected.safetensors");
        let merged = run(&["verify", &exported(fixture), &reference]);
        assert!(merged.status.success(), "{}", text(&merged.stdout));
        assert!(text(&merged.stdout).contains("24 of 24 tokens equal"), "{}", text(&merged.stdout));
        let base = cache().join(format!("{fixture}-base-{}", std::process::id()));
        let sources = format!("tests/fixtures/{fixture}/base");
        assert!(run(&["export", "--base", &sources, "--out", argument(&base), "--force"]).status.success());
        let alone =
            run(&["verify", argument(&base), &reference, "--logits", "logits_base", "--greedy", "none"]);
        assert!(alone.status.success(), "{}", text(&alone.stdout));
        let swapped = run(&["verify", argument(&base), &reference]);
        assert_eq!(swapped.status.code(), Some(1), "a base without its adapter is not the merged model");
    }
}

#[test]
fn verify_exits_with_1_beyond_the_tolerance() {
    let reference = "tests/fixtures/llama/expected.safetensors";
    let strict = run(&["verify", &exported("llama"), reference, "--atol", "0"]);
    assert_eq!(strict.status.code(), Some(1));
    assert!(text(&strict.stdout).contains("BEYOND"), "{}", text(&strict.stdout));
    let unknown = run(&["verify", &exported("llama"), reference, "--logits", "logits"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("logits_merged"), "{}", text(&unknown.stderr));
}

#[test]
fn generate_streams_the_answer_to_stdout_and_nothing_else() {
    let first = &expected()[0];
    let cache = cache_setting();
    let answer = run(&["generate", &first.prompt, "--set", &cache]);
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    assert_eq!(text(&answer.stdout), format!("{}\n", first.text));
    let stop: String = first.text.chars().nth(4).unwrap().into();
    let stopped = run(&["generate", &first.prompt, "--set", &cache, "--stop", &stop]);
    assert_eq!(text(&stopped.stdout), format!("{}\n", first.text.split_once(&stop).unwrap().0));
}

#[test]
fn bench_measures_every_length_and_rejects_lengths_beyond_the_context() {
    let model = exported("llama");
    let arguments =
        ["bench", &model, "--prompt", "8,16", "--generate", "4", "--rounds", "2", "--bare", "--json"];
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("lengths.svg");
    let measured = run(&[&arguments[..], &["--plot", argument(&picture)]].concat());
    let report: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
    for (result, prompt) in report["results"].as_array().unwrap().iter().zip([8, 16]) {
        assert_eq!(result["prompt_tokens"], prompt);
        for figure in ["prefill_tokens_per_second", "decode_tokens_per_second", "decode_over_bare"] {
            assert!(result[figure]["median"].as_f64().unwrap() > 0.0, "{figure}: {report}");
        }
    }
    let picture = std::fs::read_to_string(picture).unwrap();
    for part in ["<svg", "Tokens per second over context", "TTFT over prompt length, ms", "<polyline"] {
        assert!(picture.contains(part), "{part}: {picture}");
    }
    for refused in [["--prompt", "100000"], ["--generate", "1"], ["--rounds", "0"], ["--prompt", "0"]] {
        let refused = run(&[&["bench", &model], &refused[..]].concat());
        assert_eq!(refused.status.code(), Some(2));
    }
}

#[test]
fn bench_reports_pool_memory_and_share_of_bandwidth() {
    let model = exported("llama");
    let arguments =
        ["bench", &model, "--prompt", "16", "--generate", "4", "--rounds", "1", "--device", "cpu"];
    // Eka's operators read float weights where the file is mapped, and ONNX Runtime's take memory of the pool for them, as on a GPU.
    let in_pool = ["--host-pool", "--own-operators", "false"];
    let pooled = |more: &[&str]| run(&[&arguments[..], &in_pool, more].concat());
    let report: serde_json::Value = serde_json::from_slice(&pooled(&["--json"]).stdout).unwrap();
    let bytes = |path: &str| report.pointer(path).and_then(serde_json::Value::as_u64).unwrap();
    assert_eq!(bytes("/memory/before/used"), bytes("/memory/after/used"), "{report}");
    assert_eq!(bytes("/memory/after/used"), bytes("/memory/after/reserved"), "{report}");
    assert!(bytes("/memory/peak_used") > bytes("/memory/before/used"), "{report}");
    // Every matrix is read, and of the table of embeddings a row.
    let weights = bytes("/weight_bytes_per_step");
    assert!(weights > 0 && weights < bytes("/memory/before/used"), "{report}");
    let share = report["results"][0]["decode_share_of_bandwidth"].as_f64().unwrap();
    let speed = report["results"][0]["decode_tokens_per_second"]["median"].as_f64().unwrap();
    let max = report["memory_bytes_per_second"].as_f64().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a small model")]
    let expected = speed * weights as f64 / max;
    assert!((share - expected).abs() < 1e-9 * expected, "{report}");
    let report = text(&pooled(&[]).stdout);
    assert!(report.contains("memory in use, reserved: ") && report.contains(" % of bandwidth"), "{report}");
}

#[test]
fn a_missing_or_invalid_library_is_an_error_with_the_paths_tried() {
    let empty = tempfile::tempdir().unwrap();
    let dir = argument(empty.path());
    let cache = cache_setting();
    let served = run(&["serve", "--port", "0", "--set", &cache, "--onnxruntime", dir]);
    assert_eq!(served.status.code(), Some(3));
    assert!(text(&served.stderr).contains(dir), "{}", text(&served.stderr));
    fs::write(empty.path().join("libonnxruntime.so.1.31.1"), "no library at all").unwrap();
    let generated = run(&["generate", "x", "--set", &cache, "--onnxruntime", dir]);
    assert_eq!(generated.status.code(), Some(3));
    let error = text(&generated.stderr);
    assert!(error.contains("cannot be loaded") && error.contains("scripts/onnxruntime"), "{error}");
}

#[test]
fn an_old_library_is_rejected_with_both_versions() {
    let directory = tempfile::tempdir().unwrap();
    let (source, library) = (directory.path().join("old.c"), directory.path().join("libonnxruntime.so"));
    fs::write(&source, OLD_LIBRARY).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o", argument(&library), argument(&source)])
        .status()
        .unwrap();
    assert!(built.success(), "a C compiler links every Rust program");
    let refused = run(&["doctor", "--onnxruntime", argument(directory.path())]);
    let report = text(&refused.stdout);
    assert!(report.contains("version 1.17.3") && report.contains("1.30 or newer"), "{report}");
    assert_eq!(refused.status.code(), Some(3));
}

#[test]
fn doctor_prints_ok_or_problem_and_the_fix() {
    let healthy = run(&["doctor"]);
    assert!(healthy.status.success(), "{}", text(&healthy.stdout));
    for word in ["onnxruntime", "CPUExecutionProvider", "memory", "models/demo"] {
        assert!(text(&healthy.stdout).contains(word), "{word} in\n{}", text(&healthy.stdout));
    }
    // A directory within, because doctor looks at what lies beside a model as well.
    let outer = tempfile::tempdir().unwrap();
    let empty = outer.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let ill = run(&["doctor", "--onnxruntime", argument(&empty), "--model", argument(&empty)]);
    assert_eq!(ill.status.code(), Some(3));
    let report = text(&ill.stdout);
    assert_eq!(report.lines().filter(|line| line.starts_with("PROBLEM")).count(), 2, "{report}");
    assert!(report.contains("scripts/onnxruntime") && report.contains("eka export"), "{report}");
}

#[test]
fn invalid_settings_are_reported_with_origin_and_fix() {
    let mut environment = eka(&["serve"]);
    let refused = environment.env("EKA_QUEUE_MAX_JOBS", "none").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let error = text(&refused.stderr);
    assert!(error.contains("queue.max_jobs") && error.contains("EKA_QUEUE_MAX_JOBS"), "{error}");
    let printed = run(&["serve", "--print-config", "--port", "9000"]);
    assert!(printed.status.success());
    let printed = text(&printed.stdout);
    assert!(
        printed.lines().any(|line| line.starts_with("port = 9000") && line.contains("--port")),
        "{printed}"
    );
}

#[test]
fn a_directory_without_a_model_is_rejected_before_serving() {
    let empty = tempfile::tempdir().unwrap();
    let refused = run(&["serve", "--port", "0", "--model", argument(empty.path())]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("base/config.json"), "{}", text(&refused.stderr));
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cache = cache_setting();
    let refused = run(&["serve", "--port", &port, "--set", &cache]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(text(&refused.stderr).contains(&port), "{}", text(&refused.stderr));
}
