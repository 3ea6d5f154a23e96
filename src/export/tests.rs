//! The export as a whole, on a tiny checkpoint.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use tempfile::TempDir;

use super::{
    data_layout::DATA_FILE,
    run::GRAPH_FILE,
    testing::{self, Tensor},
    *,
};
use crate::{
    manifest::{self, Manifest, Override, Quantization},
    onnx::{self, Model, Tensor as Initializer},
};

const INT4: Quantization = Quantization { bits: 4, block_size: 32, zero_points: false, accuracy_level: 4 };

/// The least that a server can use.
const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;

struct Tiny {
    dir: TempDir,
    options: Options,
}

fn stored(format: WeightFormat, block_size: usize) -> Storage {
    Storage { format, block_size: block_size.try_into().unwrap(), ..Storage::default() }
}

fn int4() -> Storage {
    stored(WeightFormat::Int4, 32)
}

impl Tiny {
    fn new(tied: bool, weights: Storage) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs::create_dir(&base).unwrap();
        fs::write(base.join("config.json"), testing::config(tied)).unwrap();
        fs::write(base.join("tokenizer.json"), TOKENIZER).unwrap();
        testing::write(&base.join("model.safetensors"), &testing::tensors(tied));
        let source = Source::Checkpoint { base, adapters: Vec::new() };
        let output = dir.path().join("out/model");
        Self { dir, options: Options { weights, ..Options::new(source, output) } }
    }

    fn base(&self, name: &str) -> PathBuf {
        self.dir.path().join("base").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.options.output.join(name)).unwrap()
    }

    fn model(&self) -> Model {
        Model::decode(&*self.read(GRAPH_FILE)).unwrap()
    }

    fn left_over(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("out")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn initializer<'a>(model: &'a Model, name: &str) -> &'a Initializer {
    model.graph.as_ref().unwrap().initializer.iter().find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn the_directory_holds_a_manifest_that_can_be_read_back() {
    let tiny = Tiny::new(false, int4());
    let report = export(&tiny.options, &()).unwrap();
    let manifest = Manifest::read(&tiny.options.output).unwrap();
    assert_eq!(manifest.parameters, report.parameters);
    assert_eq!(manifest.end_tokens, [2]);
    assert_eq!(manifest.quantization, Some(INT4));
    let sources: Vec<_> = manifest.provenance.sources.iter().map(|source| &*source.path).collect();
    assert_eq!(sources, ["base/config.json", "base/model.safetensors", "base/tokenizer.json"]);
    assert_eq!(tiny.read("tokenizer.json"), TOKENIZER.as_bytes());
    assert_eq!(tiny.left_over(), std::slice::from_ref(&tiny.options.output));
}

#[test]
fn the_same_export_gives_the_same_bytes() {
    for weights in [Storage::default(), int4(), stored(WeightFormat::Int8, 64)] {
        let [one, two] = [(); 2].map(|()| Tiny::new(true, weights.clone()));
        for tiny in [&one, &two] {
            export(&tiny.options, &()).unwrap();
        }
        for file in [GRAPH_FILE, DATA_FILE, manifest::FILE_NAME] {
            assert_eq!(one.read(file), two.read(file), "{file} of {weights:?}");
        }
    }
}

#[test]
fn inputs_and_outputs_are_those_of_the_contract() {
    let tiny = Tiny::new(false, Storage::default());
    export(&tiny.options, &()).unwrap();
    let graph = tiny.model().graph.unwrap();
    let names = |values: &[onnx::ValueInfo]| values.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&graph.input)[..4], ["input_ids", "seqlens_k", "total_sequence_length", "logits_index"]);
    assert_eq!(names(&graph.input)[4..6], ["past_key_values.0.key", "past_key_values.0.value"]);
    assert_eq!(names(&graph.output)[..3], ["logits", "present.0.key", "present.0.value"]);
    assert_eq!((graph.input.len(), graph.output.len()), (8, 5));
}

#[test]
fn a_tied_head_and_the_embedding_are_the_same_bytes() {
    for (weights, names) in [
        (Storage::default(), [("embedding.weight", "head.weight")].as_slice()),
        (int4(), &[("embedding.codes", "head.codes"), ("embedding.scales.stored", "head.scales.stored")]),
        (
            Storage { zero_points: ZeroPoints::PerBlock, ..stored(WeightFormat::Int8, 32) },
            &[("embedding.codes", "head.codes"), ("embedding.zero_points", "head.zero_points")],
        ),
    ] {
        let tiny = Tiny::new(true, weights);
        export(&tiny.options, &()).unwrap();
        let model = tiny.model();
        for (embedding, head) in names {
            let [embedding, head] = [embedding, head].map(|name| &initializer(&model, name).external_data);
            assert_eq!(embedding, head);
        }
    }
}

