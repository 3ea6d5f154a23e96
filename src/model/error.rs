//! Why a model directory cannot be loaded.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    device::DeviceError,
    manifest::{Dtype, ManifestError},
    onnx::external::Malformed,
};

/// Why a model directory cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its graph is of a type that this machine's provider cannot compute.
    #[error(
        "{}: the graph computes in {dtype}, which needs a GPU; export the model with --dtype float32 for a CPU",
        dir.display()
    )]
    Dtype {
        /// The model directory.
        dir: PathBuf,
        /// The graph's data type.
        dtype: Dtype,
    },
    /// Its graph is of a type that a GPU's kernels do not take.
    #[error(
        "{}: the graph computes in {dtype}, which attention on a GPU does not support; export the model with --dtype float16 or \
         bfloat16 for a GPU, or use --device cpu",
        dir.display()
    )]
    NotForGpu {
        /// The model directory.
        dir: PathBuf,
        /// The graph's data type.
        dtype: Dtype,
    },
    /// ONNX Runtime cannot load its graph.
    #[error("{}: {source}", path.display())]
    Load {
        /// The graph.
        path: PathBuf,
        /// ONNX Runtime's error.
        source: DeviceError,
    },
    /// A file is damaged or missing.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// Graph and manifest disagree.
    #[error("{}: {source}", path.display())]
    Graph {
        /// The graph.
        path: PathBuf,
        /// Where they disagree.
        source: Box<GraphError>,
    },
}

impl ModelError {
    /// The file, or the directory, that it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        Some(match self {
            Self::Manifest(error) => error.path(),
            Self::Integrity(error) => error.path(),
            Self::Dtype { dir, .. } | Self::NotForGpu { dir, .. } => dir,
            Self::Load { path, .. } | Self::Graph { path, .. } => path,
        })
    }

    /// Whether ONNX Runtime could not place a node on this device, so that another device may load the model.
    pub(super) fn is_for_another_device(&self) -> bool {
        matches!(self, Self::Load { source, .. } if source.is_placement())
    }
}

/// A file of a model directory that is damaged or missing.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityError {
    /// It is missing, is not a regular file, or cannot be read.
    #[error("{}: {source}; copy the whole directory again, or export the model again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The graph is not an ONNX model.
    #[error("{}: {source}; copy it again, or export the model again", path.display())]
    NotOnnx {
        /// The graph.
        path: PathBuf,
        /// Why.
        source: Malformed,
    },
    /// The graph would read a file outside of its directory.
    #[error(
        "{}: its weights are in {location:?}, outside of the directory; move the file beside the graph and correct its location, or export the model again",
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
        "{}: truncated: {found} bytes, expected at least {min}; copy it again, or export the model \
         again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The end of the last tensor in it.
        min: u64,
    },
    /// Its length differs from the manifest's.
    #[error(
        "{}: {found} bytes, but the manifest records {recorded}; copy it again, or export the model \
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
    /// Its content differs from the manifest's hash.
    #[error(
        "{}: SHA-256 {found}, but the manifest records {recorded}; copy it again, or export the model \
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
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::NotOnnx { path, .. }
            | Self::Outside { path, .. }
            | Self::Truncated { path, .. }
            | Self::Size { path, .. }
            | Self::Hash { path, .. } => path,
        }
    }
}

/// Where graph and manifest disagree.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A tensor of the contract is not there.
    #[error("the graph has no {side} {name:?}, which the manifest names; export the model again")]
    Missing {
        /// `input` or `output`.
        side: &'static str,
        /// The tensor.
        name: String,
    },
    /// The graph has an input that the manifest does not name.
    #[error("the graph has an input {name:?} that the manifest does not name; export the model again")]
    Unknown {
        /// The tensor.
        name: String,
    },
    /// A tensor has another type or shape.
    #[error(
        "{name:?} is {found} {found_shape:?}, expected {expected} {expected_shape:?} (-1: any size); export the model again"
    )]
    Type {
        /// The tensor.
        name: String,
        /// Its element type.
        found: String,
        /// Its shape.
        found_shape: Vec<i64>,
        /// The contract's element type.
        expected: &'static str,
        /// The contract's shape.
        expected_shape: Vec<i64>,
    },
    /// The manifest's context length exceeds the graph's position table.
    #[error(
        "context_length is {context_length}, and {table:?} has {rows} positions; set context_length to {rows} or less in \
         eka.json, or export the model again"
    )]
    Positions {
        /// The shortest table of positions.
        table: String,
        /// Its rows.
        rows: i64,
        /// The manifest's context length.
        context_length: usize,
    },
}
