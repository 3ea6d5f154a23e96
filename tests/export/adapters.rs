//! Adapters of every supported kind against PEFT's results (scripts/fixtures/adapters.py).

use std::{fs, path::Path};

use crate::support::program::{argument, cache, root, run, text};

/// Each case with its base and adapters.
const CASES: [(&str, &str, &[&str]); 24] = [
    ("all-linear", "llama", &["adapter"]),
    ("embedding", "llama", &["adapter"]),
    ("embedding-tied", "llama-tied", &["adapter"]),
    ("head-tied", "qwen2", &["adapter"]),
    ("positions", "gpt2", &["adapter"]),
    ("dora-conv1d", "gpt2", &["adapter"]),
    ("dora-embedding", "llama", &["adapter=0.5"]),
    ("dora-fused", "bloom", &["adapter"]),
    ("bias-all", "gpt2", &["adapter"]),
    ("bias-lora-only", "bloom", &["adapter"]),
    ("lora-bias", "bloom", &["adapter"]),
    ("patterns", "qwen2", &["adapter"]),
    ("layers", "llama", &["adapter"]),
    ("saved-head", "llama-tied", &["adapter"]),
    ("saved-embedding", "llama-tied", &["adapter"]),
    ("saved-tied", "llama-tied", &["adapter"]),
    ("saved-norms", "gemma2", &["adapter"]),
    ("saved-input-norms", "llama", &["adapter"]),
    ("saved-layer-norms", "gpt2", &["adapter"]),
    ("grown", "llama-tied", &["adapter"]),
    ("grown-lora", "llama-tied", &["adapter"]),
    ("tokens", "llama-tied", &["adapter"]),
    ("grown-tokens", "llama-tied", &["adapter"]),
    ("two", "llama", &["one=0.7", "two=-0.3"]),
];

const FIXTURES: &str = "tests/fixtures/adapters";

/// Exports a base with adapters; returns the model directory, or stderr.
fn export(name: &str, base: &str, flags: &[String]) -> Result<String, String> {
    let out = cache().join(format!("adapters-{name}-{}", std::process::id()));
    let base = format!("{FIXTURES}/bases/{base}");
    let arguments = ["export", "--base", &base, "--out", argument(&out), "--force"];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let exported = run(&[&arguments[..], &flags].concat());
    if exported.status.success() { Ok(argument(&out).into()) } else { Err(text(&exported.stderr)) }
}

fn adapter(case: &str, adapter: &str) -> [String; 2] {
    ["--adapter".into(), format!("{FIXTURES}/{case}/{adapter}")]
}

/// Whether the model matches the case's logits, and the output of `eka verify`.
fn verify(model: &str, case: &str) -> (bool, String) {
    let verified = run(&["verify", model, &format!("{FIXTURES}/{case}/expected.safetensors")]);
    (verified.status.success(), text(&verified.stdout))
}

#[test]
fn adapters_of_every_kind_match_peft() {
    for (case, base, adapters) in CASES {
        let flags: Vec<String> = adapters.iter().flat_map(|name| adapter(case, name)).collect();
        let model = export(case, base, &flags).unwrap_or_else(|error| panic!("{case}: {error}"));
        let (is_within, said) = verify(&model, case);
        println!("{case}: {}", said.lines().find(|line| line.contains("max")).unwrap_or_default());
        assert!(is_within && said.contains("24 of 24 tokens equal"), "{case}:\n{said}");
        fs::remove_dir_all(model).unwrap();
    }
}

#[test]
fn a_scale_multiplies_every_adapters_weight() {
    let flags = [adapter("two", "one=-1.4"), adapter("two", "two=0.6")].concat();
    let scaled = [&flags[..], &["--adapter-scale".into(), "-0.5".into()]].concat();
    let model = export("scaled", "llama", &scaled).unwrap();
    let (is_within, said) = verify(&model, "two");
    assert!(is_within, "{said}");
    fs::remove_dir_all(model).unwrap();
}

#[test]
fn adapter_directories_may_contain_an_equals_sign() {
    let dir = tempfile::tempdir().unwrap();
    for (name, weight) in [("r=8", ""), ("r=8", "=1"), ("a=b", "=1.0")] {
        let copy = dir.path().join(name);
        fs::create_dir_all(&copy).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(root().join(FIXTURES).join("layers/adapter").join(file), copy.join(file)).unwrap();
        }
        let flags = ["--adapter".into(), format!("{}{weight}", argument(&copy))];
        let model = export("equals", "llama", &flags).unwrap();
        let (is_within, said) = verify(&model, "layers");
        assert!(is_within, "{name}{weight}:\n{said}");
        fs::remove_dir_all(model).unwrap();
    }
}

#[test]
fn adapters_that_cannot_be_merged_are_rejected_and_leave_no_files() {
    let both = |case: &str| [adapter(case, "adapter"), adapter(case, "adapter")].concat();
    for (name, base, flags, expected) in [
        (
            "saved",
            "llama-tied",
            both("saved-head"),
            &["saved whole", "saved-head/adapter", "input_layernorm.weight"][..],
        ),
        ("dora", "gpt2", both("dora-conv1d"), &["DoRA's magnitudes", "dora-conv1d/adapter"]),
        ("rows", "llama-tied", both("tokens"), &["rows that are replaced", "embed_tokens.weight"]),
        (
            "base",
            "bloom",
            adapter("layers", "adapter").to_vec(),
            &["nothing in the base uses", "layers.1.mlp"],
        ),
        ("absent", "llama", adapter("layers", "nowhere=0.5").to_vec(), &["nowhere/adapter_config.json"]),
    ] {
        let error = export(name, base, &flags).unwrap_err();
        assert!(expected.iter().all(|part| error.contains(part)), "{name}: {error}");
        assert!(!Path::new(&cache().join(format!("adapters-{name}-{}", std::process::id()))).exists());
    }
}

#[test]
fn changing_a_tied_table_is_reported() {
    let out = cache().join(format!("adapters-noted-{}", std::process::id()));
    let base = format!("{FIXTURES}/bases/llama-tied");
    let [flag, dir] = adapter("embedding-tied", "adapter");
    let exported = run(&["export", "--base", &base, "--out", argument(&out), &flag, &dir]);
    let said = text(&exported.stdout);
    assert!(said.contains("embed_tokens and lm_head are tied"), "{said}");
    fs::remove_dir_all(out).unwrap();
}
