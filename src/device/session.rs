//! A graph, loaded into ONNX Runtime.

use std::{collections::BTreeMap, ffi::CStr, path::Path, ptr, slice};

use ort::{
    AsPointer,
    environment::Environment,
    session::builder::{GraphOptimizationLevel, SessionBuilder},
    value::{Outlet, TensorElementType, ValueType},
};

use super::{DeviceError, Pool, Runtime};

/// How a session computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads of one operator, the calling one included.
    pub threads: usize,
}

/// An input or output of the graph as the graph declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type in ONNX' words, for example `float32`; `not a tensor` for anything else.
    pub element: String,
    /// Dimensions; −1 where the graph leaves one open.
    pub shape: Vec<i64>,
}

/// A loaded graph.
///
/// Runs need `&mut`, so one at a time is not a convention but a type.
#[derive(Debug)]
pub struct Session {
    // Declared before the pool that it allocates from: fields are dropped in order.
    inner: ort::session::Session,
    threads: usize,
    pool: Option<Pool>,
}

impl Session {
    /// Loads the graph at `path`, with memory that ONNX Runtime manages. Weights beside the graph are mapped, not read.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] with ONNX Runtime's reason.
    pub fn open(runtime: &Runtime, path: &Path, options: SessionOptions) -> Result<Self, DeviceError> {
        let inner = Self::commit(Self::builder(runtime.environment(), options), path)?;
        Ok(Self { inner, threads: options.threads, pool: None })
    }

    /// Loads the graph at `path`, with memory from `pool`.
    ///
    /// # Errors
    /// [`DeviceError::NoRoom`] when the pool has no room for it, [`DeviceError::Runtime`] with ONNX Runtime's reason.
    pub fn open_in(pool: &Pool, path: &Path, options: SessionOptions) -> Result<Self, DeviceError> {
        let inner = pool.loading(|| {
            let builder = Self::builder(pool.environment(), options)
                .and_then(|builder| Ok(builder.with_env_allocators()?));
            Self::commit(builder, path)
        })?;
        Ok(Self { inner, threads: options.threads, pool: Some(pool.clone()) })
    }

    fn commit(
        builder: ort::Result<SessionBuilder>,
        path: &Path,
    ) -> Result<ort::session::Session, DeviceError> {
        let mut builder = builder.map_err(DeviceError::runtime("the session's options"))?;
        builder.commit_from_file(path).map_err(DeviceError::runtime("the graph cannot be loaded"))
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

    /// Threads of one operator.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
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

    /// Nodes of the optimized graph by execution provider, as the session placed them.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the session does not say.
    pub fn placement(&self) -> Result<BTreeMap<String, usize>, DeviceError> {
        let failed = DeviceError::runtime("the placement of nodes");
        let mut nodes = BTreeMap::new();
        for &subgraph in self.assigned_subgraphs().map_err(failed)? {
            let (provider, count) =
                describe_subgraph(subgraph).map_err(DeviceError::runtime("the placement of nodes"))?;
            *nodes.entry(provider).or_insert(0) += count;
        }
        Ok(nodes)
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

fn describe_subgraph(subgraph: *const ort::sys::OrtEpAssignedSubgraph) -> ort::Result<(String, usize)> {
    let mut name = ptr::null();
    // SAFETY: `subgraph` comes from the session, which outlives this call.
    let status = unsafe { (ort::api().EpAssignedSubgraph_GetEpName)(subgraph, &raw mut name) };
    // SAFETY: the status comes from the call above and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    // SAFETY: on success `name` is a C string owned by the session.
    let provider = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let (mut first, mut count) = (ptr::null(), 0);
    // SAFETY: as above; the nodes themselves are not looked at.
    let status =
        unsafe { (ort::api().EpAssignedSubgraph_GetNodes)(subgraph, &raw mut first, &raw mut count) };
    // SAFETY: the status comes from the call above and is used once.
    unsafe { ort::Error::result_from_status(status) }?;
    Ok((provider, count))
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
        TensorElementType::Int32 => "int32".into(),
        TensorElementType::Int64 => "int64".into(),
        other => other.to_string(),
    }
}
