//! Turns a checkpoint and its adapters into a model directory: one graph that ONNX Runtime runs as it is.
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
//! # What quantization costs
//!
//! On the demonstration model with its adapter, over translations of every fifth phrase of its phrasebook into all ten
//! languages, written as its chats are: mean divergence from float32 (KL, in nats a token), perplexity as a multiple of
//! float32's (3.815), and bits per weight of the file, as `eka export --report` prints them.
//!
//! | | blocks of 32 | 64 | 128 |
//! |---|---|---|---|
//! | int8 | 0.0003, 1.001, 9.4 bits | | |
//! | int4 | 0.0202, 1.022, 6.5 bits | 0.0229, 1.005, 5.9 bits | 0.0251, 0.998, 9.1 bits |
//! | int4, zero points | 0.0172, 1.006, 6.9 bits | 0.0221, 0.986, 6.3 bits | 0.0241, 0.986, 9.4 bits |
//! | int4, the tied table too | 0.0311, 1.060, 5.6 bits | | |
//! | int4, layer 0 in int8 | 0.0065, 0.999, 7.0 bits | | |
//! | int4, plain rounding | 0.0191, 1.017 | 0.0268, 1.029 | 0.0286, 1.021 |
//! | int4, zero points, plain rounding | 0.0180, 0.999 | 0.0237, 1.001 | 0.0272, 1.001 |
//!
//! A perplexity is one draw: it moves by a percent or two with whatever changes the rounding, and below one is luck. The
//! divergence is steadier. Over the whole phrasebook, int4 in blocks of 32 has 1.015 times the perplexity of float32 as
//! chats (1.021 with plain rounding), 1.003 as lists of one language (1.007), 1.0004 as bare lines (1.009). So
//! blocks of 32 are the default: they run as fast on a CPU as the others, within what can
//! be measured. A tied table is the reason for a row of its own: it is kept in int8 among int4, which brings the
//! perplexity within the three percent that we ask for. Rows of 192 do not fill blocks of 128: padding, and a head that
//! cannot share the embedding's bytes, make the coarsest blocks the largest file here.

mod adapter;
mod architectures;
mod blueprint;
mod checkpoint;
mod data_layout;
mod disk;
mod dtype_encoding;
mod emit;
mod formats;
#[doc(hidden)]
pub mod fuzzing;
mod genai;
mod graph;
mod inspect;
mod json_config;
mod load_sources;
mod param;
mod positioned_io;
mod progress;
mod provenance;
mod quantize;
mod random;
mod rope;
mod staging;
mod temp_dir;
mod tensors;
#[cfg(test)]
mod testing;
mod tokenizer_files;
mod weights;
mod write_weights;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    files,
    manifest::{self, Dtype, ExportOptions, FileRecord, GraphNames, Manifest, Provenance},
    onnx,
    units::Bytes,
};

pub use self::{
    adapter::AdapterError,
    checkpoint::CheckpointError,
    data_layout::TooLarge,
    formats::{BlockSize, BlockSizeError, Keep, KeepError, NoSuchModule, Storage, WeightFormat},
    inspect::{InspectError, Operator, identify, operators},
    json_config::JsonConfigError,
    progress::{Progress, Stage},
    provenance::SourceError,
    quantize::{Rounding, ZeroPoints},
    staging::{Existing, StagingError},
    tensors::TensorsError,
    tokenizer_files::TokenizerFilesError,
    weights::WeightsError,
    write_weights::WriteWeightsError,
};
use self::{
    emit::{Emitted, Precision, emit},
    load_sources::LoadedSources,
    rope::Rotary,
    staging::Staging,
    write_weights::fill,
};

/// The graph's file name in a model directory.
const GRAPH_FILE: &str = "model.onnx";

/// The weights' file name in a model directory.
const DATA_FILE: &str = "model.onnx.data";

/// Who writes, as provenance says it.
const EXPORTER: &str = concat!("eka ", env!("CARGO_PKG_VERSION"));

/// Counts changes of what is written between two versions of eka, so that cached exports are not taken for current.
const REVISION: u32 = 4;

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where weights come from.
    pub source: Source,
    /// How they are stored.
    pub weights: Storage,
    /// Of activations, of the key-value cache, and of weights that are not quantized. A CPU wants single precision, a
    /// GPU one of the others.
    pub dtype: Dtype,
    /// Who else shall be able to run it.
    pub layout: Layout,
    /// Most positions, if fewer than the model has: tables of positions are as long, and those of some models are a
    /// quarter of their weights.
    pub context_length: Option<NonZeroUsize>,
    /// The model directory to write.
    pub output: PathBuf,
    /// What to do if it exists.
    pub existing: Existing,
}

/// Who else shall be able to run a model directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Nobody: lengths are inputs of the graph.
    #[default]
    Eka,
    /// onnxruntime-genai as well: a mask instead of lengths, and its configuration beside ours.
    Genai,
}

/// Where weights come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Trained ones.
    Checkpoint {
        /// A directory in Hugging Face's layout.
        base: PathBuf,
        /// What is merged into it; where several bring a tokenizer, the first one's is taken.
        adapters: Vec<AdapterSource>,
    },
    /// Random ones, to measure speed with.
    Random {
        /// A `config.json`.
        config: PathBuf,
        /// Same seed, same weights.
        seed: u64,
    },
}

/// An adapter, and how much of it is merged.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSource {
    /// A directory in PEFT's layout.
    pub dir: PathBuf,
    /// What is added to the base is multiplied with this; one to merge it as it was trained.
    pub weight: f32,
}

