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
    export::{
        gguf::{GgufLora, HeadSizes},
        json_config::JsonConfig,
        tensors::TensorFile,
        torch,
    },
    files,
    manifest::AdapterSummary,
};

/// The file of its tensors, and what PEFT falls back to.
const TENSORS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// An adapter, open.
#[derive(Debug)]
pub(in crate::export) struct Adapter {
    pub(super) dir: PathBuf,
    /// Factor of its low-rank products, in addition to their own scale.
    pub(super) weight: f32,
    pub(super) settings: AdapterConfig,
    pub(super) file: Arc<TensorFile>,
    pub(super) modules: BTreeMap<String, Module>,
    /// The files that it was read from.
    paths: Vec<PathBuf>,
}

/// Whether `config` are settings of an adapter that can be merged.
pub(in crate::export) fn check_settings(config: &JsonConfig) -> Result<(), AdapterError> {
    AdapterConfig::read(config).map(drop)
}

impl Adapter {
    /// Opens the adapter in `dir`, or in its only subfolder with one, checks its settings and reads its header.
    pub(in crate::export) fn open(dir: &Path, weight: f32) -> Result<Self, AdapterError> {
        let dir = find_dir(dir)?;
        let settings = AdapterConfig::read(&JsonConfig::read(&dir.join(CONFIG))?)?;
        let [safetensors, torch] = TENSORS.map(|name| dir.join(name));
        let is_torch = !files::exists(&safetensors) && files::exists(&torch);
        let file = torch::open(if is_torch { &torch } else { &safetensors })?;
        let modules = tensors::read(&file)?;
        let paths = vec![dir.join(CONFIG), file.path().to_owned()];
        Ok(Self { dir, weight, settings, file: Arc::new(file), modules, paths })
    }

    /// Opens the adapter in the GGUF file at `path`, for a base with heads of these sizes.
    pub(in crate::export) fn open_gguf(
        path: &Path,
        weight: f32,
        sizes: HeadSizes,
    ) -> Result<Self, AdapterError> {
        let GgufLora { file, config } = GgufLora::open(path, sizes)?;
        let settings = AdapterConfig::read(&JsonConfig::parse(path, &config)?)?;
        let modules = tensors::read(&file)?;
        let paths = vec![path.to_owned()];
        Ok(Self { dir: path.into(), weight, settings, file: Arc::new(file), modules, paths })
    }

    /// The directory that it is in.
    pub(in crate::export) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files that it was read from.
    pub(in crate::export) fn paths(&self) -> Vec<PathBuf> {
        self.paths.clone()
    }

    /// The same adapter, whose modules have the names of the checkpoint: `renamed` gives them for those of transformers.
    pub(super) fn with_names(mut self, renamed: impl Fn(&str) -> Option<String>) -> Self {
        self.modules =
            self.modules.into_iter().map(|(name, module)| (renamed(&name).unwrap_or(name), module)).collect();
        self
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

/// PEFT saves an adapter with a name into a subfolder of that name. One is taken, of several the user must say which.
fn find_dir(dir: &Path) -> Result<PathBuf, AdapterError> {
    if files::exists(&dir.join(CONFIG)) {
        return Ok(dir.into());
    }
    let entries = dir.read_dir().into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| files::exists(&path.join(CONFIG))).collect();
    found.sort();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        // The error is that of the missing file.
        (None, _) => Ok(dir.into()),
        (Some(last), false) => {
            found.push(last);
            Err(AdapterError::SeveralInDir { dir: dir.into(), found })
        }
    }
}
