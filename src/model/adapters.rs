//! Loads adapters that stay beside a model, and chooses those of the next passes.
//!
//! An adapter is read into memory in a few milliseconds, and choosing loaded ones takes microseconds: the model's own weights are
//! not touched. Only models whose products are [eka's operators](crate::device::operators) take adapters, so not models on a
//! GPU.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use bytemuck::Pod;
use half::f16;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use super::Model;
use crate::{
    device::operators::{
        AdapterWeights, ColumnLengths, ColumnTerms, Floats, InputTerms, LowRank, LowRankError, LowRankPair,
    },
    files,
    manifest::{ADAPTER_TENSORS, AdapterManifest, AdapterManifestError, AdapterProduct},
    units::Bytes,
};

/// The longest header that is read: a thousand layers have less than a megabyte.
const MAX_HEADER: u64 = 8 << 20;

/// Why an adapter cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterLoadError {
    /// The model does not compute with eka's operators.
    #[error(
        "this model takes no adapters here: they need a CPU and engine.own_operators; merge the adapter into the model instead, \
         with `eka export --adapter`"
    )]
    NoOperators,
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] AdapterManifestError),
    /// It belongs to another base.
    #[error(
        "{}: the adapter was exported for another base, or the base was exported again since; run `eka export-adapter` again",
        dir.display()
    )]
    Base {
        /// Its directory.
        dir: PathBuf,
    },
    /// It was replaced after the request was accepted.
    #[error("{}: the adapter was replaced meanwhile; send the request again", dir.display())]
    Replaced {
        /// Its directory.
        dir: PathBuf,
    },
    /// The graph has no node of that name.
    #[error(
        "{}: the adapter changes the node {node}, which eka's operators do not compute in this model; merge the adapter into the \
         model instead", dir.display()
    )]
    Node {
        /// Its directory.
        dir: PathBuf,
        /// The node.
        node: String,
    },
    /// Its tensors cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its tensors are not what its manifest says.
    #[error("{}: {message}; run `eka export-adapter` again", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// An adapter in memory.
#[derive(Debug)]
pub struct LoadedAdapter {
    weights: AdapterWeights,
}

impl LoadedAdapter {
    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.weights.bytes()
    }
}

impl Model {
    /// Whether adapters can change its passes.
    #[must_use]
    pub fn takes_adapters(&self) -> bool {
        self.adapters.is_some()
    }

    /// Loads the adapter in `dir`, whose manifest must have this SHA-256, for this model, whose identity is `base`.
    ///
    /// # Errors
    /// [`AdapterLoadError`] when it cannot be read or does not fit.
    pub fn load_adapter(
        &self,
        dir: &Path,
        hash: &[u8; 32],
        base: &str,
    ) -> Result<LoadedAdapter, AdapterLoadError> {
        let slot = self.adapters.as_ref().ok_or(AdapterLoadError::NoOperators)?;
        let (manifest, found) = AdapterManifest::read(dir)?;
        if found != *hash {
            return Err(AdapterLoadError::Replaced { dir: dir.into() });
        }
        if manifest.base != base {
            return Err(AdapterLoadError::Base { dir: dir.into() });
        }
        let mut tensors = TensorReader::open(&dir.join(ADAPTER_TENSORS))?;
        let mut weights = AdapterWeights::default();
        for product in &manifest.products {
            let missing = || AdapterLoadError::Node { dir: dir.into(), node: product.node.clone() };
            let (number, shape) = slot.node(&product.node).ok_or_else(missing)?;
            weights.add(number, tensors.low_rank(product, shape)?);
        }
        Ok(LoadedAdapter { weights })
    }

    /// Lets the next passes use `adapters`, each with its weight, in place of those before; none for the model as it is.
    pub fn use_adapters(&mut self, adapters: &[(&LoadedAdapter, f32)]) {
        if let Some(slot) = &self.adapters {
            let adapters: Vec<(&AdapterWeights, f32)> =
                adapters.iter().map(|(adapter, weight)| (&adapter.weights, *weight)).collect();
            slot.set(&adapters);
        }
    }
}

