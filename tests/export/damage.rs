//! Damaged, contradictory and hostile sources: each is an error with an explanation and leaves no files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::support::{
    export_sources::{Sources, finish},
    files::names,
    program::text,
    tensors::{Tensors, edit, poison, rename, write_raw},
};

/// Name of the damage, how to cause it, and a part of the message.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const MODEL: &str = "base/model.safetensors";
const INDEX: &str = "base/model.safetensors.index.json";
const CONFIG: &str = "base/config.json";
const ADAPTER: &str = "adapter/adapter_model.safetensors";
const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const NORM: &str = "model.norm.weight";

fn set(path: &Path, field: &str, value: Value) {
    let mut document: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    document[field] = value;
    fs::write(path, document.to_string()).unwrap();
}

fn quantized(dir: &Path, config: Value) {
    set(&dir.join(CONFIG), "quantization_config", config);
}

/// Two shards and their index instead of the one file; the second has the layers after the first.
fn shard(dir: &Path) {
    let whole = Tensors::read(&dir.join(MODEL));
    let is_late = |name: &str| name.contains("layers.1") || name.contains("layers.2");
    whole.part(|name| !is_late(name)).write(&dir.join("base/model-1.safetensors"));
    whole.part(is_late).write(&dir.join("base/model-2.safetensors"));
    let file = |name: &str| if is_late(name) { "model-2.safetensors" } else { "model-1.safetensors" };
    let tensors = whole.header.as_object().unwrap().keys().filter(|name| !name.starts_with("__"));
    let map: serde_json::Map<_, _> = tensors.map(|name| (name.clone(), json!(file(name)))).collect();
    fs::write(dir.join(INDEX), json!({ "weight_map": map }).to_string()).unwrap();
    fs::remove_file(dir.join(MODEL)).unwrap();
}

/// Shards, with one tensor at another place of the index.
fn shard_and_place(dir: &Path, tensor: &str, file: &str) {
    shard(dir);
    let mut index: Value = serde_json::from_slice(&fs::read(dir.join(INDEX)).unwrap()).unwrap();
    index["weight_map"][tensor] = json!(file);
    fs::write(dir.join(INDEX), index.to_string()).unwrap();
}

/// Another file instead of the weights.
fn only(dir: &Path, name: &str) {
    fs::rename(dir.join(MODEL), dir.join("base").join(name)).unwrap();
}