#[test]
fn blocks_are_shorter_where_longer_ones_do_not_divide_a_row() {
    let tiny = Tiny::new(true, stored(WeightFormat::Int4, 128));
    export(&tiny.options, &()).unwrap();
    let model = tiny.model();
    assert_eq!(initializer(&model, "embedding.codes").dims, [50, 64]);
    assert_eq!(initializer(&model, "head.codes").dims, [50, 1, 64]);
    // Rows of 96 weights.
    assert_eq!(initializer(&model, "layers.0.mlp.down.codes").dims, [64, 3, 16]);
}

#[test]
fn every_initializer_lies_on_a_page_within_the_data_file() {
    let tiny = Tiny::new(false, stored(WeightFormat::Int8, 32));
    export(&tiny.options, &()).unwrap();
    let length = tiny.read(DATA_FILE).len() as u64;
    let external = |tensor: &Initializer| !tensor.external_data.is_empty();
    for tensor in tiny.model().graph.unwrap().initializer.into_iter().filter(external) {
        let number = |index: usize| tensor.external_data[index].value.parse::<u64>().unwrap();
        assert!(number(1).is_multiple_of(4096) && number(1) + number(2) <= length, "{}", tensor.name);
    }
}

#[test]
fn zero_points_are_packed_rows_beside_the_scales() {
    let tiny = Tiny::new(false, Storage { zero_points: ZeroPoints::PerBlock, ..int4() });
    export(&tiny.options, &()).unwrap();
    let model = tiny.model();
    // Three blocks of 32 in a row of 96: a byte and a half.
    assert_eq!(initializer(&model, "layers.0.mlp.down.scales.stored").dims, [64, 3]);
    assert_eq!(initializer(&model, "layers.0.mlp.down.zero_points").dims, [64, 2]);
    let node = model.graph.as_ref().unwrap().node.iter().find(|node| node.op_type == "MatMulNBits").unwrap();
    assert_eq!(node.input[2..], ["layers.0.attention.qkv.scales", "layers.0.attention.qkv.zero_points"]);
    assert!(Manifest::read(&tiny.options.output).unwrap().quantization.unwrap().zero_points);
}

#[test]
fn modules_can_be_kept_in_other_formats_and_the_manifest_says_so() {
    let keep = vec!["layers.1.*=none".parse().unwrap()];
    let tiny = Tiny::new(true, Storage { keep, ..int4() });
    let kept = export(&tiny.options, &()).unwrap().kept;
    assert_eq!(
        kept.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["embed_tokens=int8", "layers.1.*=none"]
    );
    let model = tiny.model();
    assert_eq!(initializer(&model, "embedding.codes").dims, [50, 64]);
    assert_eq!(initializer(&model, "head.codes").dims, [50, 2, 32]);
    assert_eq!(initializer(&model, "layers.0.mlp.up.codes").dims, [96, 2, 16]);
    assert_eq!(initializer(&model, "layers.1.mlp.up.weight").dims, [96, 64]);
    let manifest = Manifest::read(&tiny.options.output).unwrap();
    let of = |modules: &str, quantization| Override { modules: modules.into(), quantization };
    let expected = [of("embed_tokens", Some(Quantization { bits: 8, ..INT4 })), of("layers.1.*", None)];
    assert_eq!((manifest.quantization, &*manifest.overrides), (Some(INT4), &expected[..]));
}

#[test]
fn a_stack_whose_parts_are_stored_differently_is_taken_apart() {
    let tiny = Tiny::new(true, Storage { keep: vec!["v_proj=int8".parse().unwrap()], ..int4() });
    export(&tiny.options, &()).unwrap();
    let model = tiny.model();
    assert_eq!(initializer(&model, "layers.0.attention.qkv.1.codes").dims, [32, 2, 16]);
    assert_eq!(initializer(&model, "layers.0.attention.qkv.2.codes").dims, [32, 2, 32]);
    let graph = model.graph.unwrap();
    let concat = graph.node.iter().find(|node| node.op_type == "Concat").unwrap();
    assert_eq!(concat.input, [0, 1, 2].map(|i| format!("layers.0.attention.qkv.{i}")));
    assert_eq!(concat.output, ["layers.0.attention.qkv"]);
}

#[test]
fn a_pattern_without_a_module_is_refused_before_anything_is_written() {
    let tiny = Tiny::new(true, Storage { keep: vec!["nothing=int8".parse().unwrap()], ..int4() });
    let message = export(&tiny.options, &()).unwrap_err().to_string();
    assert!(message.contains("nothing") && message.contains("down_proj"), "{message}");
    assert_eq!(fingerprint(&tiny.options).unwrap_err().to_string(), message);
    assert!(tiny.left_over().is_empty());
}

