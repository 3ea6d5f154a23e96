//! Finds the models of the settings: exported model directories, or source directories, which are exported into a cache.
//!
//! The cache's key is a hash of the sources and the export options, so a changed source is exported again and an unchanged
//! one is not. Cached exports are checked against their manifest and replaced if damaged. Other model directories are checked
//! too, but never written to.
//!
//! Attention on a GPU does not support float32, so exports for a GPU are float16, or bfloat16 if the source is and the GPU
//! supports it, to keep its range. Exports for CPU and GPU have different keys and coexist.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

use super::{
    exit::{Exit, WithExit},
    progress::Bars,
    source_adapters,
};
use crate::{
    config::{self, Config},
    device_spec::Verify,
    export::{self, AdapterSource, Existing, Options, Source, Storage},
    files,
    job::GpuReport,
    manifest::{self, Dtype},
    model::{self, ModelError, Scope},
    text,
};

/// Where exports are in `model.cache_dir`.
pub(super) const EXPORTS: &str = "exports";

/// A model of the settings, usable or not.
pub(super) struct Candidate {
    /// Its name in requests.
    pub(super) id: String,
    /// The model, or why it cannot be served.
    pub(super) model: anyhow::Result<ResolvedModel>,
}

/// A model that can be loaded.
#[derive(Debug)]
pub(super) struct ResolvedModel {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// Its name in requests.
    pub(super) id: String,
    /// Its draft model.
    pub(super) draft: Option<Box<Self>>,
}

