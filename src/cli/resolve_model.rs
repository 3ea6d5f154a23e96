//! The model directories to serve: as they are, or exported from its sources into a cache.
//!
//! `models/demo` holds a checkpoint and an adapter, not a graph: exporting is quick enough to be a part of starting. The
//! cache's key is the content of the sources and the options, so whatever changes is exported anew and nothing is
//! exported twice.
//!
//! What is in the cache is eka's own. It is compared with what was recorded when it was written, and made again where it is
//! damaged. A directory that somebody else made is compared as well, and never written to.
//!
//! A GPU's attention does not take float32, so what is exported for one is float16, or bfloat16 where the sources are and the
//! GPU can: their range is then kept. That is an option like others, so the exports for CPU and GPU lie side by side.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use super::{
    exit::{Exit, WithExit},
    export::Bars,
};
use crate::{
    config::{self, Config, Quantize},
    device_spec::Verify,
    export::{self, AdapterSource, BlockSize, Existing, Options, Source, Storage, WeightFormat},
    files,
    job::GpuReport,
    manifest::{self, Dtype, layout::MOST_JSON},
    model::{self, ModelError, Scope},
    text,
};

/// A model of the settings, and whether it can be served.
pub(super) struct Candidate {
    /// What clients call it.
    pub(super) id: String,
    /// The model, or why it cannot be served.
    pub(super) model: anyhow::Result<ResolvedModel>,
}

/// A model that can be loaded.
#[derive(Debug)]
pub(super) struct ResolvedModel {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// What clients call it.
    pub(super) id: String,
    /// The model that guesses for it.
    pub(super) draft: Option<Box<Self>>,
}

/// Finds the model of `model.path`, and its draft model if there is one, and exports those that are source directories.
///
/// # Errors
/// When there is neither, its files are damaged, the export fails, or the draft model has other tokens.
pub(super) fn model(config: &Config, gpu: Option<GpuReport>) -> anyhow::Result<ResolvedModel> {
    let path = &config.model.path;
    usable(path).with_exit(Exit::Model)?;
    let model = prepared(config, path.clone(), config.model.id.clone(), gpu)?;
    with_draft(config, model, gpu)
}

/// Adds the draft model of the settings, if there is one.
fn with_draft(
    config: &Config,
    model: ResolvedModel,
    gpu: Option<GpuReport>,
) -> anyhow::Result<ResolvedModel> {
    let Some(path) = draft_path(config) else { return Ok(model) };
    let draft = draft(config, path, gpu).with_exit(Exit::Model)?;
    text::check_same_tokens(&model.dir, &draft.dir).context("engine.draft_model").with_exit(Exit::Model)?;
    Ok(ResolvedModel { draft: Some(Box::new(draft)), ..model })
}

/// Where the draft model is, if one is wanted: a directory, or one in that of all models.
fn draft_path(config: &Config) -> Option<PathBuf> {
    let path = config.engine.draft_model.as_ref().filter(|_| config.engine.draft_tokens > 0)?;
    let named = config.models.dir.as_ref().map(|dir| dir.join(path));
    Some(named.filter(|named| !is_usable(path) && is_usable(named)).unwrap_or_else(|| path.clone()))
}

fn draft(config: &Config, path: PathBuf, gpu: Option<GpuReport>) -> anyhow::Result<ResolvedModel> {
    ensure!(
        is_usable(&path),
        "{} is no model: it has neither {} (written by `eka export`) nor base/config.json (a checkpoint to export); set \
         engine.draft_model or --draft-model to a directory, or to the name of one in models.dir",
        path.display(),
        manifest::FILE_NAME
    );
    let whole = fs::canonicalize(&path).with_context(|| path.display().to_string())?;
    let id = whole.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if manifest::is_model(&path) {
        // The worker checks it: answers are the same without guesses, so damage is a warning there and no error here.
        return Ok(ResolvedModel { dir: path, id, draft: None });
    }
    prepared(config, path, id, gpu)
}

fn usable(path: &Path) -> anyhow::Result<()> {
    ensure!(
        is_usable(path),
        "{} is no model: it has neither {} (written by `eka export`) nor genai_config.json (by onnxruntime-genai) nor base/config.json (a checkpoint to export, with \
         its adapter in adapter/); set model.path or --model",
        path.display(),
        manifest::FILE_NAME
    );
    Ok(())
}