#[test]
fn nothing_is_left_after_an_error_while_writing() {
    let tiny = Tiny::new(false, int4());
    let mut tensors = testing::tensors(false);
    tensors[4].values[5] = f32::INFINITY;
    testing::write(&tiny.base("model.safetensors"), &tensors);
    let message = export(&tiny.options, &()).unwrap_err().to_string();
    assert!(message.contains("is inf"), "{message}");
    assert!(tiny.left_over().is_empty(), "{:?}", tiny.left_over());
}

#[test]
fn an_unknown_architecture_is_refused_with_the_known_ones() {
    let tiny = Tiny::new(false, int4());
    fs::write(tiny.base("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    let message = export(&tiny.options, &()).unwrap_err().to_string();
    assert!(message.contains("mamba") && message.contains("jais2, llama"), "{message}");
}

#[test]
fn random_weights_need_only_a_configuration() {
    let tiny = Tiny::new(true, int4());
    let random = |seed, name: &str| {
        let source = Source::Random { config: tiny.base("config.json"), seed };
        let options = Options { source, output: tiny.dir.path().join(name), ..tiny.options.clone() };
        let report = export(&options, &()).unwrap();
        assert!(!report.has_tokenizer);
        fs::read(options.output.join(DATA_FILE)).unwrap()
    };
    assert_eq!(random(1, "a"), random(1, "b"));
    assert_ne!(random(1, "c"), random(2, "d"));
}

#[test]
fn a_fingerprint_changes_with_content_and_options_but_not_with_places() {
    let [one, other] = [(); 2].map(|()| Tiny::new(true, int4()));
    let original = fingerprint(&one.options).unwrap();
    assert_eq!(fingerprint(&other.options).unwrap(), original);
    let wider = Options { weights: stored(WeightFormat::Int4, 64), ..one.options.clone() };
    assert_ne!(fingerprint(&wider).unwrap(), original);
    let kept = Storage { keep: vec!["lm_head=none".parse().unwrap()], ..int4() };
    assert_ne!(fingerprint(&Options { weights: kept, ..one.options.clone() }).unwrap(), original);
    fs::write(other.base("tokenizer.json"), format!("{TOKENIZER} ")).unwrap();
    assert_ne!(fingerprint(&other.options).unwrap(), original);
}

#[test]
fn biases_are_added_after_the_stacked_projections() {
    let tiny = Tiny::new(true, Storage::default());
    let config = testing::config(true).replacen('{', r#"{"attention_bias": true,"#, 1);
    fs::write(tiny.base("config.json"), config).unwrap();
    let mut tensors = testing::tensors(true);
    for (name, len) in [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)] {
        tensors
            .extend([0, 1].map(|i| Tensor::new(&format!("model.layers.{i}.self_attn.{name}.bias"), &[len])));
    }
    testing::write(&tiny.base("model.safetensors"), &tensors);
    export(&tiny.options, &()).unwrap();
    let model = tiny.model();
    let bias = initializer(&model, "layers.1.attention.qkv.bias");
    assert_eq!(bias.dims, [128]);
    let start: usize = bias.external_data[1].value.parse().unwrap();
    let data = tiny.read(DATA_FILE);
    let stored = |i: usize| f32::from_le_bytes(data[start + 4 * i..][..4].try_into().unwrap());
    let key = tensors.iter().find(|t| t.name == "model.layers.1.self_attn.k_proj.bias").unwrap();
    assert_eq!((stored(64), stored(95)), (key.values[0], key.values[31]));
}

#[test]
fn an_adapter_is_named_in_the_provenance() {
    let mut tiny = Tiny::new(true, int4());
    let adapter = tiny.dir.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    fs::write(adapter.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 8}"#)
        .unwrap();
    let name = |matrix| format!("base_model.model.model.layers.1.self_attn.q_proj.{matrix}.weight");
    let pair = [Tensor::new(&name("lora_A"), &[2, 64]), Tensor::new(&name("lora_B"), &[64, 2])];
    testing::write(&adapter.join("adapter_model.safetensors"), &pair);
    let base: &Path = &tiny.dir.path().join("base");
    let adapters = vec![AdapterSource { dir: adapter, weight: 0.5 }];
    tiny.options.source = Source::Checkpoint { base: base.into(), adapters };
    export(&tiny.options, &()).unwrap();
    let provenance = Manifest::read(&tiny.options.output).unwrap().provenance;
    let expected = manifest::AdapterSummary {
        weight: 0.5,
        rank: 2,
        alpha: 8.0,
        targets: vec!["q_proj".into()],
        replaced: Vec::new(),
    };
    assert_eq!(provenance.adapters, [expected]);
    assert!(provenance.sources.iter().any(|source| source.path == "adapter/adapter_model.safetensors"));
}
