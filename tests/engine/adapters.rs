//! Adapters beside their base against the logits of transformers and PEFT, and against merged exports.

use std::{
    fs,
    path::{Path, PathBuf},
};

use eka::{
    engine::{Forward, Timeline},
    export::{
        AdapterOptions, AdapterSource, Existing, Options, Source, Storage, WeightFormat, export,
        export_adapter,
    },
    manifest::{self, AdapterManifest},
    model::LoadedAdapter,
};
use safetensors::SafeTensors;

use crate::support::{models::open_directory, program::root};

/// Greatest difference of a logit in float32.
const TOLERANCE: f32 = 1e-4;

const ADAPTERS: &str = "tests/fixtures/adapters";

/// What must be merged, with the tensor that the error names.
const REFUSED: [(&str, &str); 13] = [
    ("embedding", "embed_tokens"),
    ("embedding-tied", "embed_tokens"),
    ("head-tied", "embed_tokens"),
    ("positions", "wpe"),
    ("dora-embedding", "embed_tokens"),
    ("saved-head", "lm_head"),
    ("saved-embedding", "embed_tokens"),
    ("saved-tied", "embed_tokens"),
    ("saved-norms", "layernorm"),
    ("grown", "embed_tokens"),
    ("grown-lora", "embed_tokens"),
    ("tokens", "embed_tokens"),
    ("grown-tokens", "embed_tokens"),
];

/// The bases of cases whose base is not `llama`.
const BASES: [(&str, &str); 18] = [
    ("embedding-tied", "llama-tied"),
    ("head-tied", "qwen2"),
    ("positions", "gpt2"),
    ("dora-conv1d", "gpt2"),
    ("dora-fused", "bloom"),
    ("bias-all", "gpt2"),
    ("bias-lora-only", "bloom"),
    ("lora-bias", "bloom"),
    ("patterns", "qwen2"),
    ("saved-head", "llama-tied"),
    ("saved-embedding", "llama-tied"),
    ("saved-tied", "llama-tied"),
    ("saved-norms", "gemma2"),
    ("saved-layer-norms", "gpt2"),
    ("grown", "llama-tied"),
    ("grown-lora", "llama-tied"),
    ("tokens", "llama-tied"),
    ("grown-tokens", "llama-tied"),
];

/// Every kind of adapter.
const KINDS: [&str; 23] = [
    "all-linear",
    "embedding",
    "embedding-tied",
    "head-tied",
    "positions",
    "dora-conv1d",
    "dora-embedding",
    "dora-fused",
    "bias-all",
    "bias-lora-only",
    "lora-bias",
    "patterns",
    "layers",
    "saved-head",
    "saved-embedding",
    "saved-tied",
    "saved-norms",
    "saved-input-norms",
    "saved-layer-norms",
    "grown",
    "grown-lora",
    "tokens",
    "grown-tokens",
];

/// What transformers and PEFT compute.
struct Expected {
    prompt: Vec<u32>,
    base: Vec<f32>,
    merged: Vec<f32>,
}

impl Expected {
    fn read(file: &Path) -> Self {
        let bytes = fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let (chunks, _) = tensors.tensor(name).unwrap().data().as_chunks::<4>();
            chunks.iter().map(|four| f32::from_le_bytes(*four)).collect()
        };
        let prompt = tensors.tensor("input_ids").unwrap();
        let (chunks, _) = prompt.data().as_chunks::<8>();
        let prompt = chunks.iter().map(|id| u32::try_from(i64::from_le_bytes(*id)).unwrap()).collect();
        let merged = floats("logits_merged");
        let base = if tensors.tensor("logits_base").is_ok() { floats("logits_base") } else { merged.clone() };
        Self { prompt, base, merged }
    }
}

/// A base, with adapters beside it.
struct Beside {
    dir: tempfile::TempDir,
}

impl Beside {
    fn new(base: &Path, format: WeightFormat) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::Checkpoint { base: with_tokenizer(base, dir.path()), adapters: Vec::new() };
        let weights = Storage { format, ..Storage::default() };
        export(&Options { weights, ..Options::new(source, dir.path().join("model")) }, &()).unwrap();
        Self { dir }
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn add(&self, name: &str, adapter: &Path) -> Result<(), String> {
        let options = AdapterOptions {
            base: self.model(),
            adapter: adapter.into(),
            name: Some(name.into()),
            output: None,
            existing: Existing::Keep,
        };
        export_adapter(&options, &()).map(drop).map_err(|e| e.to_string())
    }

