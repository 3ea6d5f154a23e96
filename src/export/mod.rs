//! Turns a checkpoint and its adapter into a model directory: one graph that ONNX Runtime runs as it is.
//!
//! ```text
//! config.json ─► architectures ─► blueprint ──► emit ──┬──► model.onnx
//!                               │                └──► plan ───────┐
//! *.safetensors ─► checkpoint ──┤ checked against                 ▼
//! adapter ───────► adapter ─────┘                 ──► weights ──► fill ──► model.onnx.data
//! ```
//!
//! Everything that can be wrong is found before anything is written, except for numbers that are not finite. Then every
//! place in the data file is decided, and a pool of threads fills it a few megabytes at a time, so that a model far
//! larger than memory can be exported. The same sources and options give the same bytes.
//!
//! Nothing here needs ONNX Runtime: a model can be exported on a machine that could not run it.
//!
//! # Why blocks of 32 are the default
//!
//! Blocks of 32, 64 and 128 run equally fast on a CPU, within what can be measured. On the demonstration model, whose
//! quantized embedding is also its head, the mean divergence from float32 over 282 positions of ten conversations (KL, in
//! nats) and bits per weight of the file are:
//!
//! | | 32 | 64 | 128 |
//! |---|---|---|---|
//! | int8 | 0.00035, 9.4 bits | 0.00049, 8.9 bits | 0.00063, 13.0 bits |
//! | int4 | 0.033, 5.6 bits | 0.040, 5.0 bits | 0.047, 6.9 bits |
//!
//! All six answer all ten prompts exactly as float32 does. Its rows of 192 do not fill blocks of 128: padding, and a head
//! that cannot share the embedding's bytes, make the coarsest blocks the largest file there.

mod adapter;
mod architectures;
mod blueprint;
mod checkpoint;
mod companions;
mod disk;
mod emit;
mod fill;
#[doc(hidden)]
pub mod fuzzing;
mod graph;
mod input;
mod inspect;
mod numbers;
mod onnx;
mod param;
mod plan;
mod positioned;
mod progress;
mod quantize;
mod random;
mod regular;
mod rope;
mod settings;
mod siblings;
mod sources;
mod staging;
mod tensors;
#[cfg(test)]
mod testing;
mod weights;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use sha2::{Digest, Sha256};

use crate::{
    manifest::{self, Dtype, ExportOptions, GraphNames, Manifest, Provenance, Quantization, SourceFile},
    units::Bytes,
};

pub use self::{
    adapter::AdapterError,
    checkpoint::CheckpointError,
    companions::CompanionsError,
    fill::FillError,
    inspect::{InspectError, Operator, identify, operators},
    plan::TooLarge,
    progress::{Progress, Stage},
    settings::SettingsError,
    sources::SourceError,
    staging::{Existing, StagingError},
    tensors::TensorsError,
    weights::WeightsError,
};
use self::{
    emit::{ACCURACY_LEVEL, Emitted, Numbers, emit},
    fill::fill,
    input::Input,
    quantize::{Bits, Quantizer},
    rope::Rotary,
    staging::Staging,
};

/// The graph's file name in a model directory.
const GRAPH_FILE: &str = "model.onnx";

/// The weights' file name in a model directory.
const DATA_FILE: &str = "model.onnx.data";

/// Who writes, as provenance says it.
const EXPORTER: &str = concat!("eka ", env!("CARGO_PKG_VERSION"));

/// Counts changes of what is written between two versions of eka, so that cached exports are not taken for current.
const REVISION: u32 = 3;

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where weights come from.
    pub source: Source,
    /// How they are stored.
    pub weights: WeightFormat,
    /// Of activations, of the key-value cache, and of weights that are not quantized. A CPU wants single precision, a
    /// GPU one of the others.
    pub dtype: Dtype,
    /// The model directory to write.
    pub output: PathBuf,
    /// What to do if it exists.
    pub existing: Existing,
}

/// Where weights come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Trained ones.
    Checkpoint {
        /// A directory in Hugging Face's layout.
        base: PathBuf,
        /// A directory in PEFT's layout.
        adapter: Option<PathBuf>,
    },
    /// Random ones, to measure speed with.
    Random {
        /// A `config.json`.
        config: PathBuf,
        /// Same seed, same weights.
        seed: u64,
    },
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As they are computed with.
    Full,
    /// Eight bits and a share of a scale.
    Int8(BlockSize),
    /// Four bits and a share of a scale.
    Int4(BlockSize),
}

/// How many weights share a scale: 32, 64 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(usize);

impl Default for BlockSize {
    fn default() -> Self {
        Self(32)
    }
}

impl TryFrom<usize> for BlockSize {
    type Error = BlockSizeError;

    fn try_from(weights: usize) -> Result<Self, BlockSizeError> {
        if matches!(weights, 32 | 64 | 128) { Ok(Self(weights)) } else { Err(BlockSizeError) }
    }
}

/// A block size that is none.
#[derive(Debug, thiserror::Error)]
#[error("expected 32, 64 or 128")]
pub struct BlockSizeError;

impl FromStr for BlockSize {
    type Err = BlockSizeError;

    fn from_str(text: &str) -> Result<Self, BlockSizeError> {
        text.parse::<usize>().map_err(|_| BlockSizeError)?.try_into()
    }
}

