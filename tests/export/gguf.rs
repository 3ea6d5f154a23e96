//! A GGUF file as a base gives what its checkpoint gives.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::support::{
    export_sources::finish,
    files::copy,
    program::{argument, eka, root, text},
    requests::with,
};

/// GGUF files whose weights are those of a checkpoint under tests/fixtures/models, and fields of the checkpoint's configuration
/// that GGUF has no place for, with the only values that it can mean.
fn same() -> [(&'static str, Value); 4] {
    [
        ("gemma2", json!({ "query_pre_attn_scalar": 16 })),
        ("gemma3-text", json!({})),
        ("phi3-long", json!({})),
        (
            "qwen2-late-windows",
            json!({ "use_sliding_window": false, "sliding_window": null, "layer_types": null }),
        ),
    ]
}

fn export(base: &Path, out: &Path, flags: &[&str]) {
    let done = finish(eka(&["export", "--base", argument(base), "--out", argument(out)]).args(flags));
    assert!(done.status.success(), "{}", text(&done.stderr));
}

/// The same of tests/fixtures/architectures.
fn further() -> Vec<(&'static str, Value)> {
    let none = json!({});
    let plain = [
        "arcee",
        "cohere",
        "falcon",
        "falcon-new",
        "gemma",
        "gpt_neox",
        "gpt_neox-sequential",
        "granite",
        "nemotron",
        "olmo2",
        "olmoe",
        "phi",
        "qwen3_moe",
        "seed_oss",
        "stablelm",
    ];
    let mut all: Vec<_> = plain.map(|name| (name, none.clone())).into();
    // llama.cpp knows the layers of SmolLM3, and no window of StarCoder 2.
    all.push(("smollm3", json!({ "no_rope_layers": null })));
    all.push(("starcoder2", json!({ "sliding_window": null })));
    all.push(("mixtral", json!({ "sliding_window": null })));
    all
}

#[test]
fn an_export_of_a_gguf_file_has_the_graph_and_the_weights_of_its_checkpoint() {
    let models = same().map(|(name, fields)| ("models", name, fields));
    let further = further().into_iter().map(|(name, fields)| ("architectures", name, fields));
    for (folder, name, fields) in models.into_iter().chain(further) {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint");
        fs::create_dir(&checkpoint).unwrap();
        for part in ["base", "adapter"] {
            copy(&root().join("tests/fixtures").join(folder).join(name).join(part), &checkpoint.join(part));
        }
        let tokenizer = checkpoint.join("base/tokenizer.json");
        if !tokenizer.exists() {
            fs::copy(root().join("tests/fixtures/llama/base/tokenizer.json"), tokenizer).unwrap();
        }
        let config = checkpoint.join("base/config.json");
        let edited = with(serde_json::from_slice(&fs::read(&config).unwrap()).unwrap(), &fields);
        fs::write(&config, edited.to_string()).unwrap();
        let file = root().join("tests/fixtures/gguf").join(format!("{name}.gguf"));
        let adapter = checkpoint.join("adapter");
        for (kind, flags) in
            [("base", vec![]), ("merged", vec!["--adapter", argument(&adapter), "--quantize", "int4"])]
        {
            let (one, other) =
                (dir.path().join(format!("{kind}-checkpoint")), dir.path().join(format!("{kind}-gguf")));
            export(&checkpoint.join("base"), &one, &flags);
            export(&file, &other, &flags);
            for part in ["model.onnx", "model.onnx.data"] {
                let read = |dir: &Path| fs::read(dir.join(part)).unwrap();
                assert!(read(&one) == read(&other), "{name}: {part} of {kind} differs");
            }
        }
    }
}

#[test]
fn an_adapter_in_a_gguf_file_changes_the_weights_as_the_same_adapter_of_peft() {
    for (folder, name) in [("models", "llama3-rope"), ("architectures", "starcoder2")] {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        let fixture = root().join("tests/fixtures").join(folder).join(name);
        copy(&fixture.join("base"), &base);
        if !base.join("tokenizer.json").exists() {
            fs::copy(root().join("tests/fixtures/llama/base/tokenizer.json"), base.join("tokenizer.json"))
                .unwrap();
        }
        let adapter = root().join(format!("tests/fixtures/gguf/{name}-adapter.gguf"));
        let weights = |adapter: &Path, out: &str| {
            let out = dir.path().join(out);
            export(&base, &out, &["--adapter", argument(adapter)]);
            fs::read(out.join("model.onnx.data")).unwrap()
        };
        assert!(weights(&adapter, "gguf") == weights(&fixture.join("adapter"), "peft"), "{name}");
        // A whole model is not an adapter.
        let (model, out) = (root().join("tests/fixtures/gguf/llama3-rope.gguf"), dir.path().join("out"));
        let mut command = eka(&["export", "--base", argument(&base), "--out", argument(&out)]);
        let done = finish(command.args(["--adapter", argument(&model)]));
        assert!(text(&done.stderr).contains("general.type"), "{}", text(&done.stderr));
    }
}

#[test]
fn frequencies_and_heads_that_llama_cpp_rearranges_are_computed_as_by_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let (out, file) = (dir.path().join("model"), root().join("tests/fixtures/gguf/llama3-rope.gguf"));
    export(&file, &out, &[]);
    let expected = root().join("tests/fixtures/models/llama3-rope/expected.safetensors");
    let flags = ["--logits", "logits_base", "--greedy", "none"];
    let done = finish(eka(&["verify", argument(&out), argument(&expected)]).args(flags));
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
}

