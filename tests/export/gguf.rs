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

#[test]
fn an_export_of_a_gguf_file_has_the_graph_and_the_weights_of_its_checkpoint() {
    for (name, fields) in same() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint");
        fs::create_dir(&checkpoint).unwrap();
        for part in ["base", "adapter"] {
            copy(&root().join("tests/fixtures/models").join(name).join(part), &checkpoint.join(part));
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
