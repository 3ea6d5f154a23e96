//! A PEFT adapter: which settings it may have, and its pairs of matrices.
//!
//! PEFT grows by a setting a month, and most of them change the result when they are on. So a setting is either known
//! to leave the merged weights alone, or handled here, or has to be off; one that this version has never heard of counts
//! as off when it is null, false, empty or zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    blueprint::Blueprint,
    checkpoint::canonical,
    param::Param,
    settings::{Settings, SettingsError},
    tensors::{TensorFile, TensorsError},
};

/// The adapter's settings.
pub(super) const CONFIG: &str = "adapter_config.json";

const TENSORS: &str = "adapter_model.safetensors";

/// Settings about training, loading or bookkeeping: any value leaves the merged weights alone, or shows in the tensors'
/// names.
const HARMLESS: [&str; 19] = [
    // Says how the base stores the weight, which the architecture knows.
    "fan_in_fan_out",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    // Read below.
    "lora_alpha",
    "r",
    "use_rslora",
];

/// Ways to initialise that leave the base alone. Others (PiSSA, OLoRA, CorDA, LoftQ) also change the base's weights, and
/// an adapter saved as it was trained then only fits the changed base.
const INITIALISATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Why an adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Its tensors cannot be used.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// There is only a pickle.
    #[error(
        "{}: only adapter_model.bin is there, a format that can run code when it is opened; in Python, load the adapter \
         with PeftModel.from_pretrained and call save_pretrained, which writes safetensors",
        dir.display()
    )]
    OnlyPickle {
        /// The directory.
        dir: PathBuf,
    },
    /// A tensor that is no part of a LoRA pair.
    #[error(
        "{}: {tensor} is not a LoRA matrix; supported: base_model.model.<module>.lora_A.weight and lora_B.weight of \
         linear layers",
        path.display()
    )]
    NotLora {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
    },
    /// Two tensors are the same matrix of the same module.
    #[error("{}: {first} and {second} are the same matrix; keep one", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// One matrix of a pair is missing.
    #[error("{}: {module} has {present} but no {absent}; download the adapter again", path.display())]
    HalfPair {
        /// The file.
        path: PathBuf,
        /// The module.
        module: String,
        /// Which is there.
        present: &'static str,
        /// Which is not.
        absent: &'static str,
    },
    /// A module that the base does not have, or that is no linear layer of its own.
    #[error(
        "{}: the base has no linear layer {}; is this the adapter's base? (A head that is tied to the embedding cannot \
         be changed alone.)",
        path.display(), modules.join(", ")
    )]
    UnknownModules {
        /// The file.
        path: PathBuf,
        /// The modules.
        modules: Vec<String>,
    },
    /// It holds no tensors.
    #[error("{}: it holds no LoRA matrices; nothing would be merged", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// An adapter, open.
#[derive(Debug)]
pub(super) struct Adapter {
    dir: PathBuf,
    pub rank: usize,
    /// What `B·A` is multiplied with.
    pub scale: f32,
    file: TensorFile,
    pairs: BTreeMap<String, Pair>,
}

/// Names of the two matrices of a module.
#[derive(Debug)]
struct Pair {
    a: String,
    b: String,
}

