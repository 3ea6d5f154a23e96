//! A directory under `models/` as an ONNX Runtime session, checked once at load.
//!
//! What the manifest promises is compared with what the graph declares before anything runs: a graph and a manifest of
//! two exports, or a file edited by hand, is an error at load that names the tensor, not nonsense at the first request.

mod check;
mod pass;

use std::path::{Path, PathBuf};

pub use check::GraphError;
pub use pass::{Cache, Pass};

use crate::{
    device::{DeviceError, Runtime, Session, SessionOptions},
    manifest::{Dtype, Manifest, ManifestError},
};

/// The graph's file name in a model directory.
pub const GRAPH_FILE: &str = "model.onnx";

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    manifest: Manifest,
    session: Session,
}

/// Why a model directory cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its graph is of a type that this machine's provider cannot compute.
    #[error(
        "{}: the graph computes in {dtype:?}, which needs a GPU; export it with --dtype float32 for a CPU",
        dir.display()
    )]
    Dtype {
        /// The model directory.
        dir: PathBuf,
        /// What the graph computes in.
        dtype: Dtype,
    },
    /// ONNX Runtime cannot load its graph.
    #[error("{}: {source}", path.display())]
    Load {
        /// The graph.
        path: PathBuf,
        /// What ONNX Runtime said.
        source: DeviceError,
    },
    /// Graph and manifest disagree.
    #[error("{}: {source}; export the model again", path.display())]
    Graph {
        /// The graph.
        path: PathBuf,
        /// About what.
        source: Box<GraphError>,
    },
}

impl Model {
    /// Loads the model in `dir`.
    ///
    /// # Errors
    /// [`ModelError`] when manifest or graph are missing, cannot be loaded, or disagree.
    pub fn open(runtime: &Runtime, dir: &Path, options: SessionOptions) -> Result<Self, ModelError> {
        let manifest = Manifest::read(dir)?;
        // ONNX Runtime computes float16 on a CPU, by way of single precision where it must.
        if manifest.dtype == Dtype::Bfloat16 {
            return Err(ModelError::Dtype { dir: dir.into(), dtype: manifest.dtype });
        }
        let path = dir.join(GRAPH_FILE);
        let session = Session::open(runtime, &path, options)
            .map_err(|source| ModelError::Load { path: path.clone(), source })?;
        check::graph(&manifest, &session.inputs(), &session.outputs())
            .map_err(|source| ModelError::Graph { path, source: Box::new(source) })?;
        Ok(Self { manifest, session })
    }

    /// What the directory says about itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The session that runs its graph.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }
}