    fn open(&self, chunk: usize) -> Timeline {
        open_directory(&self.model(), chunk)
    }

    fn load(&self, timeline: &Timeline, name: &str) -> LoadedAdapter {
        let dir = manifest::adapter_dir(&self.model(), name);
        let (_, hash) = AdapterManifest::read(&dir).unwrap();
        let base = manifest::identity(&self.model()).unwrap();
        timeline.model().load_adapter(&dir, &hash, &base).unwrap()
    }
}

/// A copy of a base that has no tokenizer with that of another.
fn with_tokenizer(base: &Path, dir: &Path) -> PathBuf {
    if base.join("tokenizer.json").is_file() {
        return base.into();
    }
    let copy = dir.join("base");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(base).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root().join("tests/fixtures/llama/base").join(name), copy.join(name)).unwrap();
    }
    copy
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The mean square of the differences.
fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len() as f64
}

fn logits(timeline: &mut Timeline, prompt: &[u32]) -> Vec<f32> {
    timeline.rewind(0);
    timeline.forward_all(prompt).unwrap()
}

fn folders(folder: &str) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.retain(|dir| dir.join("adapter").is_dir() && dir.join("base").is_dir());
    dirs.sort();
    dirs
}

#[test]
fn adapters_beside_every_architecture_match_peft_and_leave_the_base_as_it_was() {
    let mut greatest = 0.0;
    let dirs = [folders("tests/fixtures/models"), folders("tests/fixtures/architectures")].concat();
    assert!(dirs.len() >= 54, "{}", dirs.len());
    for dir in dirs {
        let expected = Expected::read(&dir.join("expected.safetensors"));
        let beside = Beside::new(&dir.join("base"), WeightFormat::Full);
        if let Err(error) = beside.add("one", &dir.join("adapter")) {
            // Experts are no products of their own.
            let names_experts = ["experts", "moe"].iter().any(|name| error.contains(name));
            assert!(names_experts && error.contains("merge it instead"), "{}: {error}", dir.display());
            continue;
        }
        let mut timeline = beside.open(16);
        let alone = logits(&mut timeline, &expected.prompt);
        let adapter = beside.load(&timeline, "one");
        timeline.use_adapters(&[(&adapter, 1.0)]);
        let with = apart(&logits(&mut timeline, &expected.prompt), &expected.merged);
        assert!(with <= TOLERANCE, "{}: {with}", dir.display());
        timeline.use_adapters(&[]);
        assert!(logits(&mut timeline, &expected.prompt) == alone, "{}: the base has changed", dir.display());
        assert!(apart(&alone, &expected.base) <= TOLERANCE, "{}", dir.display());
        greatest = f32::max(greatest, with);
    }
    println!("greatest difference: {greatest}");
}

#[test]
fn adapters_of_every_kind_match_peft_or_are_refused_by_name() {
    for case in KINDS {
        let base = BASES.iter().find(|(name, _)| *name == case).map_or("llama", |(_, base)| base);
        let beside = Beside::new(&root().join(ADAPTERS).join("bases").join(base), WeightFormat::Full);
        let added = beside.add("one", &root().join(ADAPTERS).join(case).join("adapter"));
        if let Some((_, tensor)) = REFUSED.iter().find(|(name, _)| *name == case) {
            let error = added.expect_err(case);
            assert!(error.contains(tensor) && error.contains("merge it instead"), "{case}: {error}");
            assert!(!manifest::adapter_dir(&beside.model(), "one").exists(), "{case}");
            continue;
        }
        added.unwrap_or_else(|e| panic!("{case}: {e}"));
        let expected = Expected::read(&root().join(ADAPTERS).join(case).join("expected.safetensors"));
        let mut timeline = beside.open(16);
        let adapter = beside.load(&timeline, "one");
        timeline.use_adapters(&[(&adapter, 1.0)]);
        let with = apart(&logits(&mut timeline, &expected.prompt), &expected.merged);
        assert!(with <= TOLERANCE, "{case}: {with}");
    }
}

