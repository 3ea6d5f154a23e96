//! A graph, loaded into ONNX Runtime.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    path::{Path, PathBuf},
    ptr, slice,
};

use ort::{
    AsPointer,
    environment::Environment,
    ep::{self, ArbitrarilyConfigurableExecutionProvider},
    session::builder::{GraphOptimizationLevel, SessionBuilder},
    value::{Outlet, TensorElementType, ValueType},
};

use crate::device_spec::{CacheChoice, PackedFileChoice};

use super::{
    DeviceError, Pool, Runtime,
    operators::Operators,
    pool::GpuStream,
    threads::{ThreadLimits, Threads},
};

/// ONNX Runtime's name of its provider for NVIDIA GPUs.
pub const CUDA_PROVIDER: &str = "CUDAExecutionProvider";

/// How a session computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads of one operator, the calling one included.
    pub threads: usize,
    /// Whether [eka's operators](super::operators) are used on the CPU.
    pub own_operators: bool,
    /// Whether runs that repeat over the same memory may be captured as CUDA graphs, on a GPU.
    pub captures: bool,
    /// Format of the key-value cache with eka's attention.
    pub cache: CacheChoice,
    /// When weights in the layout of those operators are kept in a file.
    pub packed_file: PackedFileChoice,
}

/// A graph to load.
#[derive(Debug)]
pub struct Graph<'a> {
    path: &'a Path,
    changed: Option<Changed>,
}

/// Content that is loaded instead of a graph's file.
#[derive(Debug)]
struct Changed {
    content: Vec<u8>,
    /// The directory of its weights.
    folder: PathBuf,
    operators: Option<Operators>,
}

impl<'a> Graph<'a> {
    /// The graph in the file at `path`.
    #[must_use]
    pub fn at(path: &'a Path) -> Self {
        Self { path, changed: None }
    }

    /// `content` instead of the file at `path`, with weights in `folder` and optionally eka's `operators`.
    #[must_use]
    pub fn in_place_of(
        path: &'a Path,
        content: Vec<u8>,
        folder: PathBuf,
        operators: Option<Operators>,
    ) -> Self {
        Self { path, changed: Some(Changed { content, folder, operators }) }
    }

    /// Whether eka's operators compute the matrix products, which take most of the time of a pass.
    fn has_products(&self) -> bool {
        let operators = self.changed.as_ref().and_then(|changed| changed.operators.as_ref());
        operators.is_some_and(Operators::multiplies)
    }
}

/// An input or output of the graph as the graph declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type, for example `float32`; `not a tensor` for other types.
    pub element: String,
    /// Dimensions; −1 if the graph does not fix one.
    pub shape: Vec<i64>,
}

/// A loaded graph.
///
/// Runs need `&mut`, so that only one can be active at a time.
#[derive(Debug)]
pub struct Session {
    // Declared before the pool that it allocates from: fields are dropped in order.
    inner: ort::session::Session,
    limits: Option<ThreadLimits>,
    pool: Option<Pool>,
    captures: bool,
}

impl Session {
    /// Loads `graph`, with memory that ONNX Runtime manages. Weights beside the graph are mapped, not read.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] with ONNX Runtime's reason.
    pub fn open(runtime: &Runtime, graph: &Graph, options: SessionOptions) -> Result<Self, DeviceError> {
        let limits = ThreadLimits::new(options.threads);
        let inner = Self::commit(Self::builder(runtime.environment(), options), graph, &limits)?;
        Ok(Self { inner, limits: graph.has_products().then_some(limits), pool: None, captures: false })
    }

