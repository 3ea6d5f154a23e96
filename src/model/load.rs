//! Loads a model directory into a session.

use std::path::Path;

use super::{
    ModelError, Scope, graph_facts,
    graph_file::{GraphFile, Relocated},
    graph_rewrite,
    hidden_states::HiddenStates,
    integrity, validate,
};
use crate::{
    device::{
        Device, DeviceError, Graph, Pool, Runtime, Session, SessionOptions, Threads,
        operators::{AdapterSlot, Format, Operators},
    },
    manifest::{Dtype, Lengths, Manifest},
    units::Bytes,
};

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    manifest: Manifest,
    pub(super) session: Session,
    /// The format of the key-value cache, if eka's attention runs.
    cache: Option<Format>,
    is_row_invariant: bool,
    /// The output with hidden states, if the graph has one.
    pub(super) hidden: Option<HiddenStates>,
    takes_sequences: bool,
    /// Inputs of the matrix products to which LoRA adapters apply.
    pub(super) adapters: Option<AdapterSlot>,
    /// The graph gives only the logits of the last token.
    gives_last_alone: bool,
}

/// The graph to load: the one in `file`, or the rewritten one, with the locations of its weights.
fn graph(file: &GraphFile, changed: Option<graph_rewrite::RewrittenGraph>) -> Graph<'_> {
    let (content, operators) = changed.map(|changed| (changed.content, changed.operators)).unzip();
    let (content, folder) = match (file.relocated(content.as_deref()), content) {
        (Some(Relocated { folder, content }), _) => (content, folder),
        (None, Some(content)) => (content, file.dir().to_path_buf()),
        (None, None) => return Graph::at(file.path()),
    };
    Graph::in_place_of(file.path(), content, folder, operators)
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

    /// Loads the model in `dir` on a device, or on the CPU if the GPU cannot compute it and the device was chosen by `auto`.
    ///
    /// # Errors
    /// As [`open_in`](Self::open_in), and [`ModelError::NotForGpu`].
    pub fn open_on(device: &Device, dir: &Path, options: SessionOptions) -> Result<Self, ModelError> {
        if device.gpu().is_some() {
            let Manifest { dtype, graph, .. } = Manifest::read(dir)?;
            // The type of onnxruntime-genai's graphs is only known once they are loaded.
            if dtype == Dtype::Float32 && matches!(graph.lengths, Lengths::Separate { .. }) {
                let why = ModelError::NotForGpu { dir: dir.into(), dtype };
                if !device.may_leave_to_cpu() {
                    return Err(why);
                }
                return Self::fall_back(device, dir, options, &why);
            }
        }
        match Self::open_by(dir, options, device.gpu().is_some(), |graph, options| {
            device.session(graph, options)
        }) {
            Err(why)
                if device.may_leave_to_cpu()
                    && device.gpu().is_some()
                    && why.is_for_another_device()
                    // A CPU cannot run these, so the reason is what helps.
                    && Manifest::read(dir)?.dtype != Dtype::Bfloat16 =>
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
        tracing::warn!("falling back from {device} to the CPU: {why}");
        Self::open(device.runtime(), dir, options)
    }

    fn open_by(
        dir: &Path,
        options: SessionOptions,
        on_gpu: bool,
        session: impl FnOnce(&Graph, SessionOptions) -> Result<Session, DeviceError>,
    ) -> Result<Self, ModelError> {
        let mut manifest = Manifest::read(dir)?;
        // ONNX Runtime's CPU provider has no bfloat16 kernels. float16 works: it is converted to float32 where needed.
        if manifest.dtype == Dtype::Bfloat16 && !on_gpu {
            return Err(ModelError::Dtype { dir: dir.into(), dtype: manifest.dtype });
        }
        let file = GraphFile::read(dir, &manifest.graph.file)?;
        integrity::check_sizes(dir, &manifest, &file, Scope::Weights)?;
        let wrong = |source| ModelError::Graph { path: file.path().into(), source: Box::new(source) };
        validate::check_position_tables(&manifest, &file).map_err(wrong)?;
        let changed = if on_gpu || !options.own_operators {
            None
        } else {
            graph_rewrite::rewrite(&file, &options, (&manifest.graph.logits, manifest.dims.hidden))
        };
        let cache = changed.as_ref().and_then(|changed| changed.operators.cache());
        let is_row_invariant = changed.as_ref().is_some_and(|changed| changed.is_row_invariant);
        let takes_sequences = changed.as_ref().is_some_and(|changed| changed.takes_sequences);
        let hidden = changed.as_ref().and_then(|changed| changed.hidden.clone());
        let adapters = changed.as_ref().map(|changed| &changed.operators).filter(|all| all.multiplies());
        let adapters = adapters.map(Operators::adapter_slot);
        let graph = graph(&file, changed);
        let captures = options.captures && on_gpu && file.can_repeat_steps(&manifest.graph);
        let options = SessionOptions { captures, ..options };
        let session = session(&graph, options)
            .map_err(|source| ModelError::Load { path: file.path().into(), source })?;
        validate::adopt_dtype(&mut manifest, &session.inputs());
        validate::check_ports(&manifest, cache, &session.inputs(), &session.outputs()).map_err(wrong)?;
        let logits = session.outputs().into_iter().find(|port| port.name == manifest.graph.logits);
        let gives_last_alone = logits.is_some_and(|port| port.shape.get(1) == Some(&1));
        Ok(Self {
            manifest,
            session,
            cache,
            is_row_invariant,
            hidden,
            takes_sequences,
            adapters,
            gives_last_alone,
        })
    }

    /// The manifest of the directory.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The format of the key-value cache, if eka's attention runs; `None` if it has the graph's type.
    #[must_use]
    pub fn cache_format(&self) -> Option<Format> {
        self.cache
    }

    /// Whether a token's logits have the same bits however the sequence is split into passes, and with any number of threads. True
    /// only on a CPU, when [eka's operators](crate::device::operators) compute all matrix products and attention.
    #[must_use]
    pub fn is_row_invariant(&self) -> bool {
        self.is_row_invariant
    }

    /// Whether a pass may compute several sequences, each with the same bits as by itself. True if the model is
    /// [row-invariant](Self::is_row_invariant), and positions are rotary or absent.
    #[must_use]
    pub fn takes_sequences(&self) -> bool {
        self.takes_sequences && matches!(self.manifest.graph.lengths, Lengths::Separate { .. })
    }

    /// The adapter inputs, and the index of the head among the products that take adapters.
    pub(super) fn head_adapters(&self) -> Option<(&AdapterSlot, usize)> {
        let (adapters, hidden) = self.adapters.as_ref().zip(self.hidden.as_ref())?;
        Some((adapters, adapters.node(&hidden.head)?.0))
    }

    /// Whether passes can give hidden states.
    #[must_use]
    pub fn gives_hidden_states(&self) -> bool {
        self.hidden.is_some() && matches!(self.manifest.graph.lengths, Lengths::Separate { .. })
    }

    /// The positions for which the graph gives logits.
    pub(super) fn rows(&self) -> LogitPositions {
        match &self.manifest.graph.lengths {
            Lengths::Separate { .. } => LogitPositions::Chosen,
            Lengths::Mask { .. } if self.gives_last_alone => LogitPositions::Last,
            Lengths::Mask { .. } => LogitPositions::All,
        }
    }

    /// Whether a pass can give the logits of more than its last token.
    #[must_use]
    pub fn gives_every_row(&self) -> bool {
        self.rows() != LogitPositions::Last
    }

    /// Maximum number of tokens per pass, if `chunk` is requested.
    ///
    /// It is smaller for a graph that returns the logits of every token, which would fill memory with unused logits.
    #[must_use]
    pub fn widest_pass(&self, chunk: usize) -> usize {
        /// 64 MiB in float32.
        const MAX_LOGITS: usize = 16 << 20;
        match self.rows() {
            LogitPositions::Chosen | LogitPositions::Last => chunk,
            LogitPositions::All => chunk.min(MAX_LOGITS / self.manifest.dims.vocab).max(1),
        }
    }

    /// The bytes of weights that a step of one token reads; `None` if the graph cannot be read again. `dir` is the directory
    /// that the model was loaded from.
    #[must_use]
    pub fn weights_read(&self, dir: &Path) -> Option<Bytes> {
        weights_read(dir, &self.manifest)
    }

    /// The session that runs its graph.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Sets how many threads compute, if the session [supports it](Session::threads).
    pub fn set_threads(&mut self, threads: Threads) {
        self.session.set_threads(threads);
    }
}

/// The bytes of weights that a step of one token reads, of the model in `dir`; `None` if its graph cannot be read.
#[must_use]
pub fn weights_read(dir: &Path, manifest: &Manifest) -> Option<Bytes> {
    let graph = GraphFile::read(dir, &manifest.graph.file).ok()?.decode()?.graph?;
    Some(graph_facts::weights_read(&graph))
}

/// The positions for which a graph gives logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogitPositions {
    /// Those that an input selects.
    Chosen,
    /// Only the last one.
    Last,
    /// All positions of the pass.
    All,
}