impl Source {
    /// The directories that are read.
    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let (base, adapter) = match self {
            Self::Checkpoint { base, adapter } => (Some(base), adapter.as_ref()),
            Self::Random { .. } => (None, None),
        };
        base.into_iter().chain(adapter).map(PathBuf::as_path)
    }
}

impl Options {
    fn numbers(&self) -> Numbers {
        Numbers { dtype: self.dtype, quantizer: self.weights.quantizer() }
    }

    /// What provenance says was asked for.
    fn asked(&self) -> ExportOptions {
        let quantizer = self.weights.quantizer();
        ExportOptions {
            quantize: quantizer.map_or("none".into(), |quantizer| format!("int{}", quantizer.bits.count())),
            block_size: quantizer.map(|quantizer| quantizer.block_size),
            dtype: self.dtype,
            random_seed: match self.source {
                Source::Checkpoint { .. } => None,
                Source::Random { seed, .. } => Some(seed),
            },
        }
    }
}

impl WeightFormat {
    fn quantizer(self) -> Option<Quantizer> {
        match self {
            Self::Full => None,
            Self::Int8(block) => Some(Quantizer { bits: Bits::Eight, block_size: block.0 }),
            Self::Int4(block) => Some(Quantizer { bits: Bits::Four, block_size: block.0 }),
        }
    }

    fn quantization(self) -> Option<Quantization> {
        self.quantizer().map(|Quantizer { bits, block_size }| Quantization {
            bits: bits.count(),
            block_size,
            accuracy_level: ACCURACY_LEVEL,
        })
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Report {
    /// The model directory.
    pub output: PathBuf,
    /// Number of parameters, a tied head counted once.
    pub parameters: u64,
    /// Length of the weights' file.
    pub weight_bytes: Bytes,
    /// Tensors of the checkpoint that are known and not needed.
    pub skipped: Vec<String>,
    /// Whether the directory has a tokenizer; one of random weights has none.
    pub has_tokenizer: bool,
}

impl Report {
    /// Bits of the weights' file for each parameter, scales and position tables included.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        self.weight_bytes.0 as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

/// Why an export failed. Nothing was written then.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Tokenizer, template or generation settings cannot be used.
    #[error(transparent)]
    Companions(#[from] CompanionsError),
    /// A source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model is larger than a file can be.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The weights cannot be written.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The output cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// Writes a model directory, complete or not at all.
///
/// # Errors
/// [`ExportError`] when the sources are incomplete, contradict each other or ask for something that is not supported,
/// when a weight is not finite, or when the output exists or cannot be written.
pub fn export(options: &Options, progress: &dyn Progress) -> Result<Report, ExportError> {
    let mut input = Input::open(&options.source)?;
    let Emitted { graph, plan } = emit(&input.blueprint, options.numbers(), DATA_FILE)?;
    for dir in options.source.dirs() {
        staging::check_apart(&options.output, dir)?;
    }
    let staging = Staging::new(&options.output, options.existing)?;
    staging.reserve(DATA_FILE, Bytes(plan.bytes()))?;
    let sources = input.identify(progress)?;
    let angles: Vec<_> = input.blueprint.rotaries.iter().map(Rotary::angles).collect();
    fill(&staging.path(DATA_FILE), &plan, (&input.weights, &angles), progress)?;
    staging.write(GRAPH_FILE, &graph)?;
    if let Some(companions) = &input.companions {
        companions.write(&staging)?;
    }
    staging.write(manifest::FILE_NAME, describe(&input, options, sources).to_json().as_bytes())?;
    staging.commit()?;
    Ok(Report {
        output: options.output.clone(),
        parameters: input.blueprint.parameters(),
        weight_bytes: Bytes(plan.bytes()),
        skipped: input.skipped,
        has_tokenizer: input.companions.is_some(),
    })
}

/// Identifies what an export would write: equal for equal sources, options and versions of the exporter, wherever the
/// files lie. Reads every source once.
///
/// # Errors
/// [`ExportError`] when [`export`] would fail before writing.
pub fn fingerprint(options: &Options) -> Result<String, ExportError> {
    let mut input = Input::open(&options.source)?;
    let mut hash = Sha256::new();
    hash.update(format!("{EXPORTER} {REVISION}\n{:?}\n", options.asked()));
    for SourceFile { path, bytes, sha256 } in input.identify(&())? {
        hash.update(format!("{path} {bytes} {sha256}\n"));
    }
    Ok(sources::hexadecimal(hash))
}

fn describe(input: &Input, options: &Options, sources: Vec<SourceFile>) -> Manifest {
    Manifest {
        schema: manifest::SCHEMA,
        architecture: input.blueprint.architecture.into(),
        dims: input.blueprint.dims,
        dtype: options.dtype,
        quantization: options.weights.quantization(),
        context_length: input.blueprint.context_length,
        end_tokens: input.end_tokens.clone(),
        parameters: input.blueprint.parameters(),
        graph: GraphNames::default(),
        provenance: Provenance {
            exporter: EXPORTER.into(),
            sources,
            adapter: input.adapter_summary(),
            options: Some(options.asked()),
        },
    }
}

#[cfg(test)]
mod tests;