    /// Loads `graph`, with memory from `pool`: on the CPU for a host pool, and on the GPU, as a whole, for a GPU's pool.
    ///
    /// # Errors
    /// [`DeviceError::NoRoom`] when the pool has no room for it, [`DeviceError::Placement`] when the GPU cannot run every
    /// node of it, [`DeviceError::Runtime`] with ONNX Runtime's reason.
    pub fn open_in(pool: &Pool, graph: &Graph, options: SessionOptions) -> Result<Self, DeviceError> {
        let gpu = pool.gpu_stream();
        let limits = ThreadLimits::new(options.threads);
        let load = |is_whole| {
            let inner = pool.loading(|| {
                let builder = Self::builder(pool.environment(), options)
                    .and_then(|builder| Ok(builder.with_env_allocators()?))
                    .and_then(|builder| match gpu {
                        Some(gpu) => on_gpu(builder, gpu, is_whole),
                        None => Ok(builder),
                    });
                Self::commit(builder, graph, &limits)
            })?;
            let limits = graph.has_products().then(|| limits.clone());
            let captures = options.captures && gpu.is_some();
            Ok(Self { inner, limits, pool: Some(pool.clone()), captures })
        };
        let session = match load(true) {
            // ONNX Runtime does not name the nodes. A session that allows them lists them.
            Err(refused) if gpu.is_some() && DeviceError::is_placement(&refused) => {
                let partly = load(false).map_err(|_| refused)?;
                let found = misplaced(&partly.placement()?).unwrap_or_else(|| "a part of it".into());
                return Err(DeviceError::Placement { found });
            }
            loaded => loaded?,
        };
        if gpu.is_some()
            && let Some(found) = misplaced(&session.placement()?)
        {
            return Err(DeviceError::Placement { found });
        }
        Ok(session)
    }

    fn commit(
        builder: ort::Result<SessionBuilder>,
        graph: &Graph,
        limits: &ThreadLimits,
    ) -> Result<ort::session::Session, DeviceError> {
        let mut builder = builder.map_err(DeviceError::runtime("the session's options"))?;
        let loaded = match &graph.changed {
            None => builder.commit_from_file(graph.path),
            Some(changed) => Self::commit_changed(builder, changed, limits),
        };
        loaded.map_err(DeviceError::runtime("the graph cannot be loaded"))
    }

    fn commit_changed(
        mut builder: SessionBuilder,
        Changed { content, folder, operators }: &Changed,
        limits: &ThreadLimits,
    ) -> ort::Result<ort::session::Session> {
        let folder = folder.to_str().ok_or_else(|| ort::Error::new("its path is not UTF-8"))?;
        if let Some(operators) = operators {
            builder = builder.with_operators(operators.domain(limits)?)?;
        }
        builder
            .with_config_entry("session.model_external_initializers_file_folder_path", folder)?
            .commit_from_memory(content)
    }

    fn builder(environment: &Environment, options: SessionOptions) -> ort::Result<SessionBuilder> {
        Ok(ort::session::Session::builder(environment)?
            .with_no_environment_execution_providers()?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(options.threads)?
            // Prompts differ in length: a pattern would be planned for each and never be used again.
            .with_memory_pattern(false)?
            .with_config_entry("session.record_ep_graph_assignment_info", "1")?)
    }

    /// The pool that it allocates from, if not from memory that ONNX Runtime manages.
    #[must_use]
    pub fn pool(&self) -> Option<&Pool> {
        self.pool.as_ref()
    }

    /// Whether its runs may be captured.
    #[must_use]
    pub fn captures(&self) -> bool {
        self.captures
    }

    /// Names of the inputs and outputs that a GPU session reads and writes on the GPU; all names for a CPU session. On a GPU the
    /// others are values that the host needs before it submits work, such as lengths.
    pub(super) fn staged(&self, is_on_gpu: bool) -> Result<Vec<String>, DeviceError> {
        let api = ort::api();
        let sides = [
            (self.inner.inputs(), api.SessionGetMemoryInfoForInputs),
            (self.inner.outputs(), api.SessionGetMemoryInfoForOutputs),
        ];
        let mut staged = Vec::new();
        for (outlets, ask) in sides {
            let mut places = vec![ptr::null(); outlets.len()];
            // SAFETY: the session lives; there is room for as many descriptions as it has inputs or outputs.
            let status = unsafe { ask(self.inner.ptr(), places.as_mut_ptr(), places.len()) };
            // SAFETY: the status comes from the call above and is used once.
            unsafe { ort::Error::result_from_status(status) }
                .map_err(DeviceError::runtime("where inputs and outputs lie"))?;
            let there = outlets.iter().zip(places).filter(|(_, place)| !is_on_gpu || !is_on_host(*place));
            staged.extend(there.map(|(outlet, _)| outlet.name().to_owned()));
        }
        Ok(staged)
    }

