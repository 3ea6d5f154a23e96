//! The models to serve: those that are usable, and those that are not, each with its reason.
//!
//! A damaged model does not affect the others: `/v1/models` lists it with the reason, its requests fail with that reason, and
//! the log has the full error. If no model is usable, the server does not start.

use std::{collections::BTreeMap, panic, path::Path, sync::Arc};

use anyhow::anyhow;

use super::resolve_model::{Candidate, ResolvedModel};
use crate::{
    http::{AdapterRegistry, ModelRegistry, Unavailable},
    manifest::ManifestError,
    model::ModelError,
    sandbox::Sandbox,
    text::{Text, TextError},
};

/// The models to serve.
pub(super) struct ServedModels {
    /// The usable models, per device.
    pub(super) devices: Vec<Vec<ResolvedModel>>,
    /// All models, as clients see them.
    pub(super) registry: ModelRegistry,
}

impl ServedModels {
    /// Opens tokenizer and chat template of each model. All devices have the same models in the same order. Chat templates are
    /// compiled by `sandbox`.
    ///
    /// # Errors
    /// The first model's error, if no model is usable.
    pub(super) async fn open(devices: Vec<Vec<Candidate>>, sandbox: &Sandbox) -> anyhow::Result<Self> {
        let order: Vec<String> = devices.iter().take(1).flatten().map(|one| one.id.clone()).collect();
        let (devices, mut errors) = split(devices);
        let models = devices.first().map_or(&[][..], Vec::as_slice);
        let mut texts = open_texts(models, sandbox, &mut errors).await;
        if texts.is_empty() {
            let first = order.first().and_then(|id| errors.remove(id));
            errors.iter().for_each(|(id, error)| {
                tracing::error!(event = "model_unavailable", model = id, "model not served: {error:#}")
            });
            return Err(first.unwrap_or_else(|| anyhow!("no model to serve; set model.path or --model")));
        }
        let entries = order.iter().map(|id| match (texts.remove(id), errors.get(id)) {
            (Some(text), None) => Ok(text),
            (_, error) => Err(unavailable(id, error)),
        });
        let dirs = models.iter().map(|model| (model.id.clone(), model.dir.clone())).collect();
        let registry = ModelRegistry::new(entries.collect()).with_adapters(AdapterRegistry::new(dirs));
        let is_usable = |model: &ResolvedModel| !errors.contains_key(&model.id);
        let devices = devices.into_iter().map(|models| models.into_iter().filter(is_usable).collect());
        Ok(Self { devices: devices.collect(), registry })
    }
}

/// The models that were resolved for each device, and the errors of those that failed for any device.
fn split(devices: Vec<Vec<Candidate>>) -> (Vec<Vec<ResolvedModel>>, BTreeMap<String, anyhow::Error>) {
    let mut errors = BTreeMap::new();
    let mut prepared = Vec::new();
    for candidates in devices {
        let mut models = Vec::new();
        for Candidate { id, model } in candidates {
            match model {
                Ok(model) => models.push(model),
                Err(error) => drop(errors.entry(id).or_insert(error)),
            }
        }
        prepared.push(models);
    }
    (prepared, errors)
}

/// Opens tokenizers and chat templates, which do not depend on the device.
async fn open_texts(
    models: &[ResolvedModel],
    sandbox: &Sandbox,
    errors: &mut BTreeMap<String, anyhow::Error>,
) -> BTreeMap<String, Arc<Text>> {
    let mut texts = BTreeMap::new();
    for ResolvedModel { dir, id, .. } in models {
        if errors.contains_key(id) {
            continue;
        }
        match open_text(dir, id, sandbox).await {
            Ok(text) => drop(texts.insert(id.clone(), Arc::new(text))),
            Err(error) => drop(errors.insert(id.clone(), error)),
        }
    }
    texts
}

/// Opens tokenizer and chat template, and encodes a word as a test. The tokenizer library panics on some inconsistent files.
async fn open_text(dir: &Path, id: &str, sandbox: &Sandbox) -> anyhow::Result<Text> {
    let opened = panic::catch_unwind(|| {
        let text = Text::open(dir, id)?;
        text.encode("a word")?;
        Ok::<_, TextError>(text)
    });
    let panicked = |_| anyhow!("{}: tokenizer.json is inconsistent; copy it again", dir.display());
    let text = opened.map_err(panicked)??;
    sandbox.check_templates(&text).await??;
    Ok(text)
}

/// Logs why a model is not served, and returns the entry that clients see.
fn unavailable(id: &str, error: Option<&anyhow::Error>) -> Unavailable {
    let reason = error.map_or_else(|| "its files cannot be used".into(), public_reason);
    if let Some(error) = error {
        tracing::error!(event = "model_unavailable", model = id, "model not served: {error:#}");
    }
    Unavailable { id: id.into(), reason }
}

/// The error for clients, with file names but without directories of this machine.
fn public_reason(error: &anyhow::Error) -> String {
    let named = error.chain().find_map(|cause| {
        let text = cause.downcast_ref::<TextError>().map(|e| (e.to_string(), e.path()));
        let model = || cause.downcast_ref::<ModelError>().map(|e| (e.to_string(), e.path()));
        let manifest = || cause.downcast_ref::<ManifestError>().map(|e| (e.to_string(), Some(e.path())));
        text.or_else(model).or_else(manifest)
    });
    match named {
        Some((message, Some(path))) => without_folder(&message, path),
        Some((message, None)) => message,
        None => "it cannot be exported, or its directory is incomplete; see the server's log".into(),
    }
}

/// `message` with `path` replaced by its last part.
fn without_folder(message: &str, path: &Path) -> String {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    message.replace(&path.display().to_string(), &name)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{metrics::Metrics, sandbox::ChildProgram};

    fn failed(id: &str, error: impl Into<anyhow::Error>) -> Candidate {
        Candidate { id: id.into(), model: Err(error.into()) }
    }

    #[test]
    fn clients_see_file_names_without_directories() {
        let path = Path::new("/srv/secret/models/a/tokenizer.json").to_path_buf();
        let error = TextError::Read { path, source: io::Error::other("it is a FIFO") };
        let reason = public_reason(&anyhow::Error::from(error).context("/srv/secret"));
        assert!(reason.starts_with("tokenizer.json: it is a FIFO; "), "{reason}");
        let reason = public_reason(&anyhow!("/srv/secret/base: no space"));
        assert!(!reason.contains("secret"), "{reason}");
    }

    #[tokio::test]
    async fn if_no_model_is_usable_the_first_error_is_returned() {
        let devices = vec![vec![failed("a", anyhow!("the first")), failed("b", anyhow!("the second"))]];
        let command = ChildProgram { program: "nowhere".into(), arguments: Vec::new() };
        let sandbox = Sandbox::new(command, Arc::new(Metrics::new()));
        let error = ServedModels::open(devices, &sandbox).await.err().unwrap();
        assert_eq!(error.to_string(), "the first");
    }
}