/// Finds all models of the settings, that of `model.path` first, and exports those that are source directories. A model
/// that cannot be served does not affect the others.
///
/// # Errors
/// When `model.path` is not a model, the draft model cannot be used, or two models have the same name. These are errors in
/// the settings, not in a model's files.
pub(super) fn models(config: &Config, gpu: Option<GpuReport>) -> anyhow::Result<Vec<Candidate>> {
    let path = &config.model.path;
    usable(path).with_exit(Exit::Model)?;
    let first = match prepared(config, path.clone(), config.model.id.clone(), gpu) {
        Ok(model) => Ok(with_draft(config, model, gpu)?),
        Err(error) => Err(error),
    };
    let mut models = vec![Candidate { id: config.model.id.clone(), model: first }];
    let Some(dir) = &config.models.dir else { return Ok(models) };
    for (path, id) in others(dir, path)? {
        ensure!(
            id != config.model.id,
            "{}: another model is called {id} as well; rename the directory, or set model.id",
            path.display()
        );
        let model = usable(&path).and_then(|()| prepared(config, path, id.clone(), gpu));
        models.push(Candidate { id, model });
    }
    Ok(models)
}

/// Whether a model of the settings is a source directory, so that what it is exported for has to be known.
pub(super) fn is_exporting(config: &Config) -> bool {
    let is_source = |path: &Path| is_usable(path) && !manifest::is_model(path);
    let dir = config.models.dir.as_deref();
    let others = dir.and_then(|dir| others(dir, &config.model.path).ok()).unwrap_or_default();
    let draft = draft_path(config);
    is_source(&config.model.path)
        || draft.is_some_and(|path| is_source(&path))
        || others.iter().any(|(path, _)| is_source(path))
}

/// The models in `dir` but for the one in `first`, in the order of their names.
fn others(dir: &Path, first: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let read = |dir: &Path| fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>();
    let entries = read(dir).with_context(|| format!("{}: set models.dir or --models", dir.display()))?;
    let is_first = |path: &Path| fs::canonicalize(path).ok() == fs::canonicalize(first).ok();
    let mut found: Vec<_> = entries
        .into_iter()
        .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
        .filter(|(path, name)| !name.starts_with('.') && is_meant(path) && !is_first(path))
        .collect();
    found.sort();
    Ok(found)
}

fn is_usable(path: &Path) -> bool {
    manifest::is_model(path) || path.join("base/config.json").is_file()
}

/// Whether a directory is a model, or looks like an incomplete one, which must not be skipped silently.
fn is_meant(path: &Path) -> bool {
    const PARTS: [&str; 3] = ["model.onnx", "tokenizer.json", "config.json"];
    is_usable(path) || PARTS.iter().any(|name| files::exists(&path.join(name)))
}

fn prepared(
    config: &Config,
    path: PathBuf,
    id: String,
    gpu: Option<GpuReport>,
) -> anyhow::Result<ResolvedModel> {
    // Paths are sent to the worker, and ids are made of names, as UTF-8.
    ensure!(path.to_str().is_some(), "the path {} is not UTF-8; rename the directory", path.display());
    if !manifest::is_model(&path) {
        return Ok(ResolvedModel { dir: exported(config, &path, &id, gpu)?, id, draft: None });
    }
    // Its owner may have edited the text files, so only graph and weights are compared, and eka never replaces it.
    model::check_directory(&path, config.model.verify, Scope::Weights)?;
    Ok(ResolvedModel { dir: path, id, draft: None })
}

/// The export of a source directory, from the cache or made now.
fn exported(config: &Config, path: &Path, id: &str, gpu: Option<GpuReport>) -> anyhow::Result<PathBuf> {
    let base = path.join("base");
    let dtype = dtype(gpu, is_bfloat16(&base));
    // A link that leads nowhere was meant to be an adapter: without it the answers would silently be others.
    let adapter = Some(path.join("adapter")).filter(|adapter| files::exists(adapter));
    let adapters = adapter.into_iter().map(|dir| AdapterSource { dir, weight: 1.0 }).collect();
    let source = Source::Checkpoint { base, adapters };
    let options = Options { dtype, weights: weights(&config.model)?, ..Options::new(source, PathBuf::new()) };
    let key = export::fingerprint(&options)?;
    let output = config.model.cache_dir.join("exports").join(format!("{id}-{}", &key[..16]));
    let existing = match cached(&output, config.model.verify) {
        Cached::Whole => {
            let dir = output.display();
            tracing::info!(event = "export_reused", %dir, "using the cached export of {}", path.display());
            return Ok(output);
        }
        Cached::Absent => Existing::Keep,
        Cached::Damaged(why) => {
            tracing::warn!(event = "export_damaged", "cached export is damaged and will be replaced: {why}");
            clear_without_manifest(&output)?;
            Existing::Replace
        }
    };
    fs::create_dir_all(config.model.cache_dir.join("exports")).with_context(|| {
        format!("{} cannot be made; set model.cache_dir", config.model.cache_dir.display())
    })?;
    tracing::info!(event = "export_started", dir = %output.display(), "exporting {}", path.display());
    match export::export(&Options { output: output.clone(), existing, ..options }, &Bars::new()) {
        Ok(report) => {
            report.notes.iter().for_each(|note| tracing::warn!("{note}"));
            Ok(output)
        }
        // Another server that started at the same moment was quicker; what it wrote is complete, or would not be there.
        Err(_) if matches!(cached(&output, Verify::Size), Cached::Whole) => Ok(output),
        Err(e) => Err(e).with_context(|| format!("{} cannot be exported", path.display())),
    }
}

