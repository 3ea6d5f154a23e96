//! Tokenizers of every kind, against the ids that transformers gives.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::*;

/// What `scripts/fixtures/tokenizer_files.py` writes.
#[derive(Deserialize)]
struct Expected {
    strings: Vec<String>,
    ids: BTreeMap<String, Vec<Vec<u32>>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers")
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn model_type(dir: &Path) -> String {
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["model_type"].as_str().unwrap().to_owned()
}

fn convert(dir: &Path) -> Result<Tokenizer, TokenizerError> {
    let json = OtherTokenizer::find(dir).unwrap().to_json(&model_type(dir))?;
    Ok(Tokenizer::from_bytes(json).unwrap())
}

#[test]
fn ids_of_240_strings_are_those_of_transformers() {
    let Expected { strings, ids } = expected();
    assert!(strings.len() == 240 && ids.len() >= 16);
    let mut wrong = Vec::new();
    for (case, rows) in &ids {
        let tokenizer = convert(&fixtures().join(case)).unwrap();
        for (text, row) in strings.iter().zip(rows) {
            let encoded = tokenizer.encode(text.as_str(), true).unwrap();
            if encoded.get_ids() != row {
                wrong.push(format!("{case}: {text:?}: {:?}, expected {row:?}", encoded.get_ids()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ: {}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
}

#[test]
fn decoding_gives_the_text_back() {
    let text = "Größe नमस्ते 😀 ab";
    for case in ["llama", "mistral", "gemma", "qwen2", "tekken", "tiktoken"] {
        let tokenizer = convert(&fixtures().join(case)).unwrap();
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{case}");
    }
}

/// A copy of a fixture that may be damaged.
fn copy(case: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join(case)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let message = |case: &str, file: &str, damage: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let dir = copy(case);
        let path = dir.path().join(file);
        fs::write(&path, damage(fs::read(&path).unwrap())).unwrap();
        convert(dir.path()).unwrap_err().to_string()
    };
    let cut = |mut content: Vec<u8>| {
        content.truncate(content.len() / 2);
        content
    };
    for (case, file) in [("llama", "tokenizer.model"), ("gpt2", "vocab.json"), ("tekken", "tekken.json")] {
        let message = message(case, file, &cut);
        assert!(message.contains(file) && message.contains("download it again"), "{message}");
    }
    let more = |line: &'static str| move |content: Vec<u8>| [&content, line.as_bytes()].concat();
    let unknown = message("gpt2", "merges.txt", &more("never seen\n"));
    assert!(unknown.contains("vocab.json") && unknown.contains("never"), "{unknown}");
    let message = message("tiktoken", "tokenizer.model", &more("!!! 7\n"));
    assert!(message.contains("line 601"), "{message}");
}

#[test]
fn a_class_that_treats_text_in_its_own_way_is_refused_by_name() {
    for (case, class) in [("llama", "T5Tokenizer"), ("gpt2", "RobertaTokenizer")] {
        let dir = copy(case);
        fs::write(dir.path().join("tokenizer_config.json"), format!(r#"{{"tokenizer_class": "{class}"}}"#))
            .unwrap();
        let message = convert(dir.path()).unwrap_err().to_string();
        assert!(message.contains(class) && message.contains("save_pretrained"), "{message}");
    }
}

#[test]
fn added_tokens_keep_their_ids_beyond_a_gap() {
    let dir = copy("gpt2");
    let config = r#"{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>", "bos_token": null, "unk_token": null,
        "added_tokens_decoder": {"610": {"content": "<|end|>", "special": true}}}"#;
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = convert(dir.path()).unwrap();
    assert_eq!(tokenizer.token_to_id("<|end|>"), Some(610));
    assert_eq!(tokenizer.token_to_id("<|reserved_token_600|>"), Some(600));
}
