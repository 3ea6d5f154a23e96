//! A seeded run of the targets under `tests/fuzz`: bytes and JSON that are nearly right.
//!
//! `FUZZ_SEED` and `FUZZ_MUTATIONS` in the environment ask for others, and for more.

use std::time::{Duration, Instant};

use eka::export::{self, Options, Source, Storage, WeightFormat, fuzzing};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde_json::{Value, json};

use crate::support::program::root;

/// A number from the environment.
fn asked(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

/// Values that a field is not expected to hold.
fn nasty() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(16),
        json!(1024),
        json!(1 << 24),
        json!((1 << 24) + 1),
        json!(1u64 << 40),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(1e-40),
        json!(-1e308),
        json!(1e308),
        json!(""),
        json!("../../etc/passwd"),
        json!("\u{1b}[2J\0é"),
        json!([]),
        json!({}),
        json!([[[[1]]]]),
        json!(["full_attention", 3]),
    ]
}

/// Values that mean something to one parser or another.
const WORDS: [&str; 44] = [
    "bloom",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "codegen",
    "cohere2",
    "falcon",
    "glm4",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "internlm2",
    "mpt",
    "olmo3",
    "opt",
    "smollm3",
    "stablelm",
    "linear",
    "llama3",
    "yarn",
    "longrope",
    "dynamic",
    "default",
    "gelu",
    "silu",
    "F32",
    "F16",
    "BF16",
    "F4",
    "U8",
    "LORA",
    "all",
    "none",
    "float16",
    "sliding_attention",
    "full_attention",
    "a.safetensors",
    "gaussian",
];

/// Fields that one parser or another reads.
const FIELDS: [&str; 41] = [
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "rope_type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "short_factor",
    "long_factor",
    "partial_rotary_factor",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "text_config",
    "quantization_config",
    "n_embd",
    "n_head",
    "attention_types",
    "multi_query",
    "no_rope_layers",
    "num_layers",
    "rotary_dim",
    "sliding_window_pattern",
    "use_parallel_residual",
    "r",
    "use_rslora",
    "weight_map",
];

struct Mutator(ChaCha8Rng);

impl Mutator {
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is less than a usize")]
    fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Changes a few bytes, cuts the end off, or repeats a part.
    fn bytes(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                2 => bytes.splice(at..at, [b'['; 200]).for_each(drop),
                3 if at < bytes.len() => drop(bytes.remove(at)),
                4 => bytes
                    .splice(at..at, self.pick(&["-", "9", "e99", "\"", ",", "{", "}"]).bytes())
                    .for_each(drop),
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => {}
            }
        }
        bytes
    }

    /// Changes a few fields of `seed`, at any depth.
    fn json(&mut self, seed: &Value) -> Value {
        let mut changed = seed.clone();
        for _ in 0..=self.below(3) {
            self.change(&mut changed);
        }
        changed
    }

    fn change(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && self.below(8) > 0 => {
                let field = fields.keys().nth(self.below(fields.len())).cloned().unwrap_or_default();
                match self.below(6) {
                    0 => drop(fields.remove(&field)),
                    1 => drop(fields.insert((*self.pick(&FIELDS)).into(), self.value())),
                    2 => {
                        let whole = Value::Object(fields.clone());
                        fields.insert((*self.pick(&FIELDS)).into(), whole);
                    }
                    _ => self.change(&mut fields[&field]),
                }
            }
            Value::Array(items) if !items.is_empty() && self.below(4) > 0 => {
                let at = self.below(items.len());
                self.change(&mut items[at]);
            }
            other => *other = self.value(),
        }
    }

    fn value(&mut self) -> Value {
        match self.below(3) {
            0 => json!(self.pick(&WORDS)),
            1 => json!(self.below(200)),
            _ => self.pick(&nasty()).clone(),
        }
    }
}

/// The seed input of a target.
struct Seeds {
    /// Documents that are changed by their structure too.
    json: Vec<Value>,
    /// How a document becomes what the target reads.
    encode: fn(&Value) -> Vec<u8>,
    /// Files that are mutated as bytes only.
    bytes: Vec<Vec<u8>>,
}

fn fixture(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(root().join("tests/fixtures").join(path)).unwrap()).unwrap()
}

