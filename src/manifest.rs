//! `eka.json`: what a directory under `models/` says about itself.
//!
//! Written by `export`, read by everything else. A reader refuses a schema that it does not know instead of guessing.
//!
//! A directory without one that onnxruntime-genai's builder wrote is read by its `genai_config.json`, which says nearly as
//! much.

mod check;
mod genai;
mod identity;
pub mod layout;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

pub use check::MOST_LAYERS;
pub use identity::identity;
use serde::{Deserialize, Serialize};

use crate::{files, units::Bytes};

/// The manifest's file name in a model directory.
pub const FILE_NAME: &str = "eka.json";

/// The schema that this version writes.
///
/// | schema | since |
/// |---|---|
/// | 2 | the first release |
/// | 3 | `files` are recorded |
pub const SCHEMA: u32 = 3;

/// The oldest schema that this version reads.
pub const OLDEST_SCHEMA: u32 = 2;

/// No manifest is larger; a hash of each of a thousand shards is a hundredth of this.
const MOST_BYTES: Bytes = Bytes::mib(16);

/// The manifest of a model directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's layout: [`OLDEST_SCHEMA`] to [`SCHEMA`].
    pub schema: u32,
    /// `model_type` of the source configuration, for example `llama`.
    pub architecture: String,
    /// Sizes of the model.
    pub dims: Dims,
    /// Type of activations and of the key-value cache.
    pub dtype: Dtype,
    /// How matrices are stored that no override names; absent when they have `dtype`.
    pub quantization: Option<Quantization>,
    /// Which are stored otherwise; the last that matches a module decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// Most positions, prompt and answer together.
    pub context_length: usize,
    /// Ids after which a generation ends, from `generation_config.json`, else `config.json`.
    pub end_tokens: Vec<u32>,
    /// Number of parameters after the merge, a tied head counted once; 0 where nobody says.
    pub parameters: u64,
    /// Names of the graph's inputs and outputs.
    pub graph: GraphNames,
    /// Where all this came from.
    pub provenance: Provenance,
    /// The other files of the directory when it was written, in the order of their names; empty if they were not recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileRecord>,
}

/// Sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dims {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; `heads` is a multiple.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width inside the MLP; 0 where nobody says.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocab: usize,
}

/// A floating-point type of activations and cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 single precision.
    Float32,
    /// IEEE 754 half precision.
    Float16,
    /// The upper half of a single.
    Bfloat16,
}

/// As settings and flags spell it.
impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        })
    }
}

impl Dtype {
    /// Bytes of a number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }
}

/// Block-wise weight quantization, as ONNX Runtime's `MatMulNBits` reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// Bits of one weight: 4 or 8.
    pub bits: u8,
    /// Consecutive weights that share a scale: 32, 64 or 128.
    pub block_size: usize,
    /// Whether blocks have zero points of their own (asymmetric), or the middle of the codes (symmetric).
    #[serde(default)]
    pub zero_points: bool,
    /// `MatMulNBits`' `accuracy_level`; 4 lets the CPU multiply in int8.
    pub accuracy_level: u8,
}

/// How some modules are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// A module's name as the checkpoint calls it, without prefixes, or how it ends after a dot; `*` stands for anything.
    pub modules: String,
    /// Absent when they have the manifest's `dtype`.
    pub quantization: Option<Quantization>,
}

/// Names of the graph's inputs and outputs; `{i}` stands for the layer's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphNames {
    /// The graph's file in the model directory.
    pub file: String,
    /// int64 `[1, n]`.
    pub input_ids: String,
    /// How the graph is told lengths, and which logits it gives.
    pub lengths: Lengths,
    /// float32 `[1, k, vocab]`.
    pub logits: String,
    /// `[1, kv_heads, capacity, head_dim]`, one a layer.
    pub past_key: String,
    /// As `past_key`.
    pub past_value: String,
    /// As `past_key`, over the same memory.
    pub present_key: String,
    /// As `past_key`, over the same memory.
    pub present_value: String,
}

/// How a graph is told lengths, and of which positions it gives logits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Lengths {
    /// As inputs of their own: no node has to work them out.
    Given {
        /// int32 `[1]`: total length minus one.
        seqlens_k: String,
        /// int32 scalar: total length.
        total_sequence_length: String,
        /// int64 `[k]`: which of the `n` positions need logits.
        logits_index: String,
    },
    /// As onnxruntime-genai does: a mask of ones, as long as the total. Logits are of the last position or of all.
    Mask {
        /// int64 `[1, total length]`.
        attention_mask: String,
    },
}

impl GraphNames {
    /// The names that onnxruntime-genai's own builder gives.
    #[must_use]
    pub fn genai() -> Self {
        let attention_mask = "attention_mask".into();
        Self { lengths: Lengths::Mask { attention_mask }, ..Self::default() }
    }
}

