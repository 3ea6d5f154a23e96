//! Opens the sources of an export and checks that they belong together, before anything is written.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{
    manifest::{AdapterSummary, Dims, FileRecord},
    text::SourceTokenizer,
};

use super::{
    AdapterSource, ExportError, Progress, Source,
    adapter::{Adapter, MergePlan},
    architectures,
    blueprint::Blueprint,
    checkpoint::Checkpoint,
    gguf::{Gguf, HeadSizes, is_gguf},
    json_config::{JsonConfig, JsonConfigError},
    packed::Packing,
    provenance::SourceFiles,
    random::RandomWeights,
    stored_experts,
    tokenizer_files::TokenizerFiles,
    weights::{Merged, Weights},
};

const CONFIG: &str = "config.json";

/// A model to export, checked.
#[derive(Debug)]
pub(super) struct LoadedSources {
    pub blueprint: Blueprint,
    /// The configuration that the blueprint comes from.
    pub config: JsonConfig,
    pub weights: Weights,
    /// Random weights come without a tokenizer.
    pub tokenizer_files: Option<TokenizerFiles>,
    pub end_tokens: Vec<u32>,
    /// Notes for the user about the tokenizer.
    notes: Vec<String>,
    /// Names of tensors that are not used.
    pub skipped: Vec<String>,
    sources: SourceFiles,
    /// Where the tokenizer files of a GGUF file are, removed with this.
    _embedded: Option<TempDir>,
}

impl LoadedSources {
    pub(super) fn open(source: &Source) -> Result<Self, ExportError> {
        match source {
            Source::Checkpoint { base, adapters } => Self::open_checkpoint(base, adapters),
            Source::Random { config, seed } => Self::open_random(config, *seed),
        }
    }

    /// Sets the context to `positions`, of which there are at most the model's longest context.
    pub(super) fn set_context(&mut self, positions: usize) {
        let original = self.blueprint.context_length;
        if positions > original {
            self.notes.push(format!(
                "positions use LongRoPE's factors for long contexts; transformers uses those for short ones in prompts of up \
                 to {original} tokens"
            ));
        }
        self.blueprint.set_context(positions);
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
        notes.extend(self.notes.iter().cloned());
        notes
    }

    fn merge_plan(&self) -> Option<&MergePlan> {
        match &self.weights {
            Weights::Merged(merged) => Some(merged.merge_plan()),
            Weights::Random(_) => None,
        }
    }

    fn open_checkpoint(base: &Path, adapters: &[AdapterSource]) -> Result<Self, ExportError> {
        let Base { config, mut checkpoint, embedded } = Base::open(base)?;
        let blueprint = architectures::read(&config)?;
        let packing = read_packing(&config)?;
        packing.map_or(Ok(()), |packing| checkpoint.unpack(packing))?;
        let blueprint = checkpoint.resolve_head(blueprint)?;
        let blueprint = stored_experts::resolve(&checkpoint, blueprint);
        let mut skipped = checkpoint.check(&blueprint)?;
        let opened: Vec<Adapter> =
            adapters.iter().map(|adapter| open_adapter(adapter, &blueprint)).collect::<Result<_, _>>()?;
        skipped.extend(opened.iter().flat_map(Adapter::unused));
        let base_files = embedded.as_ref().map_or(base, TempDir::path);
        let dirs: Vec<Vec<&Path>> =
            adapters.iter().zip(&opened).map(|(source, adapter)| adapter_dirs(source, adapter)).collect();
        let all: Vec<&Path> = dirs.iter().flatten().copied().chain([base_files]).collect();
        let model_type = config.text("model_type")?.unwrap_or_default();
        let tokenizer_files = TokenizerFiles::find(&all, model_type)?;
        let mut sources = SourceFiles::default();
        // A GGUF file is its own configuration, and is hashed once.
        sources.add("base", [config.path().to_owned()].into_iter().chain(checkpoint.paths()));
        sources.add_named("base", beside(&tokenizer_files, base));
        for (number, (adapter, dirs)) in opened.iter().zip(&dirs).enumerate() {
            let origin = adapter_origin(number);
            sources.add(&origin, adapter.paths());
            for dir in dirs {
                sources.add_named(&origin, beside(&tokenizer_files, dir));
            }
        }
        let (merge_plan, blueprint) = MergePlan::new(opened, blueprint)?;
        let (end_tokens, mut notes) = check_tokens(&tokenizer_files, &config, &blueprint)?;
        notes.extend(packing.map(|packing| packed_note(packing, adapters)));
        let merged = Merged::new(checkpoint, merge_plan, blueprint.tables())?;
        let weights = Weights::Merged(Box::new(merged));
        Ok(Self {
            blueprint,
            config,
            weights,
            tokenizer_files: Some(tokenizer_files),
            end_tokens,
            notes,
            skipped,
            sources,
            _embedded: embedded,
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
            end_tokens: end_tokens(&[], &config)?,
            notes: Vec::new(),
            skipped: Vec::new(),
            sources,
            config,
            _embedded: None,
        })
    }
}

