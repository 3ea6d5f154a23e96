//! Opens what is to be exported and checks that its parts belong together, before anything is written.

use std::path::{Path, PathBuf};

use crate::manifest::{AdapterSummary, SourceFile};

use super::{
    ExportError, Progress, Source,
    adapter::Adapter,
    architectures,
    blueprint::Blueprint,
    checkpoint::Checkpoint,
    companions::Companions,
    random::RandomWeights,
    settings::{Settings, SettingsError},
    sources::Sources,
    weights::{Merged, Weights},
};

const CONFIG: &str = "config.json";

/// A model to export, checked.
#[derive(Debug)]
pub(super) struct Input {
    pub blueprint: Blueprint,
    pub weights: Weights,
    /// Random weights come without a tokenizer.
    pub companions: Option<Companions>,
    pub end_tokens: Vec<u32>,
    /// Names of tensors that are not used.
    pub skipped: Vec<String>,
    sources: Sources,
}

impl Input {
    pub(super) fn open(source: &Source) -> Result<Self, ExportError> {
        match source {
            Source::Checkpoint { base, adapter } => Self::open_checkpoint(base, adapter.as_deref()),
            Source::Random { config, seed } => Self::open_random(config, *seed),
        }
    }

    /// Hashes every file that the export reads.
    pub(super) fn identify(&mut self, progress: &dyn Progress) -> Result<Vec<SourceFile>, ExportError> {
        Ok(std::mem::take(&mut self.sources).identify(progress)?)
    }

    /// What provenance says of the adapter.
    pub(super) fn adapter_summary(&self) -> Option<AdapterSummary> {
        let Weights::Merged(merged) = &self.weights else { return None };
        let adapter = merged.adapter.as_ref()?;
        let targets = adapter.targets().into_iter().map(Into::into).collect();
        Some(AdapterSummary { rank: adapter.rank, scale: adapter.scale, targets })
    }

    fn open_checkpoint(base: &Path, adapter_dir: Option<&Path>) -> Result<Self, ExportError> {
        let config = Settings::read(&base.join(CONFIG))?;
        let blueprint = architectures::read(&config)?;
        let checkpoint = Checkpoint::open(base)?;
        let skipped = checkpoint.check(&blueprint)?;
        let adapter = adapter_dir.map(Adapter::open).transpose()?;
        if let Some(adapter) = &adapter {
            adapter.check(&blueprint)?;
        }
        let dirs: Vec<&Path> = adapter_dir.into_iter().chain([base]).collect();
        let companions = Companions::find(&dirs)?;
        let end_tokens = end_tokens(companions.generation.as_ref(), &config)?;
        let mut sources = Sources::default();
        sources.add("base", [config.path().to_owned()].into_iter().chain(checkpoint.paths()));
        sources.add("adapter", adapter.iter().flat_map(Adapter::paths));
        let (from_base, from_adapter): (Vec<PathBuf>, _) =
            companions.paths().partition(|path| path.parent() == Some(base));
        sources.add("base", from_base);
        sources.add("adapter", from_adapter);
        let weights = Weights::Merged(Box::new(Merged { checkpoint, adapter }));
        Ok(Self { blueprint, weights, companions: Some(companions), end_tokens, skipped, sources })
    }

    fn open_random(config: &Path, seed: u64) -> Result<Self, ExportError> {
        let config = Settings::read(config)?;
        let mut sources = Sources::default();
        sources.add("base", [config.path().to_owned()]);
        Ok(Self {
            blueprint: architectures::read(&config)?,
            weights: Weights::Random(RandomWeights { seed }),
            companions: None,
            end_tokens: end_tokens(None, &config)?,
            skipped: Vec::new(),
            sources,
        })
    }
}

fn end_tokens(generation: Option<&Settings>, config: &Settings) -> Result<Vec<u32>, SettingsError> {
    const FIELD: &str = "eos_token_id";
    let said = generation.map(|settings| settings.ids(FIELD)).transpose()?.unwrap_or_default();
    if said.is_empty() { config.ids(FIELD) } else { Ok(said) }
}