impl Default for GraphNames {
    fn default() -> Self {
        Self {
            file: "model.onnx".into(),
            input_ids: "input_ids".into(),
            lengths: Lengths::Given {
                seqlens_k: "seqlens_k".into(),
                total_sequence_length: "total_sequence_length".into(),
                logits_index: "logits_index".into(),
            },
            logits: "logits".into(),
            past_key: "past_key_values.{i}.key".into(),
            past_value: "past_key_values.{i}.value".into(),
            present_key: "present.{i}.key".into(),
            present_value: "present.{i}.value".into(),
        }
    }
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// `eka` and its version.
    pub exporter: String,
    /// Every file that was read, in the order of their names.
    pub sources: Vec<FileRecord>,
    /// The adapters that were merged.
    pub adapters: Vec<AdapterSummary>,
    /// What was asked for; absent where nobody says.
    pub options: Option<ExportOptions>,
}

/// What an export was asked for. Equal sources, options and versions give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportOptions {
    /// `none`, `int8` or `int4`.
    pub quantize: String,
    /// Consecutive weights that share a scale; absent when nothing is quantized.
    pub block_size: Option<usize>,
    /// Whether a block has a zero point of its own.
    pub zero_points: bool,
    /// Which modules are stored otherwise, as `PATTERN=FORMAT`.
    pub keep: Vec<String>,
    /// Of activations, of the cache, and of weights that are not quantized.
    pub dtype: Dtype,
    /// `eka` or `genai`.
    pub layout: String,
    /// The context length asked for, if a shorter one than the model's was.
    pub context_length: Option<usize>,
    /// The seed of random weights; absent for trained ones.
    pub random_seed: Option<u64>,
}

/// A file, by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Path in the model directory, or of a source: `base/…`, `adapter/…`, `adapter2/…`.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, lower-case hexadecimal.
    pub sha256: String,
}

/// An adapter that was merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSummary {
    /// What was added was multiplied with this, beside the adapter's own scale.
    pub weight: f32,
    /// Rank `r`, where a pattern did not say otherwise.
    pub rank: usize,
    /// `lora_alpha`, where a pattern did not say otherwise.
    pub alpha: f32,
    /// Names of the modules that something was added to, without their layers.
    pub targets: Vec<String>,
    /// Names of the modules that were replaced, whole or in some rows.
    pub replaced: Vec<String>,
}

/// Why a model directory's manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not there, or cannot be read.
    #[error("{}: {source}; is this a directory written by `eka export`?", path.display())]
    Read {
        /// The manifest's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not JSON of this layout.
    #[error("{}: {source}; export the model again with this version of eka", path.display())]
    Parse {
        /// The manifest's path.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It is not what onnxruntime-genai's builder writes for a decoder.
    #[error("{}: {source}; eka serves decoders alone, as its builder writes them", path.display())]
    Genai {
        /// The file's path.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The graph would be outside of the directory.
    #[error("{}: the graph's file is {file:?}, expected a plain name; correct it", path.display())]
    GraphFile {
        /// The file's path.
        path: PathBuf,
        /// What it names.
        file: String,
    },
    /// It was written by another version.
    #[error("{}: schema {found}, this version of eka reads schemas {OLDEST_SCHEMA} to {SCHEMA}; export the model again", path.display())]
    Schema {
        /// The manifest's path.
        path: PathBuf,
        /// The schema that it names.
        found: u32,
    },
    /// A recorded file would be outside of the directory.
    #[error("{}: a file is recorded as {file:?}, expected a path within the directory; export the model again", path.display())]
    RecordedFile {
        /// The manifest's path.
        path: PathBuf,
        /// What it names.
        file: String,
    },
    /// An end token that the model cannot generate.
    #[error("{}: end token {id} does not exist, the vocabulary has {vocab} tokens; correct end_tokens", path.display())]
    EndToken {
        /// The manifest's path.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Number of token ids.
        vocab: usize,
    },
    /// A size that no model has.
    #[error("{}: {field} is {value}, {expected}; export the model again", path.display())]
    Value {
        /// The manifest's path.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: usize,
        /// What it may hold.
        expected: &'static str,
    },
}

impl ManifestError {
    /// The manifest's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::Parse { path, .. }
            | Self::Genai { path, .. }
            | Self::GraphFile { path, .. }
            | Self::Schema { path, .. }
            | Self::RecordedFile { path, .. }
            | Self::EndToken { path, .. }
            | Self::Value { path, .. } => path,
        }
    }
}

