//! The model directory to serve: as it is, or exported from its sources into a cache.
//!
//! `models/demo` holds a checkpoint and an adapter, not a graph: exporting is quick enough to be a part of starting. The
//! cache's key is the content of the sources and the options, so whatever changes is exported anew and nothing is
//! exported twice.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};

use super::export::Bars;
use crate::{
    config::{self, Config, Quantize},
    export::{self, AdapterSource, BlockSize, Options, Source, Storage, WeightFormat},
    manifest::{self},
};

/// A model that can be loaded.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Its directory.
    pub(super) dir: PathBuf,
    /// What clients call it.
    pub(super) id: String,
}

/// Finds the model of the settings, and exports it if it is a source directory.
///
/// # Errors
/// When there is neither, or the export fails.
pub(super) fn model(config: &Config) -> anyhow::Result<Prepared> {
    let path = &config.model.path;
    let id = config.model.id.clone();
    if manifest::is_model(path) {
        return Ok(Prepared { dir: path.clone(), id });
    }
    if path.join("base/config.json").is_file() {
        return Ok(Prepared { dir: exported(config, &id)?, id });
    }
    bail!(
        "{} is no model: it has neither {} (written by `eka export`) nor genai_config.json (by onnxruntime-genai) nor base/config.json (a checkpoint to export, with \
         its adapter in adapter/); set model.path or --model",
        path.display(),
        manifest::FILE_NAME
    )
}

/// The export of a source directory, from the cache or made now.
fn exported(config: &Config, id: &str) -> anyhow::Result<PathBuf> {
    let base = config.model.path.join("base");
    let adapter = Some(config.model.path.join("adapter")).filter(|adapter| adapter.is_dir());
    let adapters = adapter.into_iter().map(|dir| AdapterSource { dir, weight: 1.0 }).collect();
    let source = Source::Checkpoint { base, adapters };
    let options = Options { weights: weights(&config.model)?, ..Options::new(source, PathBuf::new()) };
    let key = export::fingerprint(&options)?;
    let output = config.model.cache_dir.join("exports").join(format!("{id}-{}", &key[..16]));
    if output.join(manifest::FILE_NAME).is_file() {
        tracing::info!("using the export of {} in {}", config.model.path.display(), output.display());
        return Ok(output);
    }
    fs::create_dir_all(config.model.cache_dir.join("exports")).with_context(|| {
        format!("{} cannot be made; set model.cache_dir", config.model.cache_dir.display())
    })?;
    tracing::info!("exporting {} to {}", config.model.path.display(), output.display());
    match export::export(&Options { output: output.clone(), ..options }, &Bars::new()) {
        Ok(report) => {
            report.notes.iter().for_each(|note| tracing::warn!("{note}"));
            Ok(output)
        }
        // Another server that started at the same moment was quicker; what it wrote is complete, or would not be there.
        Err(_) if output.join(manifest::FILE_NAME).is_file() => Ok(output),
        Err(e) => Err(e).with_context(|| format!("{} cannot be exported", config.model.path.display())),
    }
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