/// An export in the cache.
enum Cached {
    Absent,
    Whole,
    Damaged(ModelError),
}

/// Looks at the export in `output`, all of whose files are eka's own.
fn cached(output: &Path, verify: Verify) -> Cached {
    if !files::exists(output) {
        return Cached::Absent;
    }
    match model::check_directory(output, verify, Scope::All) {
        Ok(()) => Cached::Whole,
        Err(why) => Cached::Damaged(why),
    }
}

/// An export replaces nothing that has no manifest, as it could be anything; in the cache it is an export without one, or
/// what a repair of the file system left.
fn clear_without_manifest(output: &Path) -> anyhow::Result<()> {
    if output.join(manifest::FILE_NAME).is_file() {
        return Ok(());
    }
    let is_dir = fs::symlink_metadata(output).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(output) } else { fs::remove_file(output) };
    removed.with_context(|| format!("{} cannot be removed; remove it", output.display()))
}

/// What an export for this device computes in.
const fn dtype(gpu: Option<GpuReport>, source_is_bfloat16: bool) -> Dtype {
    match gpu {
        None => Dtype::Float32,
        Some(GpuReport { has_bfloat16: true }) if source_is_bfloat16 => Dtype::Bfloat16,
        Some(_) => Dtype::Float16,
    }
}

/// Whether a checkpoint says that it is bfloat16. One that cannot be read is refused by the export, with reasons.
fn is_bfloat16(base: &Path) -> bool {
    let config = files::read(&base.join("config.json"), MOST_JSON).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    ["dtype", "torch_dtype"].iter().any(|field| config[field] == "bfloat16")
        || ["dtype", "torch_dtype"].iter().any(|field| config["text_config"][field] == "bfloat16")
}

fn weights(model: &config::Model) -> anyhow::Result<Storage> {
    let block_size = match model.block_size {
        None => BlockSize::default(),
        Some(weights) => weights.get().try_into().context("model.block_size")?,
    };
    let format = match model.quantize {
        Quantize::None => WeightFormat::Full,
        Quantize::Int8 => WeightFormat::Int8,
        Quantize::Int4 => WeightFormat::Int4,
    };
    Ok(Storage { format, block_size, ..Storage::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_gets_float32_and_a_gpu_what_its_attention_takes() {
        let (old, new) = (GpuReport { has_bfloat16: false }, GpuReport { has_bfloat16: true });
        for source_is_bfloat16 in [false, true] {
            assert_eq!(dtype(None, source_is_bfloat16), Dtype::Float32);
            assert_eq!(dtype(Some(old), source_is_bfloat16), Dtype::Float16);
        }
        assert_eq!(dtype(Some(new), false), Dtype::Float16);
        assert_eq!(dtype(Some(new), true), Dtype::Bfloat16);
    }

    #[test]
    fn what_a_checkpoint_is_stored_in_is_read_in_both_spellings() {
        let base = tempfile::tempdir().unwrap();
        let says = |config: &str| {
            fs::write(base.path().join("config.json"), config).unwrap();
            is_bfloat16(base.path())
        };
        assert!(says(r#"{"torch_dtype": "bfloat16"}"#) && says(r#"{"dtype": "bfloat16"}"#));
        assert!(says(r#"{"text_config": {"dtype": "bfloat16"}}"#));
        assert!(!says(r#"{"torch_dtype": "float16"}"#) && !says("{}") && !says("no JSON") && !says("[]"));
    }
}
