//! The same sources and options give the same bytes, and `eka.json` records them.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    export_sources::{Sources, finish},
    files::content,
    program::{argument, eka, run, text},
};

const OPTIONS: [&[&str]; 3] =
    [&[], &["--quantize", "int4"], &["--quantize", "int8", "--block-size", "64", "--dtype", "float16"]];

#[test]
fn exports_are_byte_identical_for_any_path_and_thread_count() {
    for flags in OPTIONS {
        let made = ["a", "another name"].map(|name| {
            let sources = Sources::new();
            let threads = name.len().min(2).to_string();
            let mut command = sources.export(&sources.out(name), flags);
            let done = finish(command.env("RAYON_NUM_THREADS", threads));
            assert!(done.status.success(), "{}", text(&done.stderr));
            content(&sources.out(name))
        });
        let [one, other] = made;
        assert_eq!(one.len(), 7);
        for ((name, one), (_, other)) in one.iter().zip(&other) {
            assert!(one == other, "{name} with {flags:?}");
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn inspect_describes_a_model_and_its_sources() {
    let sources = Sources::new();
    let out = sources.out("model");
    assert!(finish(&mut sources.export(&out, &["--quantize", "int4"])).status.success());
    let inspected = run(&["inspect", argument(&out), "--json", "--hash"]);
    let document: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    let provenance = &document["manifest"]["provenance"];
    for source in provenance["sources"].as_array().unwrap() {
        let bytes = fs::read(sources.path().join(source["path"].as_str().unwrap())).unwrap();
        assert_eq!(source["sha256"], sha256(&bytes), "{source}");
    }
    assert_eq!(provenance["options"]["quantize"], "int4");
    assert_eq!(provenance["options"]["block_size"], 32);
    for (file, (name, bytes)) in document["files"].as_array().unwrap().iter().zip(content(&out)) {
        assert_eq!((&file["name"], &file["sha256"]), (&Value::from(name), &Value::from(sha256(&bytes))));
    }
    let count = |operator: &str| {
        let entries = document["operators"].as_array().unwrap();
        entries
            .iter()
            .find(|entry| entry["operator"] == operator)
            .map_or(0, |entry| entry["nodes"].as_u64().unwrap())
    };
    assert_eq!(count("com.microsoft.GroupQueryAttention"), 3);
    assert!(count("com.microsoft.MatMulNBits") >= 12);
    // Three layers of two heads of sixteen numbers, keys and values: float16 where weights are quantized.
    assert_eq!(
        (&document["kv_bytes_per_token"], &document["kv_cache"]),
        (&json!(3 * 2 * 16 * 2 * 2), &json!("float16"))
    );
    let with = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = eka(&[&["inspect", argument(&out), "--json"], flags].concat());
        let inspected = command.envs(variables.iter().copied()).output().unwrap();
        let document: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        (document["kv_cache"].as_str().unwrap().to_owned(), document["kv_bytes_per_token"].as_u64().unwrap())
    };
    // A scale of two bytes for each row.
    let int8 = ("int8".to_owned(), 3 * 2 * (16 + 2) * 2);
    assert_eq!(with(&[("EKA_ENGINE_KV_CACHE", "int8")], &[]), int8);
    assert_eq!(with(&[("EKA_ENGINE_KV_CACHE", "float16")], &["--kv-cache", "int8"]), int8);
    let plain = ("float32".to_owned(), 3 * 2 * 16 * 4 * 2);
    assert_eq!(with(&[("EKA_ENGINE_KV_CACHE", "float32")], &[]), plain);
    assert_eq!(with(&[("EKA_ENGINE_OWN_OPERATORS", "false")], &[]), plain);
    let unusable = eka(&["inspect", argument(&out), "--kv-cache", "int3"]).output().unwrap();
    assert_eq!(unusable.status.code(), Some(2));
}

#[test]
fn inspect_prints_text_and_rejects_other_directories() {
    let sources = Sources::new();
    let out = sources.out("model");
    assert!(finish(&mut sources.export(&out, &["--quantize", "int8"])).status.success());
    let said = text(&run(&["inspect", argument(&out)]).stdout);
    for words in [
        "llama",
        "int8 in blocks of 32",
        "rank 8, alpha 16, times 1, on q_proj, v_proj",
        "GroupQueryAttention",
        "384 B per token, in float16",
    ] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
    fs::write(out.join("model.onnx"), "no graph").unwrap();
    for dir in [&out, sources.path()] {
        let refused = run(&["inspect", argument(dir)]);
        assert_eq!(refused.status.code(), Some(4));
        assert!(text(&refused.stderr).contains("export"), "{}", text(&refused.stderr));
    }
}
