//! Whether the files of a model directory are those that it was made with.
//!
//! A disk that was full, a copy that was interrupted or a bad sector leave a directory that looks like a model. Sizes are
//! compared whenever a model is opened, which costs nothing: with those that the manifest recorded, and with what the graph
//! reads of its weights, so that directories of older versions and of others are covered as well. Hashes find bytes that
//! changed, and take a second for a gigabyte or two: they are computed when they are asked for.
//!
//! The owner of a directory may edit the text files beside the weights, and error messages even advise it. So opening a
//! model checks graph and weights alone; all files are checked for exports in eka's own cache, and by `eka inspect
//! --verify`.

use std::{
    io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{ModelError, graph_file::GraphFile, validate};
use crate::{
    device_spec::Verify,
    files,
    manifest::{FileRecord, Manifest},
    onnx::external::Malformed,
    units::Bytes,
};

/// Which files are compared with what the manifest recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The graph and its weights.
    Weights,
    /// Every file that was recorded.
    All,
}

/// A file of a model directory that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityError {
    /// It is missing, is not a regular file, or cannot be read.
    #[error("{}: {source}; copy the whole directory again, or export the model again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The graph is not an ONNX model.
    #[error("{}: {source}; copy it again, or export the model again", path.display())]
    Graph {
        /// The graph.
        path: PathBuf,
        /// Why.
        source: Malformed,
    },
    /// The graph would read a file outside of its directory.
    #[error(
        "{}: its weights are in {location:?}, which is outside of the directory; a graph may only name files beside it",
        path.display()
    )]
    Outside {
        /// The graph.
        path: PathBuf,
        /// The location that it names.
        location: String,
    },
    /// It is shorter than what the graph reads of it.
    #[error(
        "{}: it has {found} bytes, and the graph reads {least}, so it was cut off; copy it again, or export the model \
         again",
        path.display()
    )]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Where the last tensor in it ends.
        least: u64,
    },
    /// It has another length than the one that was recorded.
    #[error(
        "{}: it has {found} bytes, and had {recorded} when the model was exported; copy it again, or export the model \
         again",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Its length in the manifest.
        recorded: u64,
    },
    /// It has other content than the one that was recorded.
    #[error(
        "{}: its SHA-256 is {found}, and was {recorded} when the model was exported; copy it again, or export the model \
         again",
        path.display()
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// Its hash in the manifest.
        recorded: String,
    },
}

impl IntegrityError {
    /// The file that is not what it should be.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::Graph { path, .. }
            | Self::Outside { path, .. }
            | Self::CutOff { path, .. }
            | Self::Size { path, .. }
            | Self::Hash { path, .. } => path,
        }
    }
}

/// Checks the model in `dir` without loading it: its manifest, that manifest and graph belong together, and its files. ONNX
/// Runtime is not needed.
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
    }
    validate::declared(&manifest, &graph)
        .map_err(|source| ModelError::Graph { path: graph.path().into(), source: Box::new(source) })
}

/// Compares lengths.
pub(super) fn check_sizes(
    dir: &Path,
    manifest: &Manifest,
    graph: &GraphFile,
    scope: Scope,
) -> Result<(), IntegrityError> {
    for (location, least) in graph.weights() {
        let (path, found) = length(dir, location)?;
        if found < least {
            return Err(IntegrityError::CutOff { path, found, least });
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

/// The records of the files that count.
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