/// A base model, open.
struct Base {
    config: JsonConfig,
    checkpoint: Checkpoint,
    /// The tokenizer files, chat templates and settings of generation that a GGUF file contains.
    embedded: Option<TempDir>,
}

impl Base {
    /// Opens a directory in Hugging Face's layout, or a GGUF file.
    fn open(path: &Path) -> Result<Self, ExportError> {
        if !is_gguf(path) {
            let config = JsonConfig::read(&path.join(CONFIG))?;
            return Ok(Self { config, checkpoint: Checkpoint::open(path)?, embedded: None });
        }
        let gguf = Gguf::open(path)?;
        let embedded = Some(gguf.write_embedded()?);
        let config = gguf.config()?;
        Ok(Self { config, checkpoint: Checkpoint::of(path, gguf.into_tensors())?, embedded })
    }
}

/// How weights are packed: the section for it is beside that of the text model, or in it.
fn read_packing(config: &JsonConfig) -> Result<Option<Packing>, JsonConfigError> {
    match (Packing::read(config)?, config.section(architectures::TEXT)?) {
        (None, Some(text)) => Packing::read(&text),
        (packing, _) => Ok(packing),
    }
}

fn packed_note(packing: Packing, adapters: &[AdapterSource]) -> String {
    let merged = if adapters.is_empty() {
        ""
    } else {
        ", and the adapter is merged into those numbers, in float32 (QLoRA trained it on them)"
    };
    format!(
        "the base's weights are packed ({}): they are exported as the numbers that they stand for{merged}; --quantize rounds \
         them once more, unless they have its blocks",
        packing.name()
    )
}

/// The tokenizer files that are in `dir`, by their names there.
fn beside(tokenizer_files: &TokenizerFiles, dir: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let all = tokenizer_files.paths().filter(move |(name, path)| dir.join(name) == *path);
    all.cloned()
}

/// An adapter in PEFT's layout, or in a GGUF file.
pub(super) fn open_adapter(
    AdapterSource { dir, weight }: &AdapterSource,
    blueprint: &Blueprint,
) -> Result<Adapter, ExportError> {
    if !is_gguf(dir) {
        return Ok(Adapter::open(dir, *weight)?);
    }
    let Dims { heads, kv_heads, head_dim, .. } = blueprint.dims;
    let stored = blueprint.layers.first().map_or(head_dim, |layer| layer.attention.head_dim);
    Ok(Adapter::open_gguf(dir, *weight, HeadSizes { heads, kv_heads, head_dim: stored })?)
}

/// Where an adapter may have a tokenizer: beside it, and in the directory that was named if it is in a subfolder.
fn adapter_dirs<'a>(source: &'a AdapterSource, adapter: &'a Adapter) -> Vec<&'a Path> {
    let mut dirs = vec![adapter.dir(), &source.dir];
    dirs.dedup();
    dirs
}

/// What the directory of an adapter is called in provenance.
fn adapter_origin(number: usize) -> String {
    if number == 0 { "adapter".into() } else { format!("adapter{}", number + 1) }
}

/// The end tokens of the model, and what a user should know about its tokenizer.
fn check_tokens(
    tokenizer_files: &TokenizerFiles,
    config: &JsonConfig,
    blueprint: &Blueprint,
) -> Result<(Vec<u32>, Vec<String>), ExportError> {
    let vocab = blueprint.dims.vocab;
    let (mut named, mut notes) = (end_tokens(&tokenizer_files.generations, config)?, Vec::new());
    let tokenizer = SourceTokenizer::open(&tokenizer_files.tokenizer)?;
    for dir in &tokenizer_files.configured {
        let id = tokenizer.end_token(dir, blueprint.architecture)?;
        named.extend(id.filter(|id| !named.contains(id)));
    }
    let beyond = tokenizer.beyond(vocab);
    if let Some((id, token)) = beyond.first() {
        let count = beyond.len();
        notes.push(format!(
            "the model has {vocab} token ids, and {count} of the tokenizer's are beyond them, from {id} ({token:?}) on: a prompt \
             with one of them is rejected"
        ));
    }
    let left_out = named.extract_if(.., |id| *id as usize >= vocab);
    notes.extend(left_out.map(|id| format!("end token {id} is left out: the vocabulary has {vocab} tokens")));
    Ok((named, notes))
}

/// Every end token that the settings of generation, the configuration or the text model's section in it name.
fn end_tokens(generations: &[JsonConfig], config: &JsonConfig) -> Result<Vec<u32>, JsonConfigError> {
    let text = config.section(architectures::TEXT)?;
    let mut ids = Vec::new();
    for settings in generations.iter().chain([config]).chain(&text) {
        for id in settings.ids("eos_token_id")? {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}
