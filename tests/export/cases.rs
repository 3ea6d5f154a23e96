//! Checkpoints and adapters that programs read differently, against what transformers and PEFT compute from them.

use std::{fs, path::Path};

use eka::manifest::Manifest;
use tempfile::TempDir;

use crate::support::program::{argument, root, run, text};

const FIXTURES: &str = "tests/fixtures/cases";

const PACKED: &str = "tests/fixtures/packed";

/// Exports a case, with its adapter if it has one; returns the model directory, in a temporary one, and the report, or the
/// error.
fn export(case: &str) -> Result<(TempDir, String), String> {
    let dir = tempfile::tempdir().unwrap();
    let [base, adapter] = ["base", "adapter"].map(|part| format!("{FIXTURES}/{case}/{part}"));
    let out = model(&dir);
    let mut arguments = vec!["export", "--base", &base, "--out", &out, "--json"];
    if root().join(&adapter).is_dir() {
        arguments.extend(["--adapter", &adapter]);
    }
    let exported = run(&arguments);
    let said = text(&exported.stdout);
    if exported.status.success() { Ok((dir, said)) } else { Err(text(&exported.stderr) + &said) }
}

/// The model directory in `dir`.
fn model(dir: &TempDir) -> String {
    argument(&dir.path().join("model")).into()
}

fn manifest(model: &str) -> Manifest {
    Manifest::read(Path::new(model)).unwrap()
}

#[test]
fn logits_are_those_of_transformers() {
    for case in [
        "adapter-with-vision-tower",
        "phi3-layer-types-ignored",
        "phi3-yarn-means-longrope",
        "rope-scaling-beside-rope-parameters",
        "tied-lora-embed",
        "tied-stored-as-lm-head",
    ] {
        let (dir, _) = export(case).unwrap_or_else(|error| panic!("{case}: {error}"));
        let expected = format!("{FIXTURES}/{case}/expected.safetensors");
        let verified = run(&["verify", &model(&dir), &expected, "--atol", "5e-5"]);
        let said = text(&verified.stdout);
        assert!(verified.status.success() && said.contains("8 of 8 tokens equal"), "{case}:\n{said}");
    }
}

#[test]
fn settings_that_change_the_model_and_are_not_computed_are_refused_by_name() {
    for (case, expected) in [
        ("is-causal-false", "is_causal is false"),
        ("mlx-adapter", "this one is MLX's"),
        ("mlx-quantized-base", "packed (MLX)"),
        ("partial-rotary-of-llama-ignored", "partial_rotary_factor is 0.5"),
    ] {
        let error = export(case).unwrap_err();
        assert!(error.contains(expected), "{case}: {error}");
    }
}

#[test]
fn every_end_token_that_the_files_name_ends_an_answer() {
    for (case, expected) in [("eos-token-of-adapter", &[2, 270][..]), ("no-eos-in-configs", &[2])] {
        let (dir, _) = export(case).unwrap();
        assert_eq!(manifest(&model(&dir)).end_tokens, expected, "{case}");
    }
}

#[test]
fn what_a_user_should_know_is_reported() {
    for (case, expected) in [
        ("adapter-with-vision-tower", &["vision_tower", "lora_A"][..]),
        ("corda-config-converted", &[]),
        ("tied-lora-embed", &["embed_tokens and lm_head are tied", "a table for each"]),
        ("tokenizer-beyond-vocab", &["270 token ids", "3 of the tokenizer's", "from 270"]),
    ] {
        let (_dir, said) = export(case).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert!(expected.iter().all(|part| said.contains(part)), "{case}: {said}");
    }
}

#[test]
fn templates_are_found_wherever_they_are() {
    for (case, file) in [
        ("template-json-file", "chat_template.jinja"),
        ("template-tool-use", "additional_chat_templates/tool_use.jinja"),
    ] {
        let (dir, _) = export(case).unwrap();
        assert!(Path::new(&model(&dir)).join(file).is_file(), "{case}");
    }
}

/// Of scripts/fixtures/packed.py.
#[test]
fn packed_weights_are_the_numbers_that_they_stand_for() {
    let mut cases: Vec<_> =
        fs::read_dir(root().join(PACKED)).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 16, "{cases:?}");
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        let (base, model) = (dir.path().join("base"), dir.path().join("model"));
        fs::create_dir(&base).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(case.join("base").join(file), base.join(file)).unwrap();
        }
        fs::copy(root().join("tests/fixtures/llama/base/tokenizer.json"), base.join("tokenizer.json"))
            .unwrap();
        let adapter = case.join("adapter");
        let flags = if adapter.is_dir() { vec!["--adapter", argument(&adapter)] } else { Vec::new() };
        let base_only = ["export", "--base", argument(&base), "--out", argument(&model)];
        let exported = run(&[&base_only[..], &flags].concat());
        let said = text(&exported.stdout);
        assert!(exported.status.success(), "{}: {}", case.display(), text(&exported.stderr));
        assert!(said.contains("the base's weights are packed"), "{}: {said}", case.display());
        let expected = case.join("expected.safetensors");
        let verified = run(&["verify", argument(&model), argument(&expected), "--atol", "5e-5"]);
        let said = text(&verified.stdout);
        assert!(
            verified.status.success() && said.contains("24 of 24 tokens equal"),
            "{}:\n{said}",
            case.display()
        );
        let int4 = ["--quantize", "int4", "--keep", "lm_head=none", "--force"];
        let again = run(&[&base_only[..], &flags, &int4].concat());
        assert!(again.status.success(), "{}: {}", case.display(), text(&again.stderr));
        if case.ends_with("gptq-symmetric") {
            check_codes(&base.join("model.safetensors"), &fs::read(model.join("model.onnx.data")).unwrap());
        }
    }
}

/// Checks that `exported` has the packed codes of a query projection: its groups are our blocks, with zero points in the middle.
fn check_codes(checkpoint: &Path, exported: &[u8]) {
    let file = fs::read(checkpoint).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let packed = tensors.tensor("model.layers.0.self_attn.q_proj.qweight").unwrap();
    let outputs = packed.shape()[1];
    let words: Vec<u32> =
        packed.data().as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    for output in 0..outputs {
        // Both have the first of two codes in the low half of a byte, and a word is four bytes of one output.
        let row: Vec<u8> =
            words.iter().skip(output).step_by(outputs).flat_map(|word| word.to_le_bytes()).collect();
        assert!(exported.windows(row.len()).any(|bytes| bytes == row), "output {output}");
    }
}