/// The two matrices of a module: `b` holds some rows of B, `a` all of A.
pub(super) struct LowRank {
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[rows, rank]`.
    pub b: Vec<f32>,
}

impl Adapter {
    /// Opens the adapter in `dir`, checks its settings and reads its header.
    pub(super) fn open(dir: &Path) -> Result<Self, AdapterError> {
        let (rank, scale) = read_config(&Settings::read(&dir.join(CONFIG))?)?;
        let path = dir.join(TENSORS);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(AdapterError::OnlyPickle { dir: dir.into() });
        }
        let file = TensorFile::open(&path)?;
        let pairs = read_pairs(&file)?;
        Ok(Self { dir: dir.into(), rank, scale, file, pairs })
    }

    /// The files that it was read from.
    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.dir.join(CONFIG), self.file.path().to_owned()]
    }

    /// Names of the modules that it changes, without their layers.
    pub(super) fn targets(&self) -> BTreeSet<&str> {
        self.pairs.keys().map(|module| module.rsplit('.').next().unwrap_or(module)).collect()
    }

    /// Checks that every pair belongs to a linear layer of `blueprint` and has its shape.
    pub(super) fn check(&self, blueprint: &Blueprint) -> Result<(), AdapterError> {
        let mut unknown: BTreeSet<&str> = self.pairs.keys().map(String::as_str).collect();
        for linear in blueprint.linears() {
            if let Some(pair) = self.pairs.get(linear.weight.module()) {
                self.check_pair(pair, &linear.weight)?;
                unknown.remove(linear.weight.module());
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let modules = unknown.into_iter().map(Into::into).collect();
        Err(AdapterError::UnknownModules { path: self.file.path().into(), modules })
    }

    /// What the adapter adds to rows `rows` of a weight, if it changes that weight.
    pub(super) fn low_rank(
        &self,
        param: &Param,
        rows: Range<usize>,
    ) -> Result<Option<LowRank>, AdapterError> {
        let Some(pair) = self.pairs.get(param.module()) else {
            return Ok(None);
        };
        let a = self.file.read(&pair.a, 0..self.rank * param.shape.cols())?;
        let mut b = Vec::new();
        for lines in param.stored(rows) {
            b.extend(self.file.read(&pair.b, lines.start * self.rank..lines.end * self.rank)?);
        }
        Ok(Some(LowRank { a, b }))
    }

    fn check_pair(&self, pair: &Pair, param: &Param) -> Result<(), AdapterError> {
        let (rows, cols) = (param.stored_lines(), param.shape.cols());
        for (name, expected) in [(&pair.a, [self.rank, cols]), (&pair.b, [rows, self.rank])] {
            if self.file.shape(name) != expected {
                return Err(self.file.shape_error(name, format!("{expected:?}")).into());
            }
            self.file.check_type(name)?;
        }
        Ok(())
    }
}

/// The rank, and what `B·A` is multiplied with.
pub(super) fn read_config(config: &Settings) -> Result<(usize, f32), SettingsError> {
    refuse_unsupported(config)?;
    let rank = config.size("r")?;
    let alpha = config.positive("lora_alpha")?;
    let divisor = if config.flag("use_rslora", false)? { (rank as f32).sqrt() } else { rank as f32 };
    Ok((rank, alpha / divisor))
}

fn refuse_unsupported(config: &Settings) -> Result<(), SettingsError> {
    if config.text("peft_type")? != Some("LORA") {
        return Err(config.unsupported("peft_type", "LORA"));
    }
    for (field, value) in config.fields() {
        let supported = match field {
            "peft_type" => continue,
            "bias" if value == "none" => continue,
            "bias" => "none",
            "init_lora_weights" if leaves_base_alone(value) => continue,
            "init_lora_weights" => "true, false, gaussian, eva, orthogonal (the others change the base too)",
            harmless if HARMLESS.contains(&harmless) => continue,
            _ if is_off(value) => continue,
            "use_dora" | "lora_bias" => "false",
            "rank_pattern" | "alpha_pattern" => "{} (one rank and one alpha for all modules)",
            "modules_to_save" => "null (LoRA matrices of linear layers only)",
            _ => "null (plain LoRA)",
        };
        return Err(config.unsupported(field, supported));
    }
    Ok(())
}

fn leaves_base_alone(value: &Value) -> bool {
    value.is_boolean() || value.as_str().is_some_and(|name| INITIALISATIONS.contains(&name))
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matrix {
    A,
    B,
}

/// The module, without prefixes, and which of its matrices a tensor is.
fn parse_name(tensor: &str) -> Option<(&str, Matrix)> {
    let path = tensor.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    let path = path.strip_suffix(".default").unwrap_or(path);
    let (module, matrix) = match path.strip_suffix(".lora_A") {
        Some(module) => (module, Matrix::A),
        None => (path.strip_suffix(".lora_B")?, Matrix::B),
    };
    Some((canonical(module), matrix))
}

fn read_pairs(file: &TensorFile) -> Result<BTreeMap<String, Pair>, AdapterError> {
    let path = || file.path().to_owned();
    let mut found: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    for tensor in file.names() {
        let (module, matrix) = parse_name(tensor)
            .ok_or_else(|| AdapterError::NotLora { path: path(), tensor: tensor.into() })?;
        if let Some(first) = found.entry(module).or_default()[matrix as usize].replace(tensor) {
            return Err(AdapterError::Twice { path: path(), first: first.into(), second: tensor.into() });
        }
    }
    if found.is_empty() {
        return Err(AdapterError::Empty { path: path() });
    }
    let half = |module: &str, present, absent| AdapterError::HalfPair {
        path: path(),
        module: module.into(),
        present,
        absent,
    };
    let pair = |(module, matrices): (&str, [Option<&str>; 2])| match matrices {
        [Some(a), Some(b)] => Ok((module.into(), Pair { a: a.into(), b: b.into() })),
        [Some(_), None] => Err(half(module, "lora_A", "lora_B")),
        [None, _] => Err(half(module, "lora_B", "lora_A")),
    };
    found.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::export::testing::{self, Tensor};

    fn open(config: &str, tensors: &[Tensor]) -> Result<Adapter, AdapterError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG), config).unwrap();
        testing::write(&dir.path().join(TENSORS), tensors);
        Adapter::open(dir.path())
    }

    fn pair(module: &str, [rows, cols]: [usize; 2]) -> [Tensor; 2] {
        let name = |matrix| format!("base_model.model.{module}.{matrix}.weight");
        [Tensor::new(&name("lora_A"), &[2, cols]), Tensor::new(&name("lora_B"), &[rows, 2])]
    }

    const PLAIN: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "init_lora_weights": true,
        "use_rslora": false, "rank_pattern": {}, "modules_to_save": null, "something_new": false}"#;
    const QUERY: &str = "model.layers.0.self_attn.q_proj";

    #[test]
    fn names_are_read_with_and_without_the_adapters_own() {
        let module = "layers.0.self_attn.q_proj";
        for (name, expected) in [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", Some((module, Matrix::A))),
            ("base_model.model.layers.0.self_attn.q_proj.lora_B.weight", Some((module, Matrix::B))),
            (
                "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
                Some((module, Matrix::B)),
            ),
            ("base_model.model.lm_head.lora_A.weight", Some(("lm_head", Matrix::A))),
            ("base_model.model.model.embed_tokens.lora_embedding_A", None),
            ("base_model.model.lm_head.weight", None),
            ("model.layers.0.self_attn.q_proj.lora_A.weight", None),
        ] {
            assert_eq!(parse_name(name), expected, "{name}");
        }
    }

    #[test]
    fn the_scale_is_alpha_over_the_rank_or_over_its_root() {
        let tensors = pair(QUERY, [64, 64]);
        assert_eq!(open(PLAIN, &tensors).unwrap().scale, 4.0);
        let stabilized = PLAIN.replace("\"use_rslora\": false", "\"use_rslora\": true");
        assert_eq!(open(&stabilized, &tensors).unwrap().scale, 8.0 / 2f32.sqrt());
    }

    #[test]
    fn settings_that_would_change_the_result_are_refused_by_name() {
        for (field, value) in [
            ("use_dora", "true"),
            ("lora_bias", "true"),
            ("rank_pattern", r#"{"q_proj": 4}"#),
            ("alpha_pattern", r#"{"q_proj": 4}"#),
            ("modules_to_save", r#"["lm_head"]"#),
            ("layer_replication", "[[0, 4]]"),
            ("trainable_token_indices", "[1]"),
            ("target_parameters", r#"["experts"]"#),
            ("bias", "\"all\""),
            ("peft_type", "\"IA3\""),
            ("init_lora_weights", "\"pissa_niter_4\""),
            ("invented_next_year", "{\"x\": 1}"),
        ] {
            let mut config: serde_json::Map<String, Value> = serde_json::from_str(PLAIN).unwrap();
            config.insert(field.into(), serde_json::from_str(value).unwrap());
            let config = serde_json::to_string(&config).unwrap();
            let message = open(&config, &pair(QUERY, [64, 64])).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains("supported"), "{message}");
        }
    }

    #[test]
    fn a_tensor_that_is_no_lora_matrix_is_named() {
        let mut tensors = pair(QUERY, [64, 64]).to_vec();
        tensors.push(Tensor::new("base_model.model.lm_head.weight", &[4, 4]));
        let message = open(PLAIN, &tensors).unwrap_err().to_string();
        assert!(message.contains("base_model.model.lm_head.weight"), "{message}");
    }

    #[test]
    fn half_a_pair_is_named_with_what_is_missing() {
        let [_, b] = pair(QUERY, [64, 64]);
        let message = open(PLAIN, &[b]).unwrap_err().to_string();
        assert!(message.contains("has lora_B but no lora_A"), "{message}");
        assert!(matches!(open(PLAIN, &[]), Err(AdapterError::Empty { .. })));
    }

    #[test]
    fn modules_and_shapes_must_be_the_bases() {
        let blueprint = testing::blueprint(true);
        let check = |module, shape| open(PLAIN, &pair(module, shape)).unwrap().check(&blueprint);
        check(QUERY, [64, 64]).unwrap();
        let message = check(QUERY, [64, 63]).unwrap_err().to_string();
        assert!(message.contains("[2, 63]") && message.contains("[2, 64]"), "{message}");
        for module in ["model.layers.9.self_attn.q_proj", "lm_head"] {
            assert!(matches!(check(module, [64, 64]), Err(AdapterError::UnknownModules { .. })), "{module}");
        }
    }
}
