//! Opens the sources of an export and checks that they belong together, before anything is written.

use std::path::{Path, PathBuf};

use crate::manifest::{AdapterSummary, FileRecord};

use super::{
    AdapterSource, ExportError, Progress, Source,
    adapter::{Adapter, MergePlan},
    architectures,
    blueprint::Blueprint,
    checkpoint::Checkpoint,
    json_config::{JsonConfig, JsonConfigError},
    provenance::SourceFiles,
    random::RandomWeights,
    tokenizer_files::TokenizerFiles,
    weights::{Merged, Weights},
};

const CONFIG: &str = "config.json";

/// A model to export, checked.
#[derive(Debug)]
pub(super) struct LoadedSources {
    pub blueprint: Blueprint,
    pub weights: Weights,
    /// Random weights come without a tokenizer.
    pub companions: Option<TokenizerFiles>,
    pub end_tokens: Vec<u32>,
    /// End tokens of the configuration that the vocabulary does not have.
    beyond: Vec<u32>,
    /// Names of tensors that are not used.
    pub skipped: Vec<String>,
    sources: SourceFiles,
}

impl LoadedSources {
    pub(super) fn open(source: &Source) -> Result<Self, ExportError> {
        match source {
            Source::Checkpoint { base, adapters } => Self::open_checkpoint(base, adapters),
            Source::Random { config, seed } => Self::open_random(config, *seed),
        }
    }

    /// Hashes every file that the export reads.
    pub(super) fn identify(&mut self, progress: &dyn Progress) -> Result<Vec<FileRecord>, ExportError> {
        Ok(std::mem::take(&mut self.sources).identify(progress)?)
    }

    /// Summaries of the adapters for the manifest.
    pub(super) fn adapter_summaries(&self) -> Vec<AdapterSummary> {
        self.blend().map(|blend| blend.adapters().iter().map(Adapter::summary).collect()).unwrap_or_default()
    }

    /// Notes for the user about the merge.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.blend().map(|blend| blend.notes.clone()).unwrap_or_default();
        notes.extend(self.beyond.iter().map(|id| {
            format!("end token {id} is left out: the vocabulary has {} tokens", self.blueprint.dims.vocab)
        }));
        notes
    }

    fn blend(&self) -> Option<&MergePlan> {
        match &self.weights {
            Weights::Merged(merged) => Some(merged.blend()),
            Weights::Random(_) => None,
        }
    }

    fn open_checkpoint(base: &Path, adapters: &[AdapterSource]) -> Result<Self, ExportError> {
        let config = JsonConfig::read(&base.join(CONFIG))?;
        let blueprint = architectures::read(&config)?;
        let checkpoint = Checkpoint::open(base)?;
        let mut skipped = checkpoint.check(&blueprint)?;
        let opened: Vec<Adapter> = adapters
            .iter()
            .map(|AdapterSource { dir, weight }| Adapter::open(dir, *weight))
            .collect::<Result<_, _>>()?;
        skipped.extend(opened.iter().flat_map(Adapter::buffers));
        let dirs: Vec<&Path> = adapters.iter().map(|adapter| &*adapter.dir).chain([base]).collect();
        let companions = TokenizerFiles::find(&dirs)?;
        let mut end_tokens = end_tokens(companions.generation.as_ref(), &config)?;
        let beyond: Vec<u32> = end_tokens.extract_if(.., |id| *id as usize >= blueprint.dims.vocab).collect();
        let mut sources = SourceFiles::default();
        sources.add("base", [config.path().to_owned()].into_iter().chain(checkpoint.paths()));
        sources.add_named("base", beside(&companions, base));
        for (number, (adapter, dir)) in opened.iter().zip(&dirs).enumerate() {
            let origin = adapter_origin(number);
            sources.add(&origin, adapter.paths());
            sources.add_named(&origin, beside(&companions, dir));
        }
        let (blend, blueprint) = MergePlan::new(opened, blueprint)?;
        let merged = Merged::new(checkpoint, blend, blueprint.embedding.tables())?;
        let weights = Weights::Merged(Box::new(merged));
        Ok(Self { blueprint, weights, companions: Some(companions), end_tokens, beyond, skipped, sources })
    }

    fn open_random(config: &Path, seed: u64) -> Result<Self, ExportError> {
        let config = JsonConfig::read(config)?;
        let mut sources = SourceFiles::default();
        sources.add("base", [config.path().to_owned()]);
        Ok(Self {
            blueprint: architectures::read(&config)?,
            weights: Weights::Random(RandomWeights { seed }),
            companions: None,
            end_tokens: end_tokens(None, &config)?,
            beyond: Vec::new(),
            skipped: Vec::new(),
            sources,
        })
    }
}

/// The tokenizer files that are in `dir`, by their names there.
fn beside(companions: &TokenizerFiles, dir: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let all = companions.paths().filter(move |(name, path)| dir.join(name) == *path);
    all.cloned()
}

/// What the directory of an adapter is called in provenance.
fn adapter_origin(number: usize) -> String {
    if number == 0 { "adapter".into() } else { format!("adapter{}", number + 1) }
}

/// The first non-empty list counts: of the generation settings, the configuration, the text model's section in it.
fn end_tokens(generation: Option<&JsonConfig>, config: &JsonConfig) -> Result<Vec<u32>, JsonConfigError> {
    let text = config.section(architectures::TEXT)?;
    for settings in generation.into_iter().chain([config]).chain(&text) {
        let said = settings.ids("eos_token_id")?;
        if !said.is_empty() {
            return Ok(said);
        }
    }
    Ok(Vec::new())
}
