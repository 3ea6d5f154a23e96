//! A directory under `models/` as an ONNX Runtime session, checked once at load.
//!
//! What the manifest promises is compared with what the graph declares before anything runs: a graph and a manifest of
//! two exports, or a file edited by hand, is an error at load that names the tensor, not nonsense at the first request.

mod cache;
mod graph_facts;
mod graph_file;
mod graph_rewrite;
mod host_cache;
mod integrity;
mod pass;
mod validate;

use std::path::{Path, PathBuf};

pub use cache::Cache;
use graph_file::{GraphFile, Relocated};
pub use host_cache::{HostCache, expected_cache_shape};
pub use integrity::{IntegrityError, Scope, check_directory};
use pass::LogitPositions;
pub use pass::Pass;
pub use validate::GraphError;

use crate::{
    device::{
        Device, DeviceError, Graph, Pool, Runtime, Session, SessionOptions, Threads, operators::Format,
    },
    manifest::{Dtype, Lengths, Manifest, ManifestError},
    units::Bytes,
};

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    manifest: Manifest,
    session: Session,
    /// What the key-value cache is in, where attention is ours.
    cache: Option<Format>,
    /// Whatever is fed, the graph gives the logits of the last token.
    gives_last_alone: bool,
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
    /// Its graph is of a type that a GPU's kernels do not take.
    #[error(
        "{}: the graph computes in {dtype:?}, which attention on a GPU does not; export it with --dtype float16 or \
         bfloat16 for a GPU, or use --device cpu",
        dir.display()
    )]
    NotForGpu {
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
    /// A file is not what it should be.
    #[error(transparent)]
    Integrity(#[from] IntegrityError),
    /// Graph and manifest disagree.
    #[error("{}: {source}; export the model again", path.display())]
    Graph {
        /// The graph.
        path: PathBuf,
        /// About what.
        source: Box<GraphError>,
    },
}

/// The graph in `file`, as it was `changed` and with its weights where they are.
fn graph(file: &GraphFile, changed: Option<graph_rewrite::RewrittenGraph>) -> Graph<'_> {
    let (content, operators) = changed.map(|changed| (changed.content, changed.operators)).unzip();
    let (content, folder) = match (file.relocated(content.as_deref()), content) {
        (Some(Relocated { folder, content }), _) => (content, folder),
        (None, Some(content)) => (content, file.dir().to_path_buf()),
        (None, None) => return Graph::at(file.path()),
    };
    Graph::in_place_of(file.path(), content, folder, operators)
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

    /// Whether it is about the device and not about the model.
    fn is_for_another_device(&self) -> bool {
        matches!(self, Self::Load { source, .. } if source.is_placement())
    }
}

impl Model {
    /// Loads the model in `dir`.
    ///
    /// # Errors
    /// [`ModelError`] when manifest or graph are missing, cannot be loaded, or disagree.
    pub fn open(runtime: &Runtime, dir: &Path, options: SessionOptions) -> Result<Self, ModelError> {
        Self::open_by(dir, options, false, |graph, options| Session::open(runtime, graph, options))
    }

    /// Loads the model in `dir`, with memory from `pool`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`ModelError::Load`] when the pool has no room for it.
    pub fn open_in(pool: &Pool, dir: &Path, options: SessionOptions) -> Result<Self, ModelError> {
        let is_on_gpu = pool.gpu_stream().is_some();
        Self::open_by(dir, options, is_on_gpu, |graph, options| Session::open_in(pool, graph, options))
    }

    /// Loads the model in `dir` on a device; where a GPU cannot compute it and need not, on the CPU.
    ///
    /// # Errors
    /// As [`open_in`](Self::open_in), and [`ModelError::NotForGpu`].
    pub fn open_on(device: &Device, dir: &Path, options: SessionOptions) -> Result<Self, ModelError> {
        if device.gpu().is_some() {
            let Manifest { dtype, graph, .. } = Manifest::read(dir)?;
            // Of onnxruntime-genai's the type is not known before they are loaded.
            if dtype == Dtype::Float32 && matches!(graph.lengths, Lengths::Given { .. }) {
                let dir = dir.to_path_buf();
                let why = ModelError::NotForGpu { dir: dir.clone(), dtype };
                if !device.may_leave_to_cpu() {
                    return Err(why);
                }
                return Self::fall_back(device, &dir, options, &why);
            }
        }
        match Self::open_by(dir, options, device.gpu().is_some(), |graph, options| {
            device.session(graph, options)
        }) {
            Err(why)
                if device.may_leave_to_cpu() && device.gpu().is_some() && why.is_for_another_device() =>
            {
                Self::fall_back(device, dir, options, &why)
            }
            opened => opened,
        }
    }