fn instead(dir: &Path, path: &str, place: impl FnOnce(&Path)) {
    let path = dir.join(path);
    fs::remove_file(&path).unwrap();
    place(&path);
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

const FILES: &[Damage] = &[
    ("an empty file", |dir| fs::write(dir.join(MODEL), "").unwrap(), &["model.safetensors", "of 0"]),
    (
        "a header longer than the file",
        |dir| {
            let mut bytes = fs::read(dir.join(MODEL)).unwrap();
            bytes[..8].copy_from_slice(&(1u64 << 50).to_le_bytes());
            fs::write(dir.join(MODEL), bytes).unwrap();
        },
        &["a header of 1125899906842624 bytes", "download it again"],
    ),
    (
        "a header that is cut off",
        |dir| {
            let bytes = fs::read(dir.join(MODEL)).unwrap();
            fs::write(dir.join(MODEL), &bytes[..1000]).unwrap();
        },
        &["cannot be in a file of 1000", "download it again"],
    ),
    (
        "a file that is cut off",
        |dir| {
            let bytes = fs::read(dir.join(MODEL)).unwrap();
            fs::write(dir.join(MODEL), &bytes[..bytes.len() - 1]).unwrap();
        },
        &["describes 684808 bytes, the file has 684807"],
    ),
    (
        "bytes after the end",
        |dir| edit(&dir.join(MODEL), |tensors| tensors.data.push(0)),
        &["model.safetensors", "truncated or was changed"],
    ),
    (
        "a header that is no JSON",
        |dir| write_raw(&dir.join(MODEL), "{\"a\": {\"dtype\"", &[0; 64]),
        &["its header is not valid", "line 1"],
    ),
    (
        "tensors that overlap",
        |dir| {
            edit(&dir.join(MODEL), |tensors| {
                let same = tensors.header["model.layers.0.self_attn.o_proj.weight"]["data_offsets"].clone();
                tensors.header[QUERY]["data_offsets"] = same;
            });
        },
        &["cannot lie at bytes", "the file is damaged"],
    ),
    (
        "a shape that lies about the length",
        |dir| edit(&dir.join(MODEL), |tensors| tensors.header[QUERY]["shape"] = json!([64, 65])),
        &[QUERY, "[64, 65]", "cannot lie at"],
    ),
    (
        "a shape whose product overflows",
        |dir| {
            edit(&dir.join(MODEL), |tensors| tensors.header[QUERY]["shape"] = json!([1u64 << 40, 1u64 << 40]))
        },
        &[QUERY, "cannot lie at"],
    ),
    (
        "a negative dimension",
        |dir| edit(&dir.join(MODEL), |tensors| tensors.header[QUERY]["shape"] = json!([-64, 64])),
        &["its header is not valid", "-64"],
    ),
    (
        "a tensor that is there twice",
        |dir| {
            let tensors = Tensors::read(&dir.join(MODEL));
            let header = tensors.header.to_string();
            let again = format!("{{\"{NORM}\":{},", tensors.header[NORM]);
            write_raw(&dir.join(MODEL), &header.replacen('{', &again, 1), &tensors.data);
        },
        &["model.norm.weight is there twice"],
    ),
    (
        "two names of one tensor",
        |dir| {
            edit(&dir.join(MODEL), |tensors| {
                let end = tensors.data.len();
                tensors.header["norm.weight"] =
                    json!({ "dtype": "F32", "shape": [64], "data_offsets": [end, end + 256] });
                tensors.data.extend([0; 256]);
            });
        },
        &["norm.weight", "would be the same tensor"],
    ),
    (
        "a name with a terminal's commands in it",
        |dir| rename(&dir.join(MODEL), NORM, "\u{1b}[2Jmodel.norm.weight"),
        &["needs norm.weight"],
    ),
    (
        "a transposed weight",
        |dir| {
            edit(&dir.join(MODEL), |tensors| {
                tensors.header["model.layers.0.mlp.gate_proj.weight"]["shape"] = json!([64, 160]);
            });
        },
        &["model.layers.0.mlp.gate_proj.weight", "[64, 160]", "[160, 64]"],
    ),
    (
        "a tensor of another model",
        |dir| {
            edit(&dir.join(MODEL), |tensors| {
                let end = tensors.data.len();
                for extra in 0..9 {
                    tensors.header[format!("vision.{extra}")] =
                        json!({ "dtype": "F32", "shape": [0], "data_offsets": [end, end] });
                }
            });
        },
        &["nothing uses vision.0", "and 4 more", "config.json"],
    ),
    (
        "a layer that is missing",
        |dir| {
            let path = dir.join(MODEL);
            Tensors::read(&path).part(|name| !name.contains("layers.2.mlp.up_proj")).write(&path);
        },
        &["layers.2.mlp.up_proj.weight", "is not there"],
    ),
    (
        "integers",
        |dir| {
            edit(&dir.join(MODEL), |tensors| tensors.header[NORM]["dtype"] = json!("I32"));
        },
        &[NORM, "I32", "BF16"],
    ),
];

const SHARDS: &[Damage] = &[
    (
        "a shard that is missing",
        |dir| {
            shard(dir);
            fs::remove_file(dir.join("base/model-2.safetensors")).unwrap();
        },
        &["model-2.safetensors", "No such file"],
    ),
    (
        "a link to a file that was never downloaded",
        |dir| {
            shard(dir);
            instead(dir, "base/model-2.safetensors", |path| symlink("../blobs/0123", path).unwrap());
        },
        &["model-2.safetensors", "which does not exist"],
    ),
    (
        "an index that promises what its shard lacks",
        |dir| shard_and_place(dir, "model.layers.7.mlp.up_proj.weight", "model-2.safetensors"),
        &["model-2.safetensors", "model.layers.7.mlp.up_proj.weight", "download both again"],
    ),
    (
        "a shard that holds what the index places elsewhere",
        |dir| {
            shard_and_place(dir, NORM, "model-2.safetensors");
            let moved = Tensors::read(&dir.join("base/model-1.safetensors"));
            edit(&dir.join("base/model-2.safetensors"), |tensors| {
                let end = tensors.data.len();
                let info = json!({ "dtype": "F32", "shape": [64], "data_offsets": [end, end + 256] });
                tensors.header[NORM] = info;
                tensors.data.extend(&moved.data[moved.offsets(NORM)]);
            });
        },
        &["model-1.safetensors", NORM, "does not place there"],
    ),
    (
        "an index without a map",
        |dir| {
            shard(dir);
            fs::write(dir.join(INDEX), "{}").unwrap();
        },
        &["weight_map is missing"],
    ),
    ("a path upwards", |dir| shard_and_place(dir, NORM, "../model.safetensors"), &["../model", "plain name"]),
    (
        "a path from the root",
        |dir| shard_and_place(dir, NORM, "/etc/a.safetensors"),
        &["/etc/a", "plain name"],
    ),
    ("a path downwards", |dir| shard_and_place(dir, NORM, "sub/a.safetensors"), &["sub/a", "plain name"]),
    ("another kind of file", |dir| shard_and_place(dir, NORM, "passwd"), &["passwd", "plain name"]),
    (
        "a link to an endless device",
        |dir| {
            shard(dir);
            instead(dir, "base/model-2.safetensors", |path| symlink("/dev/zero", path).unwrap());
        },
        &["model-2.safetensors", "a device, expected a regular file"],
    ),
];

const FORMATS: &[Damage] = &[
    ("a wrong name", |dir| only(dir, "pytorch_model.bin"), &["pytorch_model.bin", "PyTorch file"]),
    ("only a GGUF file", |dir| only(dir, "llama.Q4_K_M.gguf"), &["llama.Q4_K_M.gguf", "safetensors"]),
    ("no weights", |dir| fs::remove_file(dir.join(MODEL)).unwrap(), &["neither model.safetensors nor"]),
    (
        "a tokenizer.json as tokenizer.model",
        |dir| {
            fs::rename(dir.join("base/tokenizer.json"), dir.join("base/tokenizer.model")).unwrap();
        },
        &["tokenizer.model", "not a valid tokenizer"],
    ),
    (
        "GPTQ in three bits",
        |dir| quantized(dir, json!({ "quant_method": "gptq", "bits": 3 })),
        &["quantization_config.bits is 3", "[2, 4, 8]"],
    ),
    (
        "a method of quantization that is not read",
        |dir| quantized(dir, json!({ "quant_method": "aqlm" })),
        &["quantization_config.quant_method is \"aqlm\"", "gptq, awq, bitsandbytes", "--quantize"],
    ),
    (
        "packed words without their scales",
        |dir| {
            quantized(dir, json!({ "quant_method": "gptq", "bits": 4 }));
            rename(&dir.join(MODEL), QUERY, "model.layers.0.self_attn.q_proj.qweight");
        },
        &["q_proj.weight", "unpacks to [64, 512]"],
    ),
    (
        "packed weights that config.json does not mention",
        |dir| rename(&dir.join(MODEL), QUERY, "model.layers.0.self_attn.q_proj.qweight"),
        &["q_proj.qweight", "quantization_config", "--quantize"],
    ),
];

const NUMBERS: &[Damage] = &[
    ("NaN", |dir| poison(&dir.join(MODEL), QUERY, f32::NAN), &["layers.0.self_attn.q_proj.weight", "is NaN"]),
    (
        "infinity",
        |dir| poison(&dir.join(MODEL), "lm_head.weight", f32::INFINITY),
        &["lm_head.weight", "is inf"],
    ),
    (
        "negative infinity",
        |dir| poison(&dir.join(MODEL), "model.embed_tokens.weight", f32::NEG_INFINITY),
        &["embed_tokens.weight", "row 0, column 0", "is -inf"],
    ),
    ("NaN in a norm", |dir| poison(&dir.join(MODEL), NORM, f32::NAN), &["norm.weight", "is NaN"]),
    (
        "NaN in the adapter",
        |dir| {
            let path = dir.join(ADAPTER);
            let tensors = Tensors::read(&path);
            let first = tensors.header.as_object().unwrap().keys().find(|name| name.contains("lora_A"));
            poison(&path, first.unwrap(), f32::NAN);
        },
        &["the merged weight at row", "is NaN"],
    ),
];

const SETTINGS: &[Damage] = &[
    (
        "an absurd dimension",
        |dir| set(&dir.join(CONFIG), "hidden_size", json!(1u64 << 40)),
        &["hidden_size is 1099511627776", "from 1 to 16777216"],
    ),
    ("a dimension of zero", |dir| set(&dir.join(CONFIG), "vocab_size", json!(0)), &["vocab_size is 0"]),
    (
        "a negative dimension",
        |dir| set(&dir.join(CONFIG), "num_hidden_layers", json!(-3)),
        &["num_hidden_layers is -3"],
    ),
    (
        "a dimension that is no whole number",
        |dir| set(&dir.join(CONFIG), "num_attention_heads", json!(4.5)),
        &["num_attention_heads is 4.5"],
    ),
    (
        "another dimension than the weights have",
        |dir| set(&dir.join(CONFIG), "intermediate_size", json!(192)),
        &["[160, 64]", "[192, 64]", "do the two belong together"],
    ),
    (
        "an adapter of another rank",
        |dir| set(&dir.join("adapter/adapter_config.json"), "r", json!(4)),
        &["lora_A.weight", "[8, 64]", "[4, 64]"],
    ),
    (
        "a config.json of 100 MB",
        |dir| {
            let blank = " ".repeat(100 << 20);
            fs::write(dir.join(CONFIG), blank).unwrap();
        },
        &["config.json: larger than"],
    ),
    (
        "JSON nested ten thousand deep",
        |dir| {
            let nested = format!("{{\"a\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
            fs::write(dir.join(CONFIG), nested).unwrap();
        },
        &["config.json", "recursion limit"],
    ),
    (
        "a config.json that is not UTF-8",
        |dir| fs::write(dir.join(CONFIG), b"{\"model_type\": \"lla\xff\xfema\"}").unwrap(),
        &["config.json", "unicode", "download it again"],
    ),
    (
        "a config.json that is cut off",
        |dir| fs::write(dir.join(CONFIG), "{\"model_type\": ").unwrap(),
        &["config.json", "EOF"],
    ),
    (
        "a config.json that is a list",
        |dir| fs::write(dir.join(CONFIG), "[]").unwrap(),
        &["config.json", "map"],
    ),
];

const COMPANIONS: &[Damage] = &[
    (
        "a tokenizer that is cut off",
        |dir| {
            let path = dir.join("base/tokenizer.json");
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        },
        &["tokenizer.json", "EOF", "download it again"],
    ),
    (
        "a template that is a number",
        |dir| set(&dir.join("base/tokenizer_config.json"), "chat_template", json!(7)),
        &["tokenizer_config.json", "chat_template is 7"],
    ),
    (
        "an end token that is none",
        |dir| set(&dir.join("base/generation_config.json"), "eos_token_id", json!([-1])),
        &["generation_config.json", "eos_token_id is [-1]"],
    ),
    (
        "a link to settings that were never downloaded",
        |dir| instead(dir, "base/generation_config.json", |path| symlink("../blobs/0123", path).unwrap()),
        &["generation_config.json", "which does not exist"],
    ),
];

const PLACES: &[Damage] = &[
    ("a config.json that is missing", |dir| instead(dir, CONFIG, |_| ()), &["config.json", "No such file"]),
    (
        "a directory where config.json should be",
        |dir| instead(dir, CONFIG, |path| fs::create_dir(path).unwrap()),
        &["config.json", "a directory, expected a regular file"],
    ),
    (
        "a directory where the weights should be",
        |dir| instead(dir, MODEL, |path| fs::create_dir(path).unwrap()),
        &["model.safetensors", "a directory, expected a regular file"],
    ),
    (
        "a directory where the tokenizer should be",
        |dir| instead(dir, "base/tokenizer.json", |path| fs::create_dir(path).unwrap()),
        &["tokenizer.json", "a directory, expected a regular file"],
    ),
    ("a pipe as config.json", |dir| instead(dir, CONFIG, pipe), &["config.json", "a FIFO"]),
    ("a pipe as the weights", |dir| instead(dir, MODEL, pipe), &["model.safetensors", "a FIFO"]),
    (
        "a pipe as the tokenizer",
        |dir| instead(dir, "base/tokenizer.json", pipe),
        &["tokenizer.json", "a FIFO"],
    ),
    (
        "an endless device as the weights",
        |dir| instead(dir, MODEL, |path| symlink("/dev/zero", path).unwrap()),
        &["model.safetensors", "a device"],
    ),
    (
        "a link in a circle",
        |dir| instead(dir, CONFIG, |path| symlink("config.json", path).unwrap()),
        &["config.json", "symbolic links"],
    ),
    ("no base", |dir| fs::remove_dir_all(dir.join("base")).unwrap(), &["base/config.json", "No such file"]),
    ("no adapter", |dir| fs::remove_dir_all(dir.join("adapter")).unwrap(), &["adapter_config.json"]),
];

/// The error message of an export that exits with `code`: 4 for the source, 2 for an invalid output, 1 otherwise.
fn refusal(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.lines().any(|line| line.starts_with("error: ")) && !said.contains("panicked"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    said
}

fn each_is_refused(damages: &[Damage]) {
    for (what, damage, words) in damages {
        let sources = Sources::new();
        damage(sources.path());
        let said = refusal(&finish(&mut sources.export(&sources.out("model"), &["--quantize", "int4"])), 4);
        for word in *words {
            assert!(said.contains(word), "{what}: {word:?} is not in: {said}");
        }
        assert_eq!(names(&sources.path().join("out")), [""; 0], "{what}");
    }
}

#[test]
fn a_damaged_file_is_rejected_with_an_explanation() {
    each_is_refused(FILES);
}

#[test]
fn shards_that_disagree_with_their_index_are_rejected() {
    each_is_refused(SHARDS);
}

#[test]
fn weights_in_an_unsupported_format_are_rejected_with_the_fix() {
    each_is_refused(FORMATS);
}

#[test]
fn a_nan_weight_is_rejected_with_its_position() {
    each_is_refused(NUMBERS);
}

#[test]
fn impossible_model_configurations_are_rejected() {
    each_is_refused(SETTINGS);
}

#[test]
fn damaged_tokenizer_and_template_files_are_rejected() {
    each_is_refused(COMPANIONS);
}

#[test]
fn special_files_are_rejected_without_waiting() {
    each_is_refused(PLACES);
}

#[test]
fn unreadable_files_are_rejected() {
    let sources = Sources::new();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    fs::set_permissions(sources.path().join(MODEL), closed).unwrap();
    if fs::read(sources.path().join(MODEL)).is_ok() {
        return; // Permissions do not hold for root.
    }
    let said = refusal(&finish(&mut sources.export(&sources.out("model"), &[])), 4);
    assert!(said.contains("model.safetensors") && said.contains("denied"), "{said}");
}

#[test]
fn shards_may_be_symlinks_as_in_the_hugging_face_cache() {
    let sources = Sources::new();
    let whole = sources.out("whole");
    assert!(finish(&mut sources.export(&whole, &[])).status.success());
    shard(sources.path());
    let blobs = sources.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    for name in names(&sources.path().join("base")) {
        let path = sources.path().join("base").join(&name);
        fs::rename(&path, blobs.join(&name)).unwrap();
        symlink(Path::new("../blobs").join(&name), &path).unwrap();
    }
    let linked = sources.out("linked");
    let done = finish(&mut sources.export(&linked, &[]));
    assert!(done.status.success(), "{}", text(&done.stderr));
    for file in ["model.onnx", "model.onnx.data"] {
        assert!(fs::read(whole.join(file)).unwrap() == fs::read(linked.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn a_single_weights_file_takes_precedence_over_an_index() {
    let sources = Sources::new();
    let single = fs::read(sources.path().join(MODEL)).unwrap();
    shard(sources.path());
    fs::write(sources.path().join(MODEL), single).unwrap();
    let out = sources.out("model");
    assert!(finish(&mut sources.export(&out, &[])).status.success());
    let manifest = fs::read_to_string(out.join("eka.json")).unwrap();
    assert!(manifest.contains("base/model.safetensors\"") && !manifest.contains(".index.json"), "{manifest}");
}

#[test]
fn an_invalid_output_is_rejected_and_unchanged() {
    let sources = Sources::new();
    let (file, full) = (sources.out("file"), sources.out("full"));
    fs::write(&file, "kept").unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter"), "kept").unwrap();
    let (base, inside) = (sources.path().join("base"), sources.path().join("adapter/out"));
    for (out, flags, word) in [
        (&full, &[][..], "--force"),
        (&full, &["--force"], "not written by an export"),
        (&file, &["--force"], "not written by an export"),
        (&file.join("model"), &[], "a directory above the output is a file"),
        (&base, &["--force"], "inside the source"),
        (&inside, &[], "inside the source"),
        (&sources.out(".."), &[], "expected the name"),
    ] {
        let said =
            refusal(&finish(&mut sources.export(out, flags)), if word.contains("above") { 1 } else { 2 });
        assert!(said.contains(word), "{out:?}: {word:?} is not in: {said}");
    }
    assert_eq!(names(&sources.path().join("out")), ["file", "full"]);
    assert_eq!(fs::read_to_string(full.join("letter")).unwrap(), "kept");
    assert_eq!(names(&sources.path().join("adapter")).len(), 2);
}

#[test]
fn an_output_may_have_any_name() {
    let sources = Sources::new();
    let out = sources.path().join("out");
    for name in ["two words", "-dash", "हिन्दी", ".hidden", "a'b\"c", "--force", "model.partial-abcdef"]
    {
        let mut command = sources.export(Path::new(name), &[]);
        let done = finish(command.current_dir(&out));
        assert!(done.status.success(), "{name}: {}", text(&done.stderr));
        assert!(out.join(name).join("eka.json").is_file(), "{name}");
    }
    assert_eq!(names(&out).len(), 7);
}
