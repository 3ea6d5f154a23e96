//! Mixtures of experts: eka's operator beside plain nodes, the same bits whatever a token is computed beside, and adapters of experts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use eka::{
    device::SessionOptions,
    engine::Timeline,
    export::{AdapterSource, Options, Source, Storage, WeightFormat, ZeroPoints, export},
    manifest::Dtype,
};
use safetensors::{
    SafeTensors,
    tensor::{Dtype as Stored, TensorView},
};
use serde_json::json;

use crate::support::{
    models::{OPTIONS, open_with},
    program::root,
};

/// One of each kind of routing.
const CASES: [&str; 4] = ["qwen2_moe", "granitemoe", "glm4_moe", "phimoe"];

fn fixture(case: &str) -> PathBuf {
    root().join("tests/fixtures/architectures").join(case)
}

/// A copy of the base of `case` with a tokenizer, in `dir`.
fn base(case: &str, dir: &Path) -> PathBuf {
    let copy = dir.join(format!("{case}-base"));
    fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture(case).join("base").join(name), copy.join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root().join("tests/fixtures/llama/base").join(name), copy.join(name)).unwrap();
    }
    copy
}

fn storage(format: WeightFormat, zero_points: ZeroPoints) -> Storage {
    Storage { format, zero_points, ..Storage::default() }
}

fn exported(source: Source, weights: Storage, dtype: Dtype, output: &Path) {
    export(&Options { weights, dtype, ..Options::new(source, output.into()) }, &()).unwrap();
}

fn expected(case: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = fs::read(fixture(case).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ids = tensors.tensor("input_ids").unwrap();
    let ids = ids.data().as_chunks::<8>().0.iter();
    let ids = ids.map(|eight| u32::try_from(i64::from_le_bytes(*eight)).unwrap()).collect();
    (ids, floats(&tensors.tensor("logits_base").unwrap()))
}

fn floats(tensor: &TensorView) -> Vec<f32> {
    tensor.data().as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

fn plain(dir: &Path) -> Timeline {
    open_with(dir, 64, SessionOptions { own_operators: false, ..OPTIONS })
}

/// The root of the mean square of the difference, as a share of that of `expected`.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    let size = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x * x)).sum::<f64>();
    let difference = size(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (difference / size(&mut expected.iter().copied())).sqrt()
}

#[test]
fn plain_nodes_compute_what_the_operator_for_experts_computes() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = BTreeMap::new();
    for case in CASES {
        let base = base(case, dir.path());
        let (prompt, expected) = expected(case);
        for (name, weights, dtype, most) in [
            ("float32", Storage::default(), Dtype::Float32, 1e-5),
            ("float16", Storage::default(), Dtype::Float16, 0.01),
            // What is left is the rounding of activations to int8.
            ("int8", storage(WeightFormat::Int8, ZeroPoints::Middle), Dtype::Float32, 0.05),
            ("int4", storage(WeightFormat::Int4, ZeroPoints::PerBlock), Dtype::Float32, 0.05),
        ] {
            let output = dir.path().join(format!("{case}-{name}"));
            let source = Source::Checkpoint { base: base.clone(), adapters: Vec::new() };
            exported(source, weights, dtype, &output);
            let theirs = plain(&output).forward_all(&prompt).unwrap();
            if name == "float32" {
                assert!(off(&theirs, &expected) < 1e-5, "{case}");
            }
            let ours = open_with(&output, 64, OPTIONS).forward_all(&prompt).unwrap();
            let apart = off(&ours, &theirs);
            assert!(apart <= most, "{case} in {name}: {apart}");
            seen.insert((case, name), apart);
        }
    }
    println!("{seen:.6?}");
}

#[test]
fn a_token_has_the_same_bits_in_chunks_of_any_length_and_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["qwen2_moe", "olmoe", "glm4_moe"] {
        for (name, weights, dtype) in [
            ("float32", Storage::default(), Dtype::Float32),
            ("float16", Storage::default(), Dtype::Float16),
            ("int8", storage(WeightFormat::Int8, ZeroPoints::Middle), Dtype::Float32),
            ("int4", storage(WeightFormat::Int4, ZeroPoints::PerBlock), Dtype::Float32),
        ] {
            let output = dir.path().join(format!("{case}-{name}"));
            let source = Source::Random { config: fixture(case).join("base/config.json"), seed: 5 };
            exported(source, weights, dtype, &output);
            let prompt: Vec<u32> = (0..100u32).map(|n| n * n * 7 % 96).collect();
            let bits = |chunk, threads| -> Vec<u32> {
                let mut timeline = open_with(&output, chunk, SessionOptions { threads, ..OPTIONS });
                assert!(timeline.model().is_row_invariant(), "{case} in {name}");
                timeline.forward_all(&prompt).unwrap().iter().map(|logit| logit.to_bits()).collect()
            };
            let whole = bits(64, 1);
            for (chunk, threads) in [(7, 2), (1, 1), (64, 3)] {
                assert!(
                    bits(chunk, threads) == whole,
                    "{case} in {name}, chunks of {chunk} on {threads} threads"
                );
            }
        }
    }
}