    /// Number of threads that compute, if the session has eka's operators.
    #[must_use]
    pub fn threads(&self) -> Option<Threads> {
        self.limits.as_ref().map(ThreadLimits::threads)
    }

    /// Sets how many of its threads compute, if the session has eka's operators.
    pub fn set_threads(&mut self, threads: Threads) {
        if let Some(limits) = &self.limits {
            limits.set(threads);
        }
    }

    /// The graph's inputs.
    #[must_use]
    pub fn inputs(&self) -> Vec<Port> {
        self.inner.inputs().iter().map(port).collect()
    }

    /// The graph's outputs.
    #[must_use]
    pub fn outputs(&self) -> Vec<Port> {
        self.inner.outputs().iter().map(port).collect()
    }

    /// Nodes of the optimized graph by execution provider and operator, as the session placed them.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when ONNX Runtime fails.
    pub fn placement(&self) -> Result<Placement, DeviceError> {
        self.placed().map_err(DeviceError::runtime("the placement of nodes"))
    }

    fn placed(&self) -> ort::Result<Placement> {
        let mut placement = Placement::new();
        for &subgraph in self.assigned_subgraphs()? {
            let operators = placement.entry(provider(subgraph)?).or_default();
            for &node in nodes(subgraph)? {
                *operators.entry(operator(node)?).or_insert(0) += 1;
            }
        }
        Ok(placement)
    }

    fn assigned_subgraphs(&self) -> ort::Result<&[*const ort::sys::OrtEpAssignedSubgraph]> {
        let (mut first, mut count) = (ptr::null(), 0);
        // SAFETY: the session lives; both out-parameters are valid for the call.
        let status = unsafe {
            (ort::api().Session_GetEpGraphAssignmentInfo)(self.inner.ptr(), &raw mut first, &raw mut count)
        };
        // SAFETY: the status comes from the call above and is used once.
        unsafe { ort::Error::result_from_status(status) }?;
        // SAFETY: on success the session owns an array of `count` pointers, unchanged as long as it lives.
        Ok(if first.is_null() { &[] } else { unsafe { slice::from_raw_parts(first, count) } })
    }

    pub(super) fn inner_mut(&mut self) -> &mut ort::session::Session {
        &mut self.inner
    }

    pub(super) fn inner(&self) -> &ort::session::Session {
        &self.inner
    }
}

fn is_on_host(place: *const ort::sys::OrtMemoryInfo) -> bool {
    let mut device = ort::sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU;
    if !place.is_null() {
        // SAFETY: the session owns the description and lives; the out-parameter is valid for the call.
        unsafe { (ort::api().MemoryInfoGetDeviceType)(place, &raw mut device) };
    }
    device == ort::sys::OrtMemoryInfoDeviceType::OrtMemoryInfoDeviceType_CPU
}

/// The attention kernels that ONNX Runtime may use: flash, memory-efficient, and unfused. Not cuDNN's: ONNX Runtime 1.31.1
/// prefers it on Hopper, even with cuDNN disabled, and then fails.
fn attention_kernels() -> ep::cuda::AttentionBackend {
    use ep::cuda::AttentionBackend;
    AttentionBackend::FLASH_ATTENTION | AttentionBackend::EFFICIENT_ATTENTION | AttentionBackend::MATH
}

/// The CUDA provider on the pool's stream.
fn on_gpu(builder: SessionBuilder, gpu: GpuStream, is_whole: bool) -> ort::Result<SessionBuilder> {
    let cuda = ep::CUDA::default().with_device_id(gpu.ordinal.into());
    // SAFETY: the stream belongs to the pool, which the session references and drops after itself.
    let cuda = unsafe { cuda.with_compute_stream(gpu.stream.as_ptr()) }
        // Float32 nodes, such as the logits, must not be computed in TF32.
        .with_tf32(false)
        .with_attention_backend(attention_kernels())
        // No operator of a language model needs cuDNN, and installing it takes another half gigabyte.
        .with_arbitrary_config("enable_cudnn", "0")
        // One stream orders the pool's blocks.
        .with_arbitrary_config("use_ep_level_unified_stream", "1");
    let builder = builder.with_execution_providers([cuda.build().error_on_failure()])?;
    if is_whole { Ok(builder.with_disable_cpu_fallback()?) } else { Ok(builder) }
}