fn text(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

/// A header with its length before it, and as much data as it starts with describing.
fn safetensors(header: &Value) -> Vec<u8> {
    let header = text(header);
    [&(header.len() as u64).to_le_bytes(), &*header, &[0; 24]].concat()
}

fn configs() -> Vec<Value> {
    let small = json!({ "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 8,
        "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64, "layer_norm_epsilon": 1e-5,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "silu", "head_dim": 16, "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 16, "eos_token_id": [1, 2] });
    let scalings = [
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 }),
        json!({ "rope_type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            "long_factor": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0], "original_max_position_embeddings": 32 }),
    ];
    let mut all = vec![
        fixture("llama/base/config.json"),
        fixture("llama/base/config.transformers4.json"),
        fixture("llama3-rope-rslora/base/config.json"),
    ];
    for architecture in &WORDS[..9] {
        let mut config = small.clone();
        config["model_type"] = json!(architecture);
        all.push(config.clone());
        // Phi-3 takes YaRN for LongRoPE.
        let scaling = if *architecture == "phi3" { 1 } else { all.len() % 2 };
        config["rope_scaling"] = scalings[scaling].clone();
        all.push(config);
    }
    all
}

/// Manifest and graph of a small export.
fn exported() -> (Value, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (config, output) = (dir.path().join("config.json"), dir.path().join("model"));
    let mut small = fixture("llama/base/config.json");
    small["num_hidden_layers"] = json!(1);
    std::fs::write(&config, text(&small)).unwrap();
    let weights = Storage { format: WeightFormat::Int4, ..Storage::default() };
    let source = Source::Random { config, seed: 1 };
    let options = Options { weights, ..Options::new(source, output.clone()) };
    export::export(&options, &()).unwrap();
    let read = |name: &str| std::fs::read(output.join(name)).unwrap();
    (serde_json::from_slice(&read("eka.json")).unwrap(), read("model.onnx"))
}

fn seeds(target: &str) -> Seeds {
    let documents = |json| Seeds { json, encode: text, bytes: Vec::new() };
    match target {
        "config" => documents(configs()),
        "adapter_config" => documents(vec![
            fixture("llama/adapter/adapter_config.json"),
            fixture("llama3-rope-rslora/adapter/adapter_config.json"),
        ]),
        "safetensors_index" => documents(vec![json!({ "metadata": { "total_size": 8 },
            "weight_map": { "a": "a.safetensors", "b": "b.safetensors", "c": "a.safetensors" } })]),
        "safetensors_header" => {
            let header = json!({ "__metadata__": { "format": "pt" },
                "a": { "dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16] },
                "b": { "dtype": "BF16", "shape": [4], "data_offsets": [16, 24] } });
            Seeds { json: vec![header], encode: safetensors, bytes: Vec::new() }
        }
        "gguf" => {
            let names = ["gemma2", "llama3-rope", "phi3-long", "sentencepiece"];
            let file = |name| root().join(format!("tests/fixtures/gguf/{name}.gguf"));
            let bytes = names.map(|name| std::fs::read(file(name)).unwrap()).into();
            Seeds { json: Vec::new(), encode: text, bytes }
        }
        "torch_file" => {
            let files = ["views.bin", "adapter/adapter_model.bin"];
            let read = |name| std::fs::read(root().join("tests/fixtures/torch").join(name)).unwrap();
            Seeds { json: Vec::new(), encode: text, bytes: files.map(read).into() }
        }
        "sentence_piece" => {
            let small = std::fs::read(root().join("tests/fixtures/tokenizers/small.model")).unwrap();
            Seeds { json: Vec::new(), encode: text, bytes: vec![small] }
        }
        "manifest" => documents(vec![exported().0]),
        "graph" => Seeds { json: Vec::new(), encode: text, bytes: vec![exported().1] },
        unknown => panic!("{unknown} has no seeds"),
    }
}

#[test]
fn no_parser_panics_or_hangs_on_mutated_input() {
    let (started, seed, mutations) = (Instant::now(), asked("FUZZ_SEED", 7), asked("FUZZ_MUTATIONS", 20_000));
    for (target, parser) in fuzzing::PARSERS {
        let Seeds { json, encode, mut bytes } = seeds(target);
        bytes.extend(json.iter().map(encode));
        assert!(bytes.iter().all(|seed| parser(seed)), "{target}: a seed should be taken");
        let mut mutator = Mutator(ChaCha8Rng::seed_from_u64(seed));
        let mut taken = 0;
        for number in 0..mutations {
            let input = if json.is_empty() || number % 3 == 0 {
                let seed = mutator.pick(&bytes).clone();
                mutator.bytes(&seed)
            } else {
                let seed = mutator.pick(&json).clone();
                encode(&mutator.json(&seed))
            };
            let before = Instant::now();
            taken += u64::from(parser(&input));
            let shown = String::from_utf8_lossy(&input);
            assert!(
                before.elapsed() < Duration::from_secs(5),
                "{target} took {:?}: {shown}",
                before.elapsed()
            );
        }
        eprintln!("{target}: {taken} of {mutations} taken, after {:?}", started.elapsed());
        assert!((1..mutations).contains(&taken), "{target}: {taken} of {mutations} taken");
    }
}

#[test]
fn the_largest_accepted_sizes_are_cheap() {
    let mut config = fixture("llama/base/config.json");
    for (field, value) in [
        ("num_hidden_layers", 1024),
        ("hidden_size", 1 << 24),
        ("intermediate_size", 1 << 24),
        ("vocab_size", 1 << 24),
        ("max_position_embeddings", 1 << 24),
        ("num_attention_heads", 1 << 18),
        ("num_key_value_heads", 1 << 18),
    ] {
        config[field] = json!(value);
    }
    let started = Instant::now();
    assert!(fuzzing::config(&text(&config)));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
