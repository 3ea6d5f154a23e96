//! Weight formats: `eka export --report`, and answers that stay right.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::program::{Expected, Program, argument, expected, run, text};

const DEMO: [&str; 5] = ["export", "--base", "models/demo/base", "--adapter", "models/demo/adapter"];

/// The ten conversations of the demo, as its adapter was trained on them.
fn conversations() -> String {
    let chat =
        |Expected { prompt, text, .. }| format!("<s><|user|>{prompt}<|end|><|assistant|>{text}<|end|>");
    expected().into_iter().map(chat).collect()
}

/// Exports the demo into `out` with `flags`.
fn export(out: &Path, flags: &[&str]) -> String {
    let exported = run(&[&DEMO[..], &["--out", argument(out)], flags].concat());
    assert!(exported.status.success(), "{flags:?}: {}", text(&exported.stderr));
    text(&exported.stdout)
}

/// The number after `words` in `printed`.
fn figure(printed: &str, words: &str) -> f64 {
    let (_, rest) = printed.split_once(words).unwrap_or_else(|| panic!("{words} in\n{printed}"));
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn the_report_compares_every_format_with_float32_and_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let chats = dir.path().join("chats.txt");
    fs::write(&chats, conversations()).unwrap();
    for (flags, bits, divergence) in [
        ("--quantize none", 32.0..34.0, 0.0..=0.0),
        ("--quantize none --keep v_proj=int8", 31.0..33.0, 1e-9..=1e-3),
        ("--quantize int8", 8.5..9.5, 1e-6..=2e-3),
        ("--quantize int8 --zero-points", 8.7..9.7, 1e-6..=2e-3),
        ("--quantize int4", 5.4..6.4, 1e-4..=0.1),
        ("--quantize int4 --zero-points", 5.6..6.6, 1e-4..=0.1),
        ("--quantize int4 --keep lm_head=int4 --block-size 128", 4.2..5.6, 1e-4..=0.2),
    ] {
        let out = dir.path().join("model");
        let flags: Vec<&str> = flags.split(' ').collect();
        let printed = export(&out, &[&flags[..], &["--force", "--report", argument(&chats)]].concat());
        let bits_per_weight = figure(&printed, "iB, ");
        assert!(bits.contains(&bits_per_weight), "{flags:?}: {printed}");
        assert!(divergence.contains(&figure(&printed, "KL divergence")), "{flags:?}: {printed}");
        assert!((0.9..1.1).contains(&figure(&printed, "ratio")), "{flags:?}: {printed}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left.len(), 2, "the float32 export is removed: {left:?}");
    }
}

#[tokio::test]
async fn answers_stay_right_with_zero_points_and_with_mixed_formats() {
    for flags in ["--zero-points --block-size 64", "--keep v_proj=int8 --keep layers.0.*=none"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");
        export(&out, &[&["--quantize", "int4"], &*flags.split(' ').collect::<Vec<_>>()].concat());
        let program = Program::start(&["--model", argument(&out)]).await;
        let mut exact = 0;
        for Expected { prompt, text, .. } in expected() {
            let request = json!({ "messages": [{ "role": "user", "content": prompt }] });
            let (status, answer) = program.ask("/generate-lite", &request).await;
            assert_eq!(status, 200, "{answer}");
            exact += usize::from(answer["text"] == text);
        }
        assert!(exact >= 8, "{flags}: only {exact} of 10 as in float32");
    }
}

#[test]
fn invalid_report_and_keep_options_are_rejected_before_writing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let empty = dir.path().join("empty.txt");
    fs::write(&empty, "\n").unwrap();
    let config = ["export", "--random-weights", "models/demo/base/config.json"];
    for (command, flags, said) in [
        (&DEMO[..], ["--report", "no/such/file"], "no/such/file"),
        (&DEMO[..], ["--report", argument(&empty)], "is empty"),
        (&config[..], ["--report", argument(&empty)], "--random-weights"),
        (&DEMO[..], ["--keep", "q_prj=int8"], "layers.*.self_attn.q_proj"),
        (&DEMO[..], ["--keep", "q_proj=int3"], "lm_head=int8"),
    ] {
        let refused = run(&[command, &["--out", argument(&out)], &flags[..]].concat());
        assert!(!refused.status.success(), "{flags:?}");
        assert!(text(&refused.stderr).contains(said), "{flags:?}: {}", text(&refused.stderr));
        assert!(!out.exists(), "{flags:?}");
    }
}

/// A text of sentences that the demonstration model can process.
const SENTENCES: &str =
    "Good morning, friend. Where is the station? The train is late today. Please bring me a glass of water. ";

#[test]
fn calibration_lowers_the_divergence_and_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (chats, lines, out) =
        (dir.path().join("chats.txt"), dir.path().join("chats.jsonl"), dir.path().join("model"));
    fs::write(&chats, conversations()).unwrap();
    let line = |Expected { prompt, text, .. }| {
        let messages =
            json!([{ "role": "user", "content": prompt }, { "role": "assistant", "content": text }]);
        format!("{}\n", json!({ "messages": messages }))
    };
    fs::write(&lines, expected().into_iter().map(line).collect::<String>()).unwrap();
    let divergence = |flags: &[&str]| {
        let common = ["--quantize", "int4", "--force", "--report", argument(&chats)];
        figure(&export(&out, &[&common[..], flags].concat()), "KL divergence")
    };
    let plain = divergence(&[]);
    // The demonstration model only knows its own chats, and the built-in text is about everything else.
    for (text, most) in [("auto", 1.2), (argument(&chats), 1.0), (argument(&lines), 1.0)] {
        let calibrated = divergence(&["--calibrate", text]);
        assert!(calibrated < most * plain, "{text}: {calibrated}, without calibration {plain}");
        let inspected = self::text(&run(&["inspect", argument(&out)]).stdout);
        let name = Path::new(text).file_name().unwrap().to_str().unwrap();
        assert!(inspected.contains(&format!("calibrated on {name}")), "{inspected}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 3, "the float32 export and the statistics are removed: {left:?}");
}

#[test]
fn the_same_calibration_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    fs::write(&text, SENTENCES.repeat(20)).unwrap();
    let data = |name: &str, threads: &str| {
        let out = dir.path().join(name);
        export(&out, &["--quantize", "int4", "--calibrate", argument(&text), "--threads", threads]);
        fs::read(out.join("model.onnx.data")).unwrap()
    };
    assert!(data("one", "1") == data("two", "1"));
}

#[test]
fn calibration_texts_that_cannot_be_used_are_rejected_before_writing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let [empty, lines] = ["empty.txt", "lines.jsonl"].map(|name| dir.path().join(name));
    fs::write(&empty, " \n").unwrap();
    fs::write(&lines, "{\"messages\": []}\n{\"text\": \"no conversation\"}\n").unwrap();
    for (text, said) in
        [("no/such/file", "no/such/file"), (argument(&empty), "is empty"), (argument(&lines), "line 2")]
    {
        let refused =
            run(&[&DEMO[..], &["--quantize", "int4", "--out", argument(&out), "--calibrate", text]].concat());
        assert!(!refused.status.success(), "{text}");
        assert!(self::text(&refused.stderr).contains(said), "{text}: {}", self::text(&refused.stderr));
        assert!(!out.exists(), "{text}");
    }
}
