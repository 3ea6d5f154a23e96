//! Adapters of a source directory: those in `adapters/NAME/` are exported beside the cached export of the base.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::progress::Bars;
use crate::{
    export::{self, AdapterOptions, Existing},
    files, manifest,
};

/// The file that marks a PEFT adapter.
const CONFIG: &str = "adapter_config.json";

/// Exports the adapters in the source directory `source` beside `model`, the export of its base, and removes those that the source
/// does not have any more. An adapter that cannot be exported does not affect the others.
pub(super) fn export(source: &Path, model: &Path) {
    let adapters = sources(source);
    let folder = model.join(manifest::ADAPTERS);
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if manifest::is_adapter_name(&name.to_string_lossy())
            && !adapters.iter().any(|dir| dir.file_name() == Some(&name))
        {
            remove(&entry.path());
        }
    }
    for adapter in adapters {
        let options = AdapterOptions {
            base: model.into(),
            adapter: adapter.clone(),
            name: adapter.file_name().map(|name| name.to_string_lossy().into_owned()),
            output: None,
            existing: Existing::Replace,
        };
        if export::is_exported(&options) {
            continue;
        }
        tracing::info!(event = "export_started", dir = %adapter.display(), "exporting adapter {}", adapter.display());
        if let Err(e) = export::export_adapter(&options, &Bars::new()) {
            tracing::warn!(
                event = "adapter_unavailable",
                adapter = %adapter.display(),
                "adapter not served: {e}"
            );
            // An older version of it would be served in its place.
            remove(&manifest::adapter_dir(model, &options.name.unwrap_or_default()));
        }
    }
}

/// The directories of PEFT adapters in a source directory, by name.
fn sources(source: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(source.join(manifest::ADAPTERS)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|dir| files::exists(&dir.join(CONFIG))).collect();
    found.sort();
    found
}

fn remove(dir: &Path) {
    if files::exists(dir)
        && let Err(e) = fs::remove_dir_all(dir)
    {
        tracing::warn!("cannot remove {}: {e}", dir.display());
    }
}