/// A safetensors file.
struct TensorReader {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

impl TensorReader {
    fn open(path: &Path) -> Result<Self, AdapterLoadError> {
        let failed = |source| AdapterLoadError::Read { path: path.into(), source };
        let wrong = |message: String| AdapterLoadError::Tensors { path: path.into(), message };
        let mut file = files::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(failed)?;
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER.min(bytes) {
            return Err(wrong(format!("its header claims {length} bytes")));
        }
        let mut json = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact(&mut json).map_err(failed)?;
        let metadata: Metadata = serde_json::from_slice(&json).map_err(|e| wrong(e.to_string()))?;
        let start = length + 8;
        let expected = start.saturating_add(metadata.data_len() as u64);
        if bytes != expected {
            return Err(wrong(format!("it has {bytes} bytes, and its header describes {expected}")));
        }
        Ok(Self { path: path.into(), file, metadata, start })
    }

    /// What the file has for a node of this shape.
    fn low_rank(
        &mut self,
        AdapterProduct { node, pairs, changes_input }: &AdapterProduct,
        shape: [usize; 2],
    ) -> Result<LowRank, AdapterLoadError> {
        let a =
            if pairs.is_empty() { Floats::Float32(Vec::new()) } else { self.floats(&format!("{node}.a"))? };
        let mut matrices = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            matrices.push(LowRankPair {
                first_column: pair.first_column,
                columns: pair.columns,
                rank: pair.rank,
                scale: pair.scale,
                b: self.floats(&format!("{node}.b.{index}"))?,
            });
        }
        let mut vector = |name: &str| self.vector(&format!("{node}.{name}"));
        let lengths = match vector("magnitude")? {
            None => None,
            Some(magnitude) => Some(ColumnLengths {
                magnitude,
                base: vector("base")?.unwrap_or_default(),
                cross: vector("cross")?.unwrap_or_default(),
                added: vector("added")?.unwrap_or_default(),
            }),
        };
        let terms = ColumnTerms { scaled_bias: vector("scaled_bias")?, bias: vector("bias")?, lengths };
        let input = if *changes_input {
            let factors = vector("input_factors")?.unwrap_or_default();
            Some(InputTerms { factors, shifts: vector("input_shifts")? })
        } else {
            None
        };
        let made = LowRank::new(shape, a, &matrices, terms);
        let made = made.and_then(|made| match input {
            Some(input) => made.with_input(input),
            None => Ok(made),
        });
        made.map_err(|source: LowRankError| self.wrong(format!("{node}: {source}")))
    }

    fn wrong(&self, message: String) -> AdapterLoadError {
        AdapterLoadError::Tensors { path: self.path.clone(), message }
    }

    /// A matrix.
    fn floats(&mut self, name: &str) -> Result<Floats, AdapterLoadError> {
        let info = self.metadata.info(name).cloned();
        let info = info.ok_or_else(|| self.wrong(format!("{name} is missing")))?;
        match info.dtype {
            Dtype::F32 => Ok(Floats::Float32(self.numbers(&info)?)),
            Dtype::F16 => {
                let bits: Vec<u16> = self.numbers(&info)?;
                Ok(Floats::Float16(bits.into_iter().map(f16::from_bits).collect()))
            }
            dtype => Err(self.wrong(format!("{name} has the type {dtype:?}, expected F32 or F16"))),
        }
    }

    /// A vector of float32, if there is one.
    fn vector(&mut self, name: &str) -> Result<Option<Vec<f32>>, AdapterLoadError> {
        match self.metadata.info(name).cloned() {
            None => Ok(None),
            Some(info) if info.dtype == Dtype::F32 => self.numbers(&info).map(Some),
            Some(info) => Err(self.wrong(format!("{name} has the type {:?}, expected F32", info.dtype))),
        }
    }

    /// The numbers of a tensor. Files are little-endian, as are all processors that eka runs on.
    fn numbers<T: Pod>(&mut self, info: &TensorInfo) -> Result<Vec<T>, AdapterLoadError> {
        let (from, to) = info.data_offsets;
        let mut numbers = vec![T::zeroed(); (to - from) / size_of::<T>()];
        let mut read = || {
            self.file.seek(SeekFrom::Start(self.start + from as u64))?;
            self.file.read_exact(bytemuck::cast_slice_mut(&mut numbers))
        };
        read().map_err(|source| AdapterLoadError::Read { path: self.path.clone(), source })?;
        Ok(numbers)
    }
}
