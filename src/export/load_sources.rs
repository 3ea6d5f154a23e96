//! Opens the sources of an export and checks that they belong together, before anything is written.

use std::path::{Path, PathBuf};

use crate::manifest::{AdapterSummary, FileRecord};

use super::{
    AdapterSource, ExportError, Progress, Source,
    adapter::{Adapter, MergePlan},
    architectures,
    blueprint::Blueprint,
    checkpoint::Checkpoint,
    gguf::{Gguf, is_gguf},
    json_config::{JsonConfig, JsonConfigError},
    provenance::SourceFiles,
    random::RandomWeights,
    tokenizer_files::{EmbeddedFiles, TokenizerFiles},
    weights::{Merged, Weights},
};

const CONFIG: &str = "config.json";

/// A model to export, checked.
#[derive(Debug)]
pub(super) struct LoadedSources {
    pub blueprint: Blueprint,
    pub weights: Weights,
    /// Random weights come without a tokenizer.
    pub tokenizer_files: Option<TokenizerFiles>,
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
        self.merge_plan()
            .map(|merge_plan| merge_plan.adapters().iter().map(Adapter::summary).collect())
            .unwrap_or_default()
    }

    /// Notes for the user about the merge.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.merge_plan().map(|merge_plan| merge_plan.notes.clone()).unwrap_or_default();
        notes.extend(self.beyond.iter().map(|id| {
            format!("end token {id} is left out: the vocabulary has {} tokens", self.blueprint.dims.vocab)
        }));
        notes
    }

    fn merge_plan(&self) -> Option<&MergePlan> {
        match &self.weights {
            Weights::Merged(merged) => Some(merged.merge_plan()),
            Weights::Random(_) => None,
        }
    }

    fn open_checkpoint(base: &Path, adapters: &[AdapterSource]) -> Result<Self, ExportError> {
        let Base { config, checkpoint, embedded } = Base::open(base)?;
        let blueprint = architectures::read(&config)?;
        let mut skipped = checkpoint.check(&blueprint)?;
        let opened: Vec<Adapter> = adapters
            .iter()
            .map(|AdapterSource { dir, weight }| Adapter::open(dir, *weight))
            .collect::<Result<_, _>>()?;
        skipped.extend(opened.iter().flat_map(Adapter::buffers));
        let dirs: Vec<&Path> = adapters.iter().map(|adapter| &*adapter.dir).chain([base]).collect();
        let tokenizer_files = TokenizerFiles::find(&dirs, embedded)?;
        let mut end_tokens = end_tokens(tokenizer_files.generation.as_ref(), &config)?;
        let beyond: Vec<u32> = end_tokens.extract_if(.., |id| *id as usize >= blueprint.dims.vocab).collect();
        let mut sources = SourceFiles::default();
        // A GGUF file is its own configuration, and is hashed once.
        sources.add("base", [config.path().to_owned()].into_iter().chain(checkpoint.paths()));
        sources.add_named("base", beside(&tokenizer_files, base));
        for (number, (adapter, dir)) in opened.iter().zip(&dirs).enumerate() {
            let origin = adapter_origin(number);
            sources.add(&origin, adapter.paths());
            sources.add_named(&origin, beside(&tokenizer_files, dir));
        }
        let (merge_plan, blueprint) = MergePlan::new(opened, blueprint)?;
        let merged = Merged::new(checkpoint, merge_plan, blueprint.embedding.tables())?;
        let weights = Weights::Merged(Box::new(merged));
        Ok(Self {
            blueprint,
            weights,
            tokenizer_files: Some(tokenizer_files),
            end_tokens,
            beyond,
            skipped,
            sources,
        })
    }

    fn open_random(config: &Path, seed: u64) -> Result<Self, ExportError> {
        let config = JsonConfig::read(config)?;
        let mut sources = SourceFiles::default();
        sources.add("base", [config.path().to_owned()]);
        Ok(Self {
            blueprint: architectures::read(&config)?,
            weights: Weights::Random(RandomWeights { seed }),
            tokenizer_files: None,
            end_tokens: end_tokens(None, &config)?,
            beyond: Vec::new(),
            skipped: Vec::new(),
            sources,
        })
    }
}

/// A base model, open.
struct Base {
    config: JsonConfig,
    checkpoint: Checkpoint,
    /// The tokenizer and chat templates of a GGUF file.
    embedded: Option<EmbeddedFiles>,
}

impl Base {
    /// Opens a directory in Hugging Face's layout, or a GGUF file.
    fn open(path: &Path) -> Result<Self, ExportError> {
        if !is_gguf(path) {
            let config = JsonConfig::read(&path.join(CONFIG))?;
            return Ok(Self { config, checkpoint: Checkpoint::open(path)?, embedded: None });
        }
        let gguf = Gguf::open(path)?;
        let embedded = EmbeddedFiles {
            tokenizer: gguf.tokenizer(),
            templates: gguf.templates()?,
            generation: gguf.generation()?,
        };
        let config = gguf.config()?;
        Ok(Self { config, checkpoint: Checkpoint::of(path, gguf.into_tensors())?, embedded: Some(embedded) })
    }
}

/// The tokenizer files that are in `dir`, by their names there.
fn beside(tokenizer_files: &TokenizerFiles, dir: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let all = tokenizer_files.paths().filter(move |(name, path)| dir.join(name) == *path);
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