    fn fall_back(
        device: &Device,
        dir: &Path,
        options: SessionOptions,
        why: &ModelError,
    ) -> Result<Self, ModelError> {
        tracing::warn!("on the CPU, not on {device}: {why}");
        Self::open(device.runtime(), dir, options)
    }

    fn open_by(
        dir: &Path,
        options: SessionOptions,
        on_gpu: bool,
        session: impl FnOnce(&Graph, SessionOptions) -> Result<Session, DeviceError>,
    ) -> Result<Self, ModelError> {
        let mut manifest = Manifest::read(dir)?;
        // ONNX Runtime computes float16 on a CPU, by way of single precision where it must.
        if manifest.dtype == Dtype::Bfloat16 && !on_gpu {
            return Err(ModelError::Dtype { dir: dir.into(), dtype: manifest.dtype });
        }
        let file = GraphFile::read(dir, &manifest.graph.file)?;
        integrity::check_sizes(dir, &manifest, &file, Scope::Weights)?;
        let wrong = |source| ModelError::Graph { path: file.path().into(), source: Box::new(source) };
        validate::positions(&manifest, &file).map_err(wrong)?;
        let changed =
            if on_gpu || !options.own_operators { None } else { graph_rewrite::change(&file, options.cache) };
        let cache = changed.as_ref().and_then(|changed| changed.operators.cache());
        let graph = graph(&file, changed);
        let captures = options.captures && on_gpu && file.has_equal_steps(&manifest.graph);
        let options = SessionOptions { captures, ..options };
        let session = session(&graph, options)
            .map_err(|source| ModelError::Load { path: file.path().into(), source })?;
        validate::adopt_dtype(&mut manifest, &session.inputs());
        validate::graph(&manifest, cache, &session.inputs(), &session.outputs()).map_err(wrong)?;
        let logits = session.outputs().into_iter().find(|port| port.name == manifest.graph.logits);
        let gives_last_alone = logits.is_some_and(|port| port.shape.get(1) == Some(&1));
        Ok(Self { manifest, session, cache, gives_last_alone })
    }

    /// What the directory says about itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the key-value cache is in, where attention is ours; else it has the graph's type.
    #[must_use]
    pub fn cache_format(&self) -> Option<Format> {
        self.cache
    }

    /// Of which positions the graph gives logits.
    fn rows(&self) -> LogitPositions {
        match &self.manifest.graph.lengths {
            Lengths::Given { .. } => LogitPositions::Chosen,
            Lengths::Mask { .. } if self.gives_last_alone => LogitPositions::Last,
            Lengths::Mask { .. } => LogitPositions::All,
        }
    }

    /// Whether a pass can give the logits of more than its last token.
    #[must_use]
    pub fn gives_every_row(&self) -> bool {
        self.rows() != LogitPositions::Last
    }

    /// Most tokens to feed in one pass where up to `chunk` are asked for.
    ///
    /// A graph that gives the logits of all of them would fill memory with numbers that nobody reads.
    #[must_use]
    pub fn widest_pass(&self, chunk: usize) -> usize {
        const MOST_LOGITS: usize = 16 << 20;
        match self.rows() {
            LogitPositions::Chosen | LogitPositions::Last => chunk,
            LogitPositions::All => chunk.min(MOST_LOGITS / self.manifest.dims.vocab).max(1),
        }
    }

    /// The bytes of weights that every step reads; `None` where the graph cannot be read again. The directory must be the one
    /// that the model was loaded from.
    #[must_use]
    pub fn weights_read(&self, dir: &Path) -> Option<Bytes> {
        let graph = GraphFile::read(dir, &self.manifest.graph.file).ok()?.decode()?.graph?;
        Some(graph_facts::weights_read(&graph))
    }

    /// The session that runs its graph.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How many threads compute from now on, if that [can be told](Session::threads).
    pub fn set_threads(&mut self, threads: Threads) {
        self.session.set_threads(threads);
    }
}
