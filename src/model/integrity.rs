//! Checks the files of a model directory against their recorded sizes and hashes.
//!
//! A full disk, an interrupted copy or a bad sector leaves a directory that looks like a model. Sizes are compared whenever
//! a model is opened, which costs nothing: with those in the manifest, and with the ranges that the graph reads, which
//! covers directories of older versions and of other programs. Hashes find changed bytes and take a second per gigabyte or
//! two, so they are computed on request.
//!
//! The owner of a directory may edit the text files beside the weights; error messages even advise it. So opening a
//! model checks only graph and weights; all files are checked for exports in eka's own cache, and by `eka inspect
//! --verify`.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{IntegrityError, ModelError, graph_file::GraphFile, packed_cache, validate};
use crate::{
    device_spec::Verify,
    files,
    manifest::{FileRecord, Manifest},
    units::Bytes,
};

/// The files that are compared with the manifest's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The graph and its weights.
    Weights,
    /// Every file that was recorded.
    All,
}

/// Checks the model in `dir` without loading it and without ONNX Runtime: its manifest, its files, and that the graph matches the
/// manifest.
///
/// # Errors
/// [`ModelError`] with the first file or tensor that is wrong.
pub fn check_directory(dir: &Path, verify: Verify, scope: Scope) -> Result<(), ModelError> {
    let manifest = Manifest::read(dir)?;
    let graph = GraphFile::read(dir, &manifest.graph.file)?;
    check_sizes(dir, &manifest, &graph, scope)?;
    if verify == Verify::Hash {
        let records = in_scope(&manifest, &graph, scope);
        if records.is_empty() {
            tracing::warn!("{}: no hashes were recorded; export the model again to have them", dir.display());
        }
        records.par_iter().try_for_each(|record| check_hash(dir, record))?;
        packed_cache::remove_if_damaged(dir, &manifest.graph.file).map_err(|source| {
            IntegrityError::Read { path: packed_cache::path(dir, &manifest.graph.file), source }
        })?;
    }
    validate::check_declarations(&manifest, &graph)
        .map_err(|source| ModelError::Graph { path: graph.path().into(), source: Box::new(source) })
}

/// Compares lengths.
pub(super) fn check_sizes(
    dir: &Path,
    manifest: &Manifest,
    graph: &GraphFile,
    scope: Scope,
) -> Result<(), IntegrityError> {
    for (location, min) in graph.weights() {
        let (path, found) = length(dir, location)?;
        if found < min {
            return Err(IntegrityError::Truncated { path, found, min });
        }
    }
    for record in in_scope(manifest, graph, scope) {
        let (path, found) = length(dir, &record.path)?;
        if found != record.bytes {
            return Err(IntegrityError::Size { path, found, recorded: record.bytes });
        }
    }
    Ok(())
}

fn check_hash(dir: &Path, record: &FileRecord) -> Result<(), IntegrityError> {
    let path = dir.join(&record.path);
    match files::hash(&path, |_| {}) {
        Err(source) => Err(IntegrityError::Read { path, source }),
        Ok((Bytes(found), _)) if found != record.bytes => {
            Err(IntegrityError::Size { path, found, recorded: record.bytes })
        }
        Ok((_, found)) if found != record.sha256 => {
            Err(IntegrityError::Hash { path, found, recorded: record.sha256.clone() })
        }
        Ok(_) => Ok(()),
    }
}

/// The records of the files in `scope`.
fn in_scope<'a>(manifest: &'a Manifest, graph: &GraphFile, scope: Scope) -> Vec<&'a FileRecord> {
    let is_weights = |name: &str| graph.weights().any(|(location, _)| location == name);
    let counts = |record: &&FileRecord| {
        scope == Scope::All || record.path == manifest.graph.file || is_weights(&record.path)
    };
    manifest.files.iter().filter(counts).collect()
}

/// The path and length of a regular file in `dir`.
fn length(dir: &Path, name: &str) -> Result<(PathBuf, u64), IntegrityError> {
    let path = dir.join(name);
    match files::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) => Ok((path, metadata.len())),
        Err(source) => Err(IntegrityError::Read { path, source }),
    }
}
