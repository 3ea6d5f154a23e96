//! `eka bench --url` against a real server, also one that rejects requests.

use std::fs;

use serde_json::Value;

use crate::support::program::{Program, argument, run, text};

fn result(file: &std::path::Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[tokio::test]
async fn a_closed_loop_counts_the_same_tokens_as_the_server() {
    let program = Program::start(&[]).await;
    let out = tempfile::tempdir().unwrap();
    let (file, picture) = (out.path().join("a.json"), out.path().join("a.svg"));
    let load =
        ["--requests", "30", "--clients", "3", "--prompt-length", "uniform:4-12", "--output-length", "6"];
    let good = ["--good-e2e", "60000", "--out", argument(&file), "--plot", argument(&picture)];
    let done = run(&[&["bench", "--url", &program.url, "--ignore-eos"], &load[..], &good].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let result = result(&file);
    assert_eq!((result["requests"].as_u64(), result["completed"].as_u64()), (Some(30), Some(30)));
    assert_eq!(result["output_tokens"].as_u64(), Some(30 * 6), "{result}");
    // The server also counts the three warm-up requests.
    let metrics = program.metrics().await;
    assert!(metrics.contains("eka_generated_tokens_total 198"), "{metrics}");
    assert_eq!(result["goodput"], result["requests_per_second"]);
    for wait in ["ttft_ms", "tpot_ms", "e2e_ms"] {
        let values: Vec<_> = result[wait]["percentiles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|at| at[1].as_f64().unwrap())
            .collect();
        assert!(values[0] > 0.0 && values.is_sorted(), "{wait}: {values:?}");
        assert_eq!(result[wait]["count"], 30);
    }
    let (ttft, whole) = (&result["ttft_ms"]["mean"], &result["e2e_ms"]["mean"]);
    assert!(ttft.as_f64() < whole.as_f64());
    assert!(text(&done.stdout).contains("30 of 30 answered"), "{}", text(&done.stdout));
    let drawn = fs::read_to_string(&picture).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("TTFT") && drawn.trim_end().ends_with("</svg>"));

    let same = run(&["bench", "--compare", argument(&file), argument(&file), "--plot", argument(&picture)]);
    let table = text(&same.stdout);
    assert!(
        same.status.success() && table.lines().filter(|line| line.ends_with(" 1.000")).count() >= 10,
        "{table}"
    );
    assert!(fs::read_to_string(&picture).unwrap().contains("a: E2E"));
}

#[tokio::test]
async fn an_open_loop_continues_after_rejections_and_counts_them_by_code() {
    let program = Program::start(&["--queue", "1", "--faults", "slow=100@decode:2"]).await;
    let load = [
        "--rate",
        "200",
        "--requests",
        "40",
        "--warm-up",
        "0",
        "--api",
        "completions",
        "--token-ids",
        "4000",
    ];
    let done = run(&[&["bench", "--url", &program.url, "--ignore-eos", "--json"], &load[..]].concat());
    let result: Value = serde_json::from_slice(&done.stdout).unwrap();
    let refused = result["errors"]["queue_full"].as_u64().unwrap();
    let completed = result["completed"].as_u64().unwrap();
    assert!(refused > 0 && completed > 0 && refused + completed == 40, "{result}");
    assert_eq!(result["e2e_ms"]["count"], completed);
    assert_eq!(result["prompt_tokens"].as_u64().unwrap(), completed * 64);
    assert_eq!(result["settings"]["pace"], "open, 200 per second");
}

#[tokio::test]
async fn prompts_and_extra_fields_are_sent_unchanged() {
    let program = Program::start(&[]).await;
    let prompts = tempfile::NamedTempFile::new().unwrap();
    fs::write(prompts.path(), "Translate to Hindi: Good morning, friend.\n\n").unwrap();
    let load = ["--requests", "2", "--prompts", argument(prompts.path()), "--warm-up", "0", "--json"];
    let bench = |field: &str| {
        let done = run(&[&["bench", "--url", &program.url, "--field", field], &load[..]].concat());
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    };
    let (code, result, _) = bench("cache_prompt=false");
    assert_eq!(code, Some(0));
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!((result["prompt_tokens"].as_u64(), result["output_tokens"].as_u64()), (Some(38), Some(22)));
    let (code, result, message) = bench("frobnicate=1");
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.contains("no request has a complete answer: 2 unknown_parameter") || message.contains("2 "),
        "{message}"
    );
    assert!(result.contains("\"completed\": 0"), "{result}");
}

#[test]
fn invalid_load_options_are_rejected() {
    let url = ["bench", "--url", "http://127.0.0.1:1"];
    for (code, arguments, message) in [
        (3, &[][..], "cannot list the server's models"),
        (1, &["--served-model", "m", "--requests", "1", "--warm-up", "0"], "1 connect"),
        (2, &["--prompt-length", "uniform:9-3"], "uniform:64-256"),
        (2, &["--served-model", "m", "--token-ids", "100"], "--api completions"),
        (2, &["--served-model", "m", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (2, &["--rate", "0"], "not more than 0"),
        (2, &["--rate", "1", "--clients", "1"], "--clients"),
        (2, &["--field", "a"], "NAME=JSON"),
        (2, &["models/demo"], "MODEL_DIR"),
        (2, &["--bare"], "--bare"),
    ] {
        let refused = run(&[&url[..], arguments].concat());
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
    for arguments in [
        &["bench"][..],
        &["bench", "--compare", "Cargo.toml", "Cargo.toml"],
        &["bench", "models/demo", "--rate", "3"],
    ] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", text(&refused.stderr));
    }
}
