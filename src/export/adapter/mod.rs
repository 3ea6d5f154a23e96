//! PEFT adapters, and what they make of a base.
//!
//! ```text
//! adapter_config.json ───► settings, patterns ──┐
//! adapter_model.safetensors ───► tensors ───────┴─► Adapter ─┐
//!                                               another one ─┴─► blend ──► merge, some rows at a time
//! the base's blueprint ─────────────────────────► places ────────┘
//! ```
//!
//! What is computed is what PEFT 0.21 makes of a model by `merge_and_unload`, in float32. Where that may surprise:
//!
//! - A head that is tied to the embedding shares its table. What low-rank matrices add to one of the two is added to
//!   both, as in PEFT when it merges; PEFT without merging changes the one alone. An adapter that has one of the two
//!   whole (`modules_to_save`) unties them: the other keeps the base's table. With low-rank matrices and
//!   `ensure_weight_tying` the file has the same product for both, and PEFT adds it twice.
//! - DoRA gives every row of a linear layer its own length, but every *column* of an embedding.
//! - A weight or a scale other than one multiplies the product of the low-rank matrices, also below DoRA's magnitudes,
//!   and the biases beside them. What an adapter has whole stays as it is.
//! - Every tensor of an adapter is used, or the export fails and names it, where PEFT would warn and go on.

mod adapter_config;
mod deltas;
mod error;
mod merge;
mod merge_plan;
mod patterns;
mod target_modules;
mod tensors;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::error::AdapterError;
use self::{
    adapter_config::AdapterConfig,
    tensors::{Module, Part},
};
pub(super) use self::{
    merge::MergeError,
    merge_plan::{MergePlan, Origin},
};
use super::{checkpoint::is_buffer, json_config::JsonConfig, tensors::TensorFile};
use crate::manifest::AdapterSummary;

/// The adapter's settings.
pub(super) const CONFIG: &str = "adapter_config.json";

const TENSORS: &str = "adapter_model.safetensors";

/// An adapter, open.
#[derive(Debug)]
pub(super) struct Adapter {
    dir: PathBuf,
    /// What its low-rank products are multiplied with, beside their own scale.
    weight: f32,
    settings: AdapterConfig,
    file: Arc<TensorFile>,
    modules: BTreeMap<String, Module>,
}

/// Whether `config` are settings of an adapter that can be merged.
pub(super) fn check_settings(config: &JsonConfig) -> Result<(), AdapterError> {
    AdapterConfig::read(config).map(drop)
}

impl Adapter {
    /// Opens the adapter in `dir`, checks its settings and reads its header.
    pub(super) fn open(dir: &Path, weight: f32) -> Result<Self, AdapterError> {
        let settings = AdapterConfig::read(&JsonConfig::read(&dir.join(CONFIG))?)?;
        let path = dir.join(TENSORS);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(AdapterError::OnlyPickle { dir: dir.into() });
        }
        let file = TensorFile::open(&path)?;
        let modules = tensors::read(&file)?;
        Ok(Self { dir: dir.into(), weight, settings, file: Arc::new(file), modules })
    }

    /// The files that it was read from.
    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.dir.join(CONFIG), self.file.path().to_owned()]
    }

    /// Names of its tensors that are computed, not trained, and therefore not used.
    pub(super) fn buffers(&self) -> impl Iterator<Item = String> {
        self.file.names().filter(|tensor| is_buffer(tensor)).map(Into::into)
    }

    /// What provenance says of it.
    pub(super) fn summary(&self) -> AdapterSummary {
        let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
        let having = |parts: &[Part]| -> BTreeSet<String> {
            let has = |module: &Module| parts.iter().any(|part| module.parts.contains_key(part));
            self.modules.iter().filter(|(_, module)| has(module)).map(|(name, _)| last(name)).collect()
        };
        AdapterSummary {
            weight: self.weight,
            rank: self.settings.default_rank(),
            alpha: self.settings.default_alpha(),
            targets: having(&[Part::LoraA, Part::EmbeddingA]).into_iter().collect(),
            replaced: having(&[Part::Weight, Part::Bias, Part::Tokens]).into_iter().collect(),
        }
    }

    /// Whether it has `module`, a name without prefixes, whole.
    fn saves(&self, module: &str) -> bool {
        self.modules.get(module).is_some_and(|module| {
            module.parts.contains_key(&Part::Weight) && self.settings.is_saved(&module.name)
        })
    }
}