impl Source {
    /// The directories that are read.
    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let (base, adapters) = match self {
            Self::Checkpoint { base, adapters } => (Some(base), &adapters[..]),
            Self::Random { .. } => (None, &[][..]),
        };
        let adapters = adapters.iter().map(|adapter| &adapter.dir);
        base.into_iter().chain(adapters).map(PathBuf::as_path)
    }
}

impl Options {
    /// To export `source` to `output`, unquantized in single precision, for eka alone, over nothing that exists.
    #[must_use]
    pub fn new(source: Source, output: PathBuf) -> Self {
        Self {
            source,
            weights: Storage::default(),
            dtype: Dtype::Float32,
            layout: Layout::default(),
            context_length: None,
            output,
            existing: Existing::default(),
        }
    }

    fn names(&self) -> GraphNames {
        match self.layout {
            Layout::Eka => GraphNames::default(),
            Layout::Genai => GraphNames::genai(),
        }
    }

    /// What provenance says was asked for.
    fn asked(&self) -> ExportOptions {
        let Storage { format, block_size, zero_points, ref keep, .. } = self.weights;
        let quantizes = format != WeightFormat::Full || !keep.is_empty();
        ExportOptions {
            quantize: format.to_string(),
            block_size: quantizes.then(|| block_size.get()),
            zero_points: quantizes && zero_points == ZeroPoints::PerBlock,
            keep: keep.iter().map(ToString::to_string).collect(),
            dtype: self.dtype,
            layout: match self.layout {
                Layout::Eka => "eka".into(),
                Layout::Genai => "genai".into(),
            },
            context_length: self.context_length.map(NonZeroUsize::get),
            random_seed: match self.source {
                Source::Checkpoint { .. } => None,
                Source::Random { seed, .. } => Some(seed),
            },
        }
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
    /// Which modules are stored otherwise than most.
    pub kept: Vec<Keep>,
    /// Tensors of the checkpoint and its adapters that the graph does not need.
    pub skipped: Vec<String>,
    /// What may surprise about the merge.
    pub notes: Vec<String>,
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
    JsonConfig(#[from] JsonConfigError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// More positions are asked for than there are.
    #[error("a context length of {asked} is asked for, the model has {most}; ask for that or less")]
    Context {
        /// How many.
        asked: NonZeroUsize,
        /// How many there are.
        most: usize,
    },
    /// Tokenizer, template or generation settings cannot be used.
    #[error(transparent)]
    TokenizerFiles(#[from] TokenizerFilesError),
    /// A format is asked for modules that are not there.
    #[error(transparent)]
    NoSuchModule(#[from] NoSuchModule),
    /// A source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model is larger than a file can be.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The weights cannot be had.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights cannot be written.
    #[error(transparent)]
    WriteWeights(#[from] WriteWeightsError),
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
    let mut input = open(options)?;
    let numbers = Precision { dtype: options.dtype, formats: options.weights.formats(&input.blueprint)? };
    let Emitted { graph, plan } = emit(&input.blueprint, numbers, options.names(), DATA_FILE)?;
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
    let mut manifest = describe(&input, options, sources);
    if options.layout == Layout::Genai {
        let generation = input.companions.as_ref().and_then(|companions| companions.generation.as_ref());
        staging.write(genai::CONFIG, format!("{:#}\n", genai::config(&manifest, generation)).as_bytes())?;
    }
    manifest.files = provenance::identify_all(&staging.files()?, Stage::Checksums, progress)?;
    staging.write(manifest::FILE_NAME, manifest.to_json().as_bytes())?;
    staging.commit()?;
    Ok(Report {
        output: options.output.clone(),
        parameters: input.blueprint.parameters(),
        weight_bytes: Bytes(plan.bytes()),
        notes: input.notes(),
        kept: options.weights.rules(&input.blueprint),
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
    let mut input = open(options)?;
    options.weights.formats(&input.blueprint)?;
    let mut hash = Sha256::new();
    let scales: Vec<f32> = match &options.source {
        Source::Checkpoint { adapters, .. } => adapters.iter().map(|adapter| adapter.weight).collect(),
        Source::Random { .. } => Vec::new(),
    };
    hash.update(format!("{EXPORTER} {REVISION}\n{:?} {scales:?}\n", options.asked()));
    for FileRecord { path, bytes, sha256 } in input.identify(&())? {
        hash.update(format!("{path} {bytes} {sha256}\n"));
    }
    Ok(files::hexadecimal(hash))
}

/// Opens the sources and applies what concerns the whole model.
fn open(options: &Options) -> Result<LoadedSources, ExportError> {
    let mut input = LoadedSources::open(&options.source)?;
    if let Some(asked) = options.context_length {
        let most = input.blueprint.context_length;
        if asked.get() > most {
            return Err(ExportError::Context { asked, most });
        }
        input.blueprint.limit_context(asked.get());
    }
    Ok(input)
}

fn describe(input: &LoadedSources, options: &Options, sources: Vec<FileRecord>) -> Manifest {
    Manifest {
        schema: manifest::SCHEMA,
        architecture: input.blueprint.architecture.into(),
        dims: input.blueprint.dims,
        dtype: options.dtype,
        quantization: options.weights.quantization(),
        overrides: options.weights.overrides(&input.blueprint),
        context_length: input.blueprint.context_length,
        end_tokens: input.end_tokens.clone(),
        parameters: input.blueprint.parameters(),
        graph: options.names(),
        provenance: Provenance {
            exporter: EXPORTER.into(),
            sources,
            adapters: input.adapter_summaries(),
            options: Some(options.asked()),
        },
        files: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