#[test]
fn several_adapters_add_up_with_their_weights() {
    let case = root().join(ADAPTERS).join("two");
    let beside = Beside::new(&root().join(ADAPTERS).join("bases/llama"), WeightFormat::Full);
    for name in ["one", "two"] {
        beside.add(name, &case.join(name)).unwrap();
    }
    let expected = Expected::read(&case.join("expected.safetensors"));
    let mut timeline = beside.open(16);
    let [one, two] = ["one", "two"].map(|name| beside.load(&timeline, name));
    timeline.use_adapters(&[(&one, 0.7), (&two, -0.3)]);
    let with = apart(&logits(&mut timeline, &expected.prompt), &expected.merged);
    assert!(with <= TOLERANCE, "{with}");
}

#[test]
fn dora_with_any_weight_is_what_a_merge_with_that_weight_gives() {
    for (case, base) in [("dora-conv1d", "gpt2"), ("dora-fused", "bloom")] {
        let base = root().join(ADAPTERS).join("bases").join(base);
        let adapter = root().join(ADAPTERS).join(case).join("adapter");
        let prompt: Vec<u32> = (3..40).collect();
        let beside = Beside::new(&base, WeightFormat::Full);
        beside.add("one", &adapter).unwrap();
        let mut timeline = beside.open(16);
        let loaded = beside.load(&timeline, "one");
        for weight in [1.0, 0.4, -0.5] {
            timeline.use_adapters(&[(&loaded, weight)]);
            let unmerged = logits(&mut timeline, &prompt);
            let dir = tempfile::tempdir().unwrap();
            let source = Source::Checkpoint {
                base: with_tokenizer(&base, dir.path()),
                adapters: vec![AdapterSource { dir: adapter.clone(), weight }],
            };
            export(&Options::new(source, dir.path().join("model")), &()).unwrap();
            let merged = logits(&mut open_directory(&dir.path().join("model"), 16), &prompt);
            let with = apart(&unmerged, &merged);
            assert!(with <= TOLERANCE, "{case} with {weight}: {with}");
        }
    }
}