/// Writes `tensors` to a safetensors file.
fn write(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (name.clone(), shape.clone(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Stored::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Training that knows each expert as a module saves a pair of matrices for each.
#[test]
fn an_adapter_of_single_experts_is_merged_into_them() {
    let dir = tempfile::tempdir().unwrap();
    let base = base("olmoe", dir.path());
    let changed = dir.path().join("changed");
    fs::create_dir(&changed).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(base.join(name), changed.join(name)).unwrap();
    }
    let mut tensors = tensors_of(&base);
    let mut adapter = BTreeMap::new();
    for (expert, part) in [(0, "down_proj"), (3, "gate_proj"), (7, "up_proj")] {
        let module = format!("model.layers.1.mlp.experts.{expert}.{part}");
        let (shape, values) = tensors.get_mut(&format!("{module}.weight")).unwrap();
        let (rows, columns) = (shape[0], shape[1]);
        let a: Vec<f32> = (0..columns).map(|at| (at as f32).sin()).collect();
        let b: Vec<f32> = (0..rows).map(|at| (at as f32).cos()).collect();
        for (at, value) in values.iter_mut().enumerate() {
            *value += 2.0 * b[at / columns] * a[at % columns];
        }
        adapter.insert(format!("base_model.model.{module}.lora_A.weight"), (vec![1, columns], a));
        adapter.insert(format!("base_model.model.{module}.lora_B.weight"), (vec![rows, 1], b));
    }
    write(&changed.join("model.safetensors"), &tensors);
    let folder = dir.path().join("adapter");
    fs::create_dir(&folder).unwrap();
    write(&folder.join("adapter_model.safetensors"), &adapter);
    let settings = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["gate_proj", "up_proj", "down_proj"]
    });
    fs::write(folder.join("adapter_config.json"), settings.to_string()).unwrap();
    let (prompt, unchanged) = expected("olmoe");
    let logits = |base: &Path, adapters, name: &str| {
        let output = dir.path().join(name);
        exported(
            Source::Checkpoint { base: base.into(), adapters },
            Storage::default(),
            Dtype::Float32,
            &output,
        );
        open_with(&output, 64, OPTIONS).forward_all(&prompt).unwrap()
    };
    let adapters = vec![AdapterSource { dir: folder, weight: 1.0 }];
    let (merged, expected) = (logits(&base, adapters, "merged"), logits(&changed, Vec::new(), "whole"));
    assert!(off(&merged, &expected) < 1e-5, "{}", off(&merged, &expected));
    assert!(off(&merged, &unchanged) > 0.01, "the adapter changes nothing");
}

/// The tensors of a checkpoint in float16, as float32.
fn tensors_of(base: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(base.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let widened = |(name, tensor): (&str, TensorView)| {
        let halfs = tensor.data().as_chunks::<2>().0.iter();
        let values = halfs.map(|pair| half::f16::from_le_bytes(*pair).to_f32()).collect();
        (name.to_owned(), (tensor.shape().to_vec(), values))
    };
    stored.iter().map(widened).collect()
}

fn weights_of(base: PathBuf, output: &Path) -> Vec<u8> {
    let weights = storage(WeightFormat::Int4, ZeroPoints::PerBlock);
    exported(Source::Checkpoint { base, adapters: Vec::new() }, weights, Dtype::Float32, output);
    fs::read(output.join("model.onnx.data")).unwrap()
}

/// transformers 5 has gate and up of all experts in one tensor in memory, and some programs save that.
#[test]
fn experts_in_tensors_of_all_give_the_same_export_as_experts_in_tensors_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let base = base("qwen3_moe", dir.path());
    let mut tensors = tensors_of(&base);
    for layer in 0..2 {
        let module = format!("model.layers.{layer}.mlp.experts");
        let mut take = |expert: usize, part: &str| {
            tensors.remove(&format!("{module}.{expert}.{part}_proj.weight")).unwrap().1
        };
        let (mut both, mut down) = (Vec::new(), Vec::new());
        for expert in 0..8 {
            both.extend([take(expert, "gate"), take(expert, "up")].concat());
            down.extend(take(expert, "down"));
        }
        tensors.insert(format!("{module}.gate_up_proj"), (vec![8, 48, 32], both));
        tensors.insert(format!("{module}.down_proj"), (vec![8, 32, 24], down));
    }
    let alone = weights_of(base.clone(), &dir.path().join("alone"));
    write(&base.join("model.safetensors"), &tensors);
    assert!(weights_of(base, &dir.path().join("together")) == alone);
}