#[test]
fn the_tokenizer_and_the_chat_template_of_a_gguf_file_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    let export_of = |name: &str| {
        let out = dir.path().join(name);
        export(&root().join(format!("tests/fixtures/gguf/{name}.gguf")), &out, &[]);
        out
    };
    let byte_level = export_of("qwen2-late-windows");
    assert_eq!(
        fs::read_to_string(byte_level.join("chat_template.jinja")).unwrap(),
        "{{ messages[0].content }}"
    );
    let tokenizer = Tokenizer::from_file(export_of("sentencepiece").join("tokenizer.json")).unwrap();
    // Bos, then the best pairs first, and bytes for characters without a token.
    let pieces = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(pieces("then in"), ["<s>", "▁then", "▁", "in"]);
    assert_eq!(pieces("a  then"), ["<s>", "▁", "<0x61>", "  ", "▁then"]);
}

#[test]
fn a_gguf_file_that_is_damaged_or_of_another_kind_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(root().join("tests/fixtures/gguf/gemma2.gguf")).unwrap();
    let refused = |name: &str, content: &[u8]| {
        let (file, out) = (dir.path().join(format!("{name}.gguf")), dir.path().join("out"));
        fs::write(&file, content).unwrap();
        let done = finish(&mut eka(&["export", "--base", argument(&file), "--out", argument(&out)]));
        assert!(!done.status.success() && !out.exists(), "{name}");
        text(&done.stderr)
    };
    for cut in [0, 3, 20, 24, 200, 2_000, whole.len() - 1] {
        let message = refused("cut", &whole[..cut]);
        assert!(message.contains("cut.gguf") && message.contains("download it again"), "{cut}: {message}");
    }
    assert!(refused("other", b"\x08\0\0\0\0\0\0\0{\"a\":{}}            ").contains("expected a GGUF file"));
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
    };
    let message =
        refused("unknown", &replaced("gemma2.attn_logit_softcapping", "gemma2.attn_logit_sharpening!"));
    assert!(message.contains("gemma2.attn_logit_sharpening!") && message.contains("supported"), "{message}");
    let message = refused("tensor", &replaced("blk.0.attn_q.weight", "blk.0.attn_x.weight"));
    assert!(message.contains("blk.0.attn_x.weight"), "{message}");
    let message = refused("pre", &replaced("gpt-2", "gpt-9"));
    assert!(message.contains("tokenizer.ggml.pre") && message.contains("llama-bpe"), "{message}");
}
