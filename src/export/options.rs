//! What to export, and how.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Calibration, Existing, Storage, WeightFormat, ZeroPoints};
use crate::manifest::{Dtype, ExportOptions, GraphNames};

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The source of the weights.
    pub source: Source,
    /// The storage of the weights.
    pub weights: Storage,
    /// Of activations, of the key-value cache, and of weights that are not quantized. A CPU wants single precision, a
    /// GPU one of the others.
    pub dtype: Dtype,
    /// Which runtimes can run it.
    pub layout: Layout,
    /// Most positions, if fewer than the model has: tables of positions are as long, and those of some models are a
    /// quarter of their weights.
    pub context_length: Option<NonZeroUsize>,
    /// What the model's linear layers read while it processed a text; weights are rounded for that.
    pub calibration: Option<Arc<Calibration>>,
    /// The model directory to write.
    pub output: PathBuf,
    /// What to do if it exists.
    pub existing: Existing,
}

/// The runtimes that can run a model directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Only eka: lengths are inputs of the graph.
    #[default]
    Eka,
    /// onnxruntime-genai as well: a mask instead of lengths, and its configuration beside ours.
    Genai,
}

/// The source of the weights.
#[derive(Clone, Debug)]
pub enum Source {
    /// Trained ones.
    Checkpoint {
        /// A directory in Hugging Face's layout, or a GGUF file.
        base: PathBuf,
        /// Adapters that are merged into it; the first one with a tokenizer provides it.
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
    /// Factor of the adapter's delta; 1 merges it as it was trained.
    pub weight: f32,
}

impl Source {
    /// The directories that are read.
    pub(super) fn dirs(&self) -> impl Iterator<Item = &Path> {
        let (base, adapters) = match self {
            Self::Checkpoint { base, adapters } => (Some(base), &adapters[..]),
            Self::Random { .. } => (None, &[][..]),
        };
        let adapters = adapters.iter().map(|adapter| &adapter.dir);
        base.into_iter().chain(adapters).map(PathBuf::as_path)
    }
}

impl Options {
    /// Exports `source` to `output`: not quantized, in single precision, for eka only, and not over an existing output.
    #[must_use]
    pub fn new(source: Source, output: PathBuf) -> Self {
        Self {
            source,
            weights: Storage::default(),
            dtype: Dtype::Float32,
            layout: Layout::default(),
            context_length: None,
            calibration: None,
            output,
            existing: Existing::default(),
        }
    }

    pub(super) fn names(&self) -> GraphNames {
        match self.layout {
            Layout::Eka => GraphNames::default(),
            Layout::Genai => GraphNames::genai(),
        }
    }

    /// The options as the manifest records them.
    pub(super) fn asked(&self) -> ExportOptions {
        let Storage { format, block_size, zero_points, bits, ref keep, .. } = self.weights;
        let quantizes = format != WeightFormat::Full || bits.is_some() || !keep.is_empty();
        ExportOptions {
            quantize: format.to_string(),
            block_size: quantizes.then(|| block_size.get()),
            bits: bits.map(|bits| bits.to_string()),
            zero_points: quantizes && zero_points == ZeroPoints::PerBlock,
            keep: keep.iter().map(ToString::to_string).collect(),
            dtype: self.dtype,
            layout: match self.layout {
                Layout::Eka => "eka".into(),
                Layout::Genai => "genai".into(),
            },
            context_length: self.context_length.map(NonZeroUsize::get),
            calibration: self.calibration.as_ref().map(|calibration| calibration.record().clone()),
            random_seed: match self.source {
                Source::Checkpoint { .. } => None,
                Source::Random { seed, .. } => Some(seed),
            },
        }
    }
}
