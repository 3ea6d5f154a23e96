//! The content of a manifest.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// How matrices are stored unless an override names them; absent if they have `dtype`.
    pub quantization: Option<Quantization>,
    /// Modules with another storage; the last override that matches a module decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// Maximum number of tokens, prompt and answer together.
    pub context_length: usize,
    /// Ids after which a generation ends, from `generation_config.json`, else `config.json`.
    pub end_tokens: Vec<u32>,
    /// Number of parameters after the merge, a tied head counted once; 0 if unknown.
    pub parameters: u64,
    /// Names of the graph's inputs and outputs.
    pub graph: GraphNames,
    /// The origin of the model.
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
    /// Width inside the MLP; 0 if unknown.
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
    /// bfloat16: the exponent of single precision with 7 bits of mantissa.
    Bfloat16,
}

/// The spelling of settings and flags.
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
    /// Whether each block has a zero point (asymmetric), or all use the middle of the value range (symmetric).
    #[serde(default)]
    pub zero_points: bool,
    /// `MatMulNBits`' `accuracy_level`; 4 lets the CPU multiply in int8.
    pub accuracy_level: u8,
}

/// Another storage for the modules whose names match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// A module's name in the checkpoint, without prefixes, or its last dotted parts; `*` matches anything.
    pub modules: String,
    /// Absent when they have the manifest's `dtype`.
    pub quantization: Option<Quantization>,
}

/// The graph's file and the names of its inputs and outputs; `{i}` is the layer's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphNames {
    /// The graph's file in the model directory.
    pub file: String,
    /// int64 `[1, n]`.
    pub input_ids: String,
    /// The inputs with the sequence length.
    pub lengths: Lengths,
    /// float32 `[1, k, vocab]`.
    pub logits: String,
    /// In `dtype`, `[1, kv_heads, capacity, head_dim]`, one per layer.
    pub past_key: String,
    /// As `past_key`.
    pub past_value: String,
    /// As `past_key`, over the same memory.
    pub present_key: String,
    /// As `past_key`, over the same memory.
    pub present_value: String,
}

/// The inputs with the sequence length, and with the positions whose logits are computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Lengths {
    /// Separate inputs, so that no node computes them (eka's exports).
    #[serde(rename = "given")]
    Separate {
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
            lengths: Lengths::Separate {
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

/// The origin of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// `eka` and its version.
    pub exporter: String,
    /// Every file that was read, in the order of their names.
    pub sources: Vec<FileRecord>,
    /// The adapters that were merged.
    pub adapters: Vec<AdapterSummary>,
    /// The options of the export; absent if unknown.
    pub options: Option<ExportOptions>,
}

/// The options of an export. Equal sources, options and versions give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportOptions {
    /// `none`, `int8` or `int4`.
    pub quantize: String,
    /// Consecutive weights that share a scale; absent when nothing is quantized.
    pub block_size: Option<usize>,
    /// The budget of bits per weight; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<String>,
    /// Whether each block has a zero point.
    pub zero_points: bool,
    /// The `--keep` options: modules with another storage, as `PATTERN=FORMAT`.
    pub keep: Vec<String>,
    /// Of activations, of the cache, and of weights that are not quantized.
    pub dtype: Dtype,
    /// `eka` or `genai`.
    pub layout: String,
    /// The requested context length, if it is shorter than the model's was.
    pub context_length: Option<usize>,
    /// The seed of random weights; absent for trained ones.
    pub random_seed: Option<u64>,
    /// The text that quantization was calibrated on; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
}

/// A text that quantization was calibrated on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// The file's name, or `auto` for the built-in text.
    pub text: String,
    /// SHA-256 of its content, lower-case hexadecimal.
    pub sha256: String,
    /// Tokens that the model processed.
    pub tokens: usize,
}

/// A file with its size and hash.
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
    /// Factor of the merged delta, in addition to the adapter's own scale.
    pub weight: f32,
    /// Rank `r`, unless a pattern overrides it.
    pub rank: usize,
    /// `lora_alpha`, unless a pattern overrides it.
    pub alpha: f32,
    /// Names of the modules that something was added to, without their layers.
    pub targets: Vec<String>,
    /// Names of the modules that were replaced, whole or in some rows.
    pub replaced: Vec<String>,
}