/// Nodes by execution provider and operator.
pub type Placement = BTreeMap<String, BTreeMap<String, usize>>;

/// The nodes of a GPU session that run elsewhere or copy to or from the host.
fn misplaced(placement: &Placement) -> Option<String> {
    let mut found = Vec::new();
    for (provider, operators) in placement {
        let is_elsewhere = provider != CUDA_PROVIDER;
        let wrong = operators.iter().filter(|(name, _)| is_elsewhere || name.starts_with("Memcpy"));
        found.extend(wrong.map(|(name, count)| format!("{count} {name} ({provider})")));
    }
    (!found.is_empty()).then(|| found.join(", "))
}

fn provider(subgraph: *const ort::sys::OrtEpAssignedSubgraph) -> ort::Result<String> {
    let mut name = ptr::null();
    // SAFETY: `subgraph` comes from the session, which outlives this call.
    let status = unsafe { (ort::api().EpAssignedSubgraph_GetEpName)(subgraph, &raw mut name) };
    // SAFETY: the status comes from the call above and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    // SAFETY: on success `name` is a C string owned by the session.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The nodes of a subgraph. The session owns both.
fn nodes<'a>(
    subgraph: *const ort::sys::OrtEpAssignedSubgraph,
) -> ort::Result<&'a [*const ort::sys::OrtEpAssignedNode]> {
    let (mut first, mut count) = (ptr::null(), 0);
    // SAFETY: `subgraph` comes from the session, which outlives this call; both out-parameters are valid for it.
    let status =
        unsafe { (ort::api().EpAssignedSubgraph_GetNodes)(subgraph, &raw mut first, &raw mut count) };
    // SAFETY: the status comes from the call above and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    // SAFETY: on success the session owns an array of `count` pointers, unchanged as long as it lives.
    Ok(if first.is_null() { &[] } else { unsafe { slice::from_raw_parts(first, count) } })
}

fn operator(node: *const ort::sys::OrtEpAssignedNode) -> ort::Result<String> {
    let mut name = ptr::null();
    // SAFETY: `node` comes from the session, which outlives this call.
    let status = unsafe { (ort::api().EpAssignedNode_GetOperatorType)(node, &raw mut name) };
    // SAFETY: the status comes from the call above and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    // SAFETY: on success `name` is a C string owned by the session.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

fn port(outlet: &Outlet) -> Port {
    let (element, shape) = match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => (element_name(*ty), shape.to_vec()),
        _ => ("not a tensor".into(), Vec::new()),
    };
    Port { name: outlet.name().into(), element, shape }
}

fn element_name(ty: TensorElementType) -> String {
    match ty {
        TensorElementType::Float32 => "float32".into(),
        TensorElementType::Float16 => "float16".into(),
        TensorElementType::Bfloat16 => "bfloat16".into(),
        TensorElementType::Int8 => "int8".into(),
        TensorElementType::Int32 => "int32".into(),
        TensorElementType::Int64 => "int64".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(nodes: &[(&str, &str, usize)]) -> Placement {
        let mut placement = Placement::new();
        for (provider, operator, count) in nodes {
            placement.entry((*provider).into()).or_default().insert((*operator).into(), *count);
        }
        placement
    }

    #[test]
    fn a_graph_that_only_the_gpu_runs_is_accepted_and_other_placements_are_named() {
        let whole = [(CUDA_PROVIDER, "MatMulNBits", 97), (CUDA_PROVIDER, "GroupQueryAttention", 24)];
        assert_eq!(misplaced(&placement(&whole)), None);
        let copies = [(CUDA_PROVIDER, "MatMul", 1), (CUDA_PROVIDER, "MemcpyToHost", 2)];
        assert_eq!(misplaced(&placement(&copies)), Some("2 MemcpyToHost (CUDAExecutionProvider)".into()));
        let shapes = [("CPUExecutionProvider", "Shape", 3), (CUDA_PROVIDER, "MatMul", 1)];
        assert_eq!(misplaced(&placement(&shapes)), Some("3 Shape (CPUExecutionProvider)".into()));
    }
}