#[test]
fn hidden_states_with_norms_of_an_adapter_are_those_of_the_merged_model() {
    for (case, base) in [("saved-input-norms", "llama"), ("saved-layer-norms", "gpt2")] {
        let base = root().join(ADAPTERS).join("bases").join(base);
        let adapter = root().join(ADAPTERS).join(case).join("adapter");
        let prompt: Vec<u32> = (3..12).collect();
        let beside = Beside::new(&base, WeightFormat::Full);
        beside.add("one", &adapter).unwrap();
        let mut timeline = beside.open(16);
        let loaded = beside.load(&timeline, "one");
        timeline.use_adapters(&[(&loaded, 1.0)]);
        let unmerged = timeline.forward_hidden(&prompt, prompt.len()).unwrap().to_vec();
        let dir = tempfile::tempdir().unwrap();
        let source = Source::Checkpoint {
            base: with_tokenizer(&base, dir.path()),
            adapters: vec![AdapterSource { dir: adapter, weight: 1.0 }],
        };
        export(&Options::new(source, dir.path().join("model")), &()).unwrap();
        let mut merged = open_directory(&dir.path().join("model"), 16);
        let merged = merged.forward_hidden(&prompt, prompt.len()).unwrap();
        assert!(apart(&unmerged, merged) <= TOLERANCE, "{case}: {}", apart(&unmerged, merged));
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_pass_with_an_adapter() {
    for format in [WeightFormat::Full, WeightFormat::Int4, WeightFormat::Int8] {
        let base = root().join(ADAPTERS).join("bases/llama");
        let beside = Beside::new(&base, format);
        beside.add("one", &root().join(ADAPTERS).join("all-linear/adapter")).unwrap();
        let prompt: Vec<u32> = (3..40).collect();
        let of_chunk = |chunk| {
            let mut timeline = beside.open(chunk);
            let adapter = beside.load(&timeline, "one");
            timeline.use_adapters(&[(&adapter, 1.0)]);
            logits(&mut timeline, &prompt)
        };
        let whole = of_chunk(64);
        for chunk in [1, 2, 5] {
            assert!(of_chunk(chunk) == whole, "{format} in passes of {chunk}");
        }
    }
}

/// An int4 base with an adapter beside it is no further from the merged float32 model than the merged and quantized model is.
#[test]
fn an_int4_base_is_as_close_to_the_merged_model_as_merging_and_quantizing() {
    let (mut beside_all, mut merged_all) = (0.0, 0.0);
    for dir in folders("tests/fixtures/models") {
        let expected = Expected::read(&dir.join("expected.safetensors"));
        let beside = Beside::new(&dir.join("base"), WeightFormat::Int4);
        beside.add("one", &dir.join("adapter")).unwrap();
        let mut timeline = beside.open(64);
        let adapter = beside.load(&timeline, "one");
        timeline.use_adapters(&[(&adapter, 1.0)]);
        let unmerged = mean_square(&logits(&mut timeline, &expected.prompt), &expected.merged);
        let output = tempfile::tempdir().unwrap();
        let source = Source::Checkpoint {
            base: dir.join("base"),
            adapters: vec![AdapterSource { dir: dir.join("adapter"), weight: 1.0 }],
        };
        let weights = Storage { format: WeightFormat::Int4, ..Storage::default() };
        export(&Options { weights, ..Options::new(source, output.path().join("model")) }, &()).unwrap();
        let merged = logits(&mut open_directory(&output.path().join("model"), 64), &expected.prompt);
        let merged = mean_square(&merged, &expected.merged);
        beside_all += unmerged / merged;
        merged_all += 1.0;
    }
    let ratio = beside_all / merged_all;
    println!("mean ratio of squared errors, beside the base over merged: {ratio:.3}");
    assert!(ratio < 1.1, "{ratio}");
}

#[test]
fn an_adapter_of_another_base_a_replaced_one_and_a_damaged_one_are_refused() {
    let base = root().join(ADAPTERS).join("bases/llama");
    let beside = Beside::new(&base, WeightFormat::Full);
    let adapter = root().join(ADAPTERS).join("layers/adapter");
    beside.add("one", &adapter).unwrap();
    assert!(beside.add("one", &adapter).unwrap_err().contains("--force"));
    assert!(beside.add("../one", &adapter).unwrap_err().contains("letters, digits"));
    let timeline = beside.open(16);
    let dir = manifest::adapter_dir(&beside.model(), "one");
    let (_, hash) = AdapterManifest::read(&dir).unwrap();
    let identity = manifest::identity(&beside.model()).unwrap();
    let load = |hash: &[u8; 32], identity: &str| {
        timeline.model().load_adapter(&dir, hash, identity).map(drop).map_err(|e| e.to_string())
    };
    load(&hash, &identity).unwrap();
    assert!(load(&hash, "another").unwrap_err().contains("another base"));
    assert!(load(&[0; 32], &identity).unwrap_err().contains("replaced"));
    let tensors = dir.join("adapter.safetensors");
    let content = fs::read(&tensors).unwrap();
    for length in [0, 4, 12, content.len() / 2, content.len() - 1] {
        fs::write(&tensors, &content[..length]).unwrap();
        let error = load(&hash, &identity).unwrap_err();
        assert!(error.contains("adapter.safetensors"), "{length}: {error}");
    }
    fs::write(&tensors, [&content[..], &[0]].concat()).unwrap();
    assert!(load(&hash, &identity).unwrap_err().contains("run `eka export-adapter` again"));
}

#[test]
fn a_base_that_another_version_has_arranged_in_another_way_is_refused() {
    let beside = Beside::new(&root().join(ADAPTERS).join("bases/llama"), WeightFormat::Full);
    let file = beside.model().join("adapter_base.json");
    let mut base: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    base["linears"] = "0".repeat(64).into();
    fs::write(&file, base.to_string()).unwrap();
    let adapter = root().join(ADAPTERS).join("layers/adapter");
    let error = beside.add("one", &adapter).unwrap_err();
    assert!(error.contains("another version of eka") && error.contains("export the base again"), "{error}");
    fs::remove_file(&file).unwrap();
    let error = beside.add("one", &adapter).unwrap_err();
    assert!(error.contains("adapter_base.json") && error.contains("export the base again"), "{error}");
}