/// Finds the model of `model.path`, and its draft model if there is one, and exports those that are source directories.
///
/// # Errors
/// When the path is not a model, its files are damaged, the export fails, or the draft model has another tokenizer.
pub(super) fn model(config: &Config, gpu: Option<GpuReport>) -> anyhow::Result<ResolvedModel> {
    let path = &config.model.path;
    require_model(path).with_exit(Exit::Model)?;
    let model = resolved(config, path.clone(), config.model.id.clone(), gpu)?;
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

/// The draft model's directory: the path itself, or that name in `models.dir`.
fn draft_path(config: &Config) -> Option<PathBuf> {
    let path = config.engine.draft_model.as_ref().filter(|_| config.engine.draft_tokens > 0)?;
    let named = config.models.dir.as_ref().map(|dir| dir.join(path));
    Some(
        named
            .filter(|named| !is_model_or_source(path) && is_model_or_source(named))
            .unwrap_or_else(|| path.clone()),
    )
}

fn draft(config: &Config, path: PathBuf, gpu: Option<GpuReport>) -> anyhow::Result<ResolvedModel> {
    ensure!(
        is_model_or_source(&path),
        "{} is not a model: it has neither {} (written by `eka export`) nor base/config.json or base.gguf (a model to export); set \
         engine.draft_model or --draft-model to a model directory, or to the name of one in models.dir",
        path.display(),
        manifest::FILE_NAME
    );
    let whole = fs::canonicalize(&path).with_context(|| path.display().to_string())?;
    let id = whole.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if manifest::is_model(&path) {
        // The worker checks it. Answers are the same without a draft model, so damage is only a warning there.
        return Ok(ResolvedModel { dir: path, id, draft: None });
    }
    resolved(config, path, id, gpu)
}

fn require_model(path: &Path) -> anyhow::Result<()> {
    if is_model_or_source(path) {
        return Ok(());
    }
    check_readable(path)?;
    ensure!(
        !path.join("adapter_config.json").is_file(),
        "{} is a LoRA adapter, not a model; export it with its base: eka export --base DIR --adapter {} --out DIR",
        path.display(),
        path.display()
    );
    bail!(
        "{} is not a model: it has neither {} (written by `eka export`) nor genai_config.json (by onnxruntime-genai) nor \
         config.json, base/config.json or base.gguf (a model to export, with its adapter in adapter/), and it is not a GGUF file; \
         set model.path or --model",
        path.display(),
        manifest::FILE_NAME
    )
}

/// Fails when `path` is missing or cannot be read, which says more than that it is not a model.
fn check_readable(path: &Path) -> anyhow::Result<()> {
    let opened = fs::metadata(path).and_then(|found| {
        if found.is_dir() { fs::read_dir(path).map(drop) } else { fs::File::open(path).map(drop) }
    });
    let shown = path.display();
    match opened {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match nearest_sibling(path) {
            Some(near) => {
                bail!("{shown} does not exist: did you mean {}? (model.path or --model)", near.display())
            }
            None => {
                bail!("{shown} does not exist; set model.path or --model to a model directory or a GGUF file")
            }
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => bail!(
            "{shown} cannot be read: {error}; give the user that runs eka permission to read it (and to enter the directories above)"
        ),
        Err(error) => Err(error).context(shown.to_string()),
    }
}

/// The model beside `path` whose name is the most similar, if it is similar enough for a typing error.
fn nearest_sibling(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let parent = path.parent()?;
    let listed = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let distance = |entry: &fs::DirEntry| {
        strsim::damerau_levenshtein(&name, &entry.file_name().to_string_lossy().to_lowercase())
    };
    let entries = fs::read_dir(listed).ok()?.filter_map(Result::ok);
    let near = entries.filter(|entry| is_model_or_source(&entry.path())).min_by_key(distance)?;
    (distance(&near) <= 2.max(name.chars().count() / 3)).then(|| parent.join(near.file_name()))
}

/// Finds all models of the settings, that of `model.path` first, and exports those that are source directories. A model
/// that cannot be served does not affect the others.
///
/// # Errors
/// When `model.path` is not a model, the draft model cannot be used, or two models have the same name. These are errors in
/// the settings, not in a model's files.
pub(super) fn models(config: &Config, gpu: Option<GpuReport>) -> anyhow::Result<Vec<Candidate>> {
    let path = &config.model.path;
    require_model(path).with_exit(Exit::Model)?;
    let first = match resolved(config, path.clone(), config.model.id.clone(), gpu) {
        Ok(model) => Ok(with_draft(config, model, gpu)?),
        Err(error) => Err(error),
    };
    let mut models = vec![Candidate { id: config.model.id.clone(), model: first }];
    let Some(dir) = &config.models.dir else { return Ok(models) };
    for (path, id) in others(dir, path)? {
        ensure!(
            id != config.model.id,
            "{}: two models have the name {id}; rename the directory, or set model.id",
            path.display()
        );
        let model = require_model(&path).and_then(|()| resolved(config, path, id.clone(), gpu));
        models.push(Candidate { id, model });
    }
    Ok(models)
}

/// The models and sources of the settings, with their names; not opened.
///
/// # Errors
/// When `models.dir` cannot be read.
pub(super) fn of_settings(config: &Config) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let first = &config.model.path;
    let mut found = Vec::new();
    if is_model_or_source(first) {
        found.push((first.clone(), config.model.id.clone()));
    }
    if let Some(dir) = &config.models.dir {
        found.extend(others(dir, first)?);
    }
    Ok(found)
}

/// The first model in `models.dir`, for a process without `model.path`.
///
/// # Errors
/// When the directory cannot be read, or has no model.
pub(super) fn first_in(dir: &Path) -> anyhow::Result<(PathBuf, String)> {
    let found = others(dir, Path::new("")).with_exit(Exit::Model)?;
    let first = found.into_iter().next();
    first
        .with_context(|| format!("{} has no model; set models.dir or --models, or model.path", dir.display()))
        .with_exit(Exit::Model)
}

/// The models of the settings as a gateway needs them: manifests and tokenizers, whether or not the weights are there.
///
/// # Errors
/// When `models.dir` cannot be read, or two models have the same name.
pub(super) fn texts(config: &Config) -> anyhow::Result<Vec<Candidate>> {
    let mut found = vec![(config.model.path.clone(), config.model.id.clone())];
    if let Some(dir) = &config.models.dir {
        found.extend(others(dir, &config.model.path)?);
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for (dir, id) in found {
        ensure!(
            candidates.iter().all(|other| other.id != id),
            "{}: two models have the name {id}; rename the directory, or set model.id",
            dir.display()
        );
        let check = || {
            ensure!(
                manifest::is_model(&dir),
                "{} has no {}: a gateway needs the manifest and the tokenizer files of an exported model; copy them from the \
                 directory that `eka export` wrote, without the weights",
                dir.display(),
                manifest::FILE_NAME
            );
            Ok(ResolvedModel { dir: dir.clone(), id: id.clone(), draft: None })
        };
        candidates.push(Candidate { model: check(), id });
    }
    Ok(candidates)
}

/// Whether a model of the settings is a source directory, whose export depends on the device.
pub(super) fn is_exporting(config: &Config) -> bool {
    let is_source = |path: &Path| is_model_or_source(path) && !manifest::is_model(path);
    let dir = config.models.dir.as_deref();
    let others = dir.and_then(|dir| others(dir, &config.model.path).ok()).unwrap_or_default();
    let draft = draft_path(config);
    is_source(&config.model.path)
        || draft.is_some_and(|path| is_source(&path))
        || others.iter().any(|(path, _)| is_source(path))
}

/// The models in `dir` except `first`, sorted by name.
fn others(dir: &Path, first: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let read = |dir: &Path| fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>();
    let entries = read(dir).with_context(|| format!("{}: set models.dir or --models", dir.display()))?;
    let is_first = |path: &Path| fs::canonicalize(path).ok() == fs::canonicalize(first).ok();
    let mut found: Vec<_> = entries
        .into_iter()
        .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
        .filter(|(path, name)| !name.starts_with('.') && looks_like_model(path) && !is_first(path))
        .collect();
    found.sort();
    Ok(found)
}

fn is_model_or_source(path: &Path) -> bool {
    manifest::is_model(path) || source_base(path).is_some()
}

/// The base to export, if `path` is a source: a GGUF file or a checkpoint itself, or a directory with `base/` or `base.gguf`.
fn source_base(path: &Path) -> Option<PathBuf> {
    if export::is_gguf(path) {
        return path.is_file().then(|| path.to_owned());
    }
    let (dir, file) = (path.join("base"), path.join("base.gguf"));
    if dir.join("config.json").is_file() {
        return Some(dir);
    }
    if file.is_file() {
        return Some(file);
    }
    is_checkpoint(path).then(|| path.to_owned())
}

/// Whether `path` is a checkpoint as it is published: a configuration with weights beside it.
fn is_checkpoint(path: &Path) -> bool {
    let is_weights = |name: &str| {
        name.ends_with(".safetensors")
            || name.ends_with(".safetensors.index.json")
            || (name.starts_with("pytorch_model")
                && (name.ends_with(".bin") || name.ends_with(".bin.index.json")))
    };
    let mut entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    path.join("config.json").is_file()
        && entries.any(|entry| is_weights(&entry.file_name().to_string_lossy()))
}

/// Whether a directory is a model or an incomplete one, which is reported instead of skipped.
fn looks_like_model(path: &Path) -> bool {
    const PARTS: [&str; 3] = ["model.onnx", "tokenizer.json", "config.json"];
    is_model_or_source(path) || PARTS.iter().any(|name| files::exists(&path.join(name)))
}

fn resolved(
    config: &Config,
    path: PathBuf,
    id: String,
    gpu: Option<GpuReport>,
) -> anyhow::Result<ResolvedModel> {
    // Paths are sent to the worker as UTF-8, and ids come from directory names.
    ensure!(path.to_str().is_some(), "the path {} is not UTF-8; rename the directory", path.display());
    if !manifest::is_model(&path) {
        let dir = exported(config, &path, &id, gpu)?;
        source_adapters::export(&path, &dir);
        return Ok(ResolvedModel { dir, id, draft: None });
    }
    // Its owner may have edited the text files, so only graph and weights are checked.
    model::check_directory(&path, config.model.verify, Scope::Weights)?;
    Ok(ResolvedModel { dir: path, id, draft: None })
}

/// The export of a source directory, from the cache or made now.
fn exported(config: &Config, path: &Path, id: &str, gpu: Option<GpuReport>) -> anyhow::Result<PathBuf> {
    let base = source_base(path).unwrap_or_else(|| path.join("base"));
    let dtype = dtype(gpu, is_bfloat16(&base));
    // A dangling link counts as an adapter, so that it is an error and not a silently missing adapter.
    let adapter = Some(path.join("adapter")).filter(|adapter| files::exists(adapter));
    let adapters = adapter.into_iter().map(|dir| AdapterSource { dir, weight: 1.0 }).collect();
    let source = Source::Checkpoint { base, adapters };
    let options = Options { dtype, weights: storage(&config.model), ..Options::new(source, PathBuf::new()) };
    let key = export::fingerprint(&options)?;
    let output = config.model.cache_dir.join(EXPORTS).join(format!("{id}-{}", &key[..16]));
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
    fs::create_dir_all(config.model.cache_dir.join(EXPORTS)).with_context(|| {
        format!("cannot create {}; set model.cache_dir", config.model.cache_dir.display())
    })?;
    tracing::info!(event = "export_started", dir = %output.display(), "exporting {}", path.display());
    match export::export(&Options { output: output.clone(), existing, ..options }, &Bars::new()) {
        Ok(report) => {
            report.notes.iter().for_each(|note| tracing::warn!("{note}"));
            Ok(output)
        }
        // Another process exported the same model at the same time. An export appears only when it is complete.
        Err(_) if matches!(cached(&output, Verify::Size), Cached::Whole) => Ok(output),
        Err(e) => Err(e).with_context(|| format!("cannot export {}", path.display())),
    }
}

/// State of a cached export.
enum Cached {
    Absent,
    Whole,
    Damaged(ModelError),
}

/// Checks the cached export in `output`.
fn cached(output: &Path, verify: Verify) -> Cached {
    if !files::exists(output) {
        return Cached::Absent;
    }
    match model::check_directory(output, verify, Scope::All) {
        Ok(()) => Cached::Whole,
        Err(why) => Cached::Damaged(why),
    }
}

/// Removes `output` if it has no manifest. An export never replaces a directory without one, but in the cache it can only be
/// a damaged export.
fn clear_without_manifest(output: &Path) -> anyhow::Result<()> {
    if output.join(manifest::FILE_NAME).is_file() {
        return Ok(());
    }
    let is_dir = fs::symlink_metadata(output).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(output) } else { fs::remove_file(output) };
    removed.with_context(|| format!("cannot remove {}; remove it by hand", output.display()))
}

/// The data type of an export for this device.
const fn dtype(gpu: Option<GpuReport>, source_is_bfloat16: bool) -> Dtype {
    match gpu {
        None => Dtype::Float32,
        Some(GpuReport { has_bfloat16: true }) if source_is_bfloat16 => Dtype::Bfloat16,
        Some(_) => Dtype::Float16,
    }
}

/// Whether a checkpoint is bfloat16. Errors are left to the export, which reports them.
fn is_bfloat16(base: &Path) -> bool {
    let config = files::read(&base.join("config.json"), files::MAX_JSON).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    ["dtype", "torch_dtype"].iter().any(|field| config[field] == "bfloat16")
        || ["dtype", "torch_dtype"].iter().any(|field| config["text_config"][field] == "bfloat16")
}

fn storage(model: &config::Model) -> Storage {
    let block_size = model.block_size.unwrap_or_default();
    Storage { format: model.quantize, block_size, ..Storage::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_gets_float32_and_a_gpu_what_its_attention_supports() {
        let (old, new) = (GpuReport { has_bfloat16: false }, GpuReport { has_bfloat16: true });
        for source_is_bfloat16 in [false, true] {
            assert_eq!(dtype(None, source_is_bfloat16), Dtype::Float32);
            assert_eq!(dtype(Some(old), source_is_bfloat16), Dtype::Float16);
        }
        assert_eq!(dtype(Some(new), false), Dtype::Float16);
        assert_eq!(dtype(Some(new), true), Dtype::Bfloat16);
    }

    #[test]
    fn a_checkpoints_dtype_is_read_in_both_spellings() {
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