/// The values of four bits in MXFP4.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// gpt-oss is published with the weights of experts in blocks of 32 floats of four bits, and an exponent for each.
#[test]
fn experts_of_gpt_oss_in_mxfp4_are_the_numbers_that_they_stand_for() {
    const EXPERTS: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let base = base("gpt_oss", dir.path());
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(base.join("config.json")).unwrap()).unwrap();
    config["intermediate_size"] = json!(64);
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let mut tensors = tensors_of(&base);
    let mut packed: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for layer in 0..2 {
        let module = format!("model.layers.{layer}.mlp.experts");
        tensors
            .insert(format!("{module}.gate_up_proj_bias"), (vec![EXPERTS, 128], vec![0.25; EXPERTS * 128]));
        for (name, rows, columns) in [("gate_up_proj", 128, 32), ("down_proj", 32, 64)] {
            let blocks = EXPERTS * rows * columns / 32;
            let codes: Vec<u8> =
                (0..blocks * 16).map(|at| (at * 37 + at / 11 + layer).to_le_bytes()[0]).collect();
            let exponents: Vec<u8> = (0..blocks).map(|at| 122 + (at % 5).to_le_bytes()[0]).collect();
            let number = |expert: usize, row: usize, column: usize| {
                let at = (expert * rows + row) * columns + column;
                let code = codes[at / 2] >> (at % 2 * 4) & 15;
                let size = E2M1[usize::from(code & 7)] * (f32::from(exponents[at / 32]) - 127.0).exp2();
                if code & 8 == 0 { size } else { -size }
            };
            // In floats, as [experts, in, out].
            let mut values = Vec::new();
            for expert in 0..EXPERTS {
                for column in 0..columns {
                    values.extend((0..rows).map(|row| number(expert, row, column)));
                }
            }
            tensors.insert(format!("{module}.{name}"), (vec![EXPERTS, columns, rows], values));
            packed.push((format!("{module}.{name}_blocks"), vec![EXPERTS, rows, columns / 32, 16], codes));
            packed.push((format!("{module}.{name}_scales"), vec![EXPERTS, rows, columns / 32], exponents));
        }
    }
    write(&base.join("model.safetensors"), &tensors);
    let whole = weights_of(base.clone(), &dir.path().join("whole"));
    tensors.retain(|name, _| !name.ends_with("_proj") || !name.contains("experts"));
    let floats = tensors.iter().map(|(name, (shape, values))| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (name.clone(), Stored::F32, shape.clone(), bytes)
    });
    let all: Vec<_> = floats
        .chain(packed.into_iter().map(|(name, shape, bytes)| (name, Stored::U8, shape, bytes)))
        .collect();
    let views = all.iter().map(|(name, stored, shape, bytes)| {
        (name.clone(), TensorView::new(*stored, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &base.join("model.safetensors")).unwrap();
    config["quantization_config"] = json!({ "quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"] });
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    assert!(weights_of(base, &dir.path().join("packed")) == whole);
}

/// DeepSeek-V3 and GLM-4.5 are published with a layer behind the last that predicts the token after the next one.
#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let base = base("deepseek_v3", dir.path());
    let mut tensors = tensors_of(&base);
    let alone = weights_of(base.clone(), &dir.path().join("alone"));
    for name in ["eh_proj.weight", "mlp.experts.0.up_proj.weight"] {
        tensors.insert(format!("model.layers.3.{name}"), (vec![2, 2], vec![0.5; 4]));
    }
    write(&base.join("model.safetensors"), &tensors);
    assert!(weights_of(base, &dir.path().join("with-another-layer")) == alone);
}
