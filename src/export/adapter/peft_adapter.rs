//! An adapter in PEFT's layout.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    AdapterError, CONFIG,
    adapter_config::AdapterConfig,
    tensors::{self, Module, Part},
};
use crate::{
    export::{json_config::JsonConfig, tensors::TensorFile},
    manifest::AdapterSummary,
};

pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// An adapter, open.
#[derive(Debug)]
pub(in crate::export) struct Adapter {
    pub(super) dir: PathBuf,
    /// Factor of its low-rank products, in addition to their own scale.
    pub(super) weight: f32,
    pub(super) settings: AdapterConfig,
    pub(super) file: Arc<TensorFile>,
    pub(super) modules: BTreeMap<String, Module>,
}

/// Whether `config` are settings of an adapter that can be merged.
pub(in crate::export) fn check_settings(config: &JsonConfig) -> Result<(), AdapterError> {
    AdapterConfig::read(config).map(drop)
}

impl Adapter {
    /// Opens the adapter in `dir`, checks its settings and reads its header.
    pub(in crate::export) fn open(dir: &Path, weight: f32) -> Result<Self, AdapterError> {
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
    pub(in crate::export) fn paths(&self) -> [PathBuf; 2] {
        [self.dir.join(CONFIG), self.file.path().to_owned()]
    }

    /// Names of its tensors that the merge does not use: they are computed and not trained, or for vision or audio.
    pub(in crate::export) fn unused(&self) -> impl Iterator<Item = String> {
        self.file.names().filter(|tensor| tensors::is_left_out(tensor)).map(Into::into)
    }

    /// Its summary for the manifest.
    pub(in crate::export) fn summary(&self) -> AdapterSummary {
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

    /// Whether it saves `module`, a name without prefixes, whole.
    pub(super) fn saves(&self, module: &str) -> bool {
        self.modules.get(module).is_some_and(|module| {
            module.parts.contains_key(&Part::Weight) && self.settings.is_saved(&module.name)
        })
    }

    /// Whether it adds a low-rank product to `module`, a name without prefixes.
    pub(super) fn has_product(&self, module: &str) -> bool {
        let products = [Part::LoraA, Part::LoraB, Part::EmbeddingA, Part::EmbeddingB];
        let has = |module: &Module| products.iter().any(|part| module.parts.contains_key(part));
        self.modules.get(module).is_some_and(has)
    }
}