impl Manifest {
    /// Reads the manifest of `model_dir`.
    ///
    /// # Errors
    /// [`ManifestError`] when the file is missing, not of this layout or schema, or holds impossible sizes.
    pub fn read(model_dir: &Path) -> Result<Self, ManifestError> {
        let path = path(model_dir);
        let json = read(&path).map_err(|source| ManifestError::Read { path: path.clone(), source })?;
        if path.ends_with(genai::FILE_NAME) {
            return genai::parse(&path, &json);
        }
        Self::parse(&path, &json)
    }

    /// Parses and checks `json`, which came from `path`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, ManifestError> {
        // The schema first: a newer layout should be called newer, not malformed.
        let failed = |source| ManifestError::Parse { path: path.into(), source };
        let Schema { schema } = serde_json::from_slice(json).map_err(failed)?;
        if !(OLDEST_SCHEMA..=SCHEMA).contains(&schema) {
            return Err(ManifestError::Schema { path: path.into(), found: schema });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(failed)?;
        manifest.check(path)?;
        Ok(manifest)
    }

    /// As it is written to disk: indented, with a final newline.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "plain data with string keys")]
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data serialises");
        json.push('\n');
        json
    }
}

/// Whether `model_dir` says what it is.
#[must_use]
pub fn is_model(model_dir: &Path) -> bool {
    path(model_dir).is_file()
}

/// The file in which `model_dir` says what it is.
#[must_use]
pub fn path(model_dir: &Path) -> PathBuf {
    let [own, genai] = [FILE_NAME, genai::FILE_NAME].map(|name| model_dir.join(name));
    if !own.exists() && genai.is_file() { genai } else { own }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    files::read(path, MOST_BYTES)
}

#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"schema": 2, "architecture": "llama", "dtype": "float32", "context_length": 32,
        "dims": {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 96, "vocab": 50},
        "quantization": {"bits": 4, "block_size": 32, "accuracy_level": 4}, "end_tokens": [2], "parameters": 1,
        "overrides": [], "graph": {"file": "model.onnx", "input_ids": "a", "logits": "e",
            "lengths": {"given": {"seqlens_k": "b", "total_sequence_length": "c", "logits_index": "d"}},
            "past_key": "f", "past_value": "g", "present_key": "h", "present_value": "i"},
        "provenance": {"exporter": "eka", "sources": [], "adapters": [], "options": null}}"#;

    fn parse(json: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(Path::new(FILE_NAME), json.as_bytes())
    }

    #[test]
    fn a_manifest_of_the_first_release_is_read_and_one_of_today_records_files() {
        let older = parse(PLAIN).unwrap();
        assert_eq!((older.schema, &older.files[..]), (2, &[][..]));
        let record = |path: &str| FileRecord { path: path.into(), bytes: 3, sha256: "ab".into() };
        let files = vec![record("additional_chat_templates/tool_use.jinja"), record("model.onnx")];
        let newer = Manifest { schema: SCHEMA, files, ..older.clone() };
        assert_eq!(parse(&newer.to_json()).unwrap(), newer);
        for path in ["../model.onnx", "/etc/passwd", ""] {
            let outside = Manifest { files: vec![record(path)], ..older.clone() };
            let error = parse(&outside.to_json()).unwrap_err();
            assert!(error.to_string().contains("within the directory"), "{error}");
        }
    }

    #[test]
    fn an_end_token_outside_of_the_vocabulary_is_refused_with_both_numbers() {
        let error = parse(&PLAIN.replace("\"end_tokens\": [2]", "\"end_tokens\": [2, 50]")).unwrap_err();
        assert!(
            error.to_string().contains("end token 50") && error.to_string().contains("50 tokens"),
            "{error}"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let manifest = parse(PLAIN).unwrap();
        assert_eq!(manifest.provenance.options, None);
        assert_eq!(parse(&manifest.to_json()).unwrap(), manifest);
    }

    #[test]
    fn sizes_that_no_model_has_are_refused_by_name() {
        for (was, is, field) in [
            ("\"layers\": 2", "\"layers\": 1025", "layers is 1025"),
            ("\"vocab\": 50", "\"vocab\": 0", "vocab is 0"),
            ("\"head_dim\": 16", "\"head_dim\": 8388608", "head_dim is 8388608"),
            ("\"kv_heads\": 2", "\"kv_heads\": 3", "kv_heads is 3"),
            ("\"bits\": 4", "\"bits\": 3", "bits is 3"),
            ("\"file\": \"model.onnx\"", "\"file\": \"../x\"", "../x"),
            ("\"block_size\": 32", "\"block_size\": 0", "block_size is 0"),
        ] {
            let message = parse(&PLAIN.replace(was, is)).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn another_schema_is_called_that_whatever_else_it_holds() {
        for found in [1, 4] {
            let error = parse(&format!(r#"{{"schema": {found}, "new": true}}"#)).unwrap_err();
            assert!(error.to_string().contains(&format!("schema {found}, ")), "{error}");
        }
    }
}
