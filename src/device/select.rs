//! Opens the requested device: its library, and its memory.
//!
//! ```text
//! choice ──cuda──► driver? ──► libraries? ──► provider built in? ──► pool on the GPU ──► a device
//!    │                └─no──────────┴─no───────────┴─no────────────────┴─no──► auto: the CPU, and why
//!    └──cpu───────────────────────────────────────────────────────────────►   cuda: an error, and why
//! ```
//!
//! The choice is made once, before ONNX Runtime is loaded, as a process has one library and one environment.

use std::{fmt, path::Path};

use super::{
    CUDA_PROVIDER, DeviceError, Graph, Pool, Runtime, RuntimeError, Session, SessionOptions,
    cuda::{self, NoCuda},
    pool::{CudaOptions, PoolOptions},
};
use crate::{device_spec::DeviceChoice, units::Bytes};

/// Options for opening a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions<'a> {
    /// Which device.
    pub choice: DeviceChoice,
    /// The only directory that is searched for libraries; `None` for the default ones.
    pub libraries: Option<&'a Path>,
    /// Maximum GPU memory to use.
    pub memory_limit: Option<Bytes>,
    /// Also allocate CPU memory from a pool, with the same limit.
    pub host_pool: bool,
}

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The requested GPU cannot be used.
    #[error("{choice} cannot be used: {why} (with auto, the CPU would compute instead)")]
    NoCuda {
        /// The requested device.
        choice: DeviceChoice,
        /// Why it cannot be used.
        why: NoCuda,
    },
    /// ONNX Runtime cannot be loaded.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// ONNX Runtime was loaded but does not work.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as the driver counts them.
    pub ordinal: u16,
    /// Its name.
    pub name: String,
    /// Whether it supports bfloat16 as well as float16.
    pub has_bfloat16: bool,
}

/// An opened device: a GPU or the CPU.
#[derive(Debug)]
pub struct Device {
    // Declared before the runtime that it is registered with: fields are dropped in order.
    pool: Option<Pool>,
    runtime: Runtime,
    gpu: Option<Gpu>,
    choice: DeviceChoice,
    fell_back: Option<NoCuda>,
}

/// `the CPU`, or which GPU.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.gpu {
            None => f.write_str("the CPU"),
            Some(Gpu { ordinal, name, .. }) => write!(f, "cuda:{ordinal} ({name})"),
        }
    }
}

impl Device {
    /// Opens the requested device; with `auto`, the CPU if there is no usable GPU.
    ///
    /// # Errors
    /// [`OpenError`] with the reason and the way out.
    pub fn open(options: OpenOptions<'_>) -> Result<Self, OpenError> {
        let ordinal = match options.choice {
            DeviceChoice::Cpu => return Self::on_cpu(options, None, None),
            DeviceChoice::Auto => 0,
            DeviceChoice::Cuda(ordinal) => ordinal,
        };
        let (why, loaded) = match Self::on_cuda(options, ordinal)? {
            Ok(device) => return Ok(device),
            Err(refused) => refused,
        };
        match options.choice {
            DeviceChoice::Auto => Self::on_cpu(options, loaded, Some(why)),
            choice => Err(OpenError::NoCuda { choice, why }),
        }
    }

    /// A GPU, or why it cannot be used, together with the library if it was loaded.
    fn on_cuda(
        options: OpenOptions<'_>,
        ordinal: u16,
    ) -> Result<Result<Self, (NoCuda, Option<Runtime>)>, OpenError> {
        let name = match cuda::probe().and_then(|gpus| gpus.name(ordinal).map(str::to_owned)) {
            Ok(name) => name,
            Err(why) => return Ok(Err((why, None))),
        };
        let runtime = match Runtime::load_cuda(options.libraries)? {
            Ok(runtime) => runtime,
            Err(why) => return Ok(Err((why, None))),
        };
        if !runtime.providers()?.iter().any(|provider| provider == CUDA_PROVIDER) {
            let path = runtime.path().to_path_buf();
            return Ok(Err((NoCuda::NotBuiltIn { path }, Some(runtime))));
        }
        // Sessions on the pool require one stream for the whole provider.
        let gpu = CudaOptions { ordinal, is_sole_stream: true };
        match Pool::on_cuda(&runtime, gpu, Self::pool_options(options)) {
            Ok(pool) => Ok(Ok(Self {
                pool: Some(pool),
                runtime,
                gpu: Some(Gpu { ordinal, name, has_bfloat16: cuda::has_bfloat16(ordinal) }),
                choice: options.choice,
                fell_back: None,
            })),
            Err(e) => Ok(Err((NoCuda::NotOpened { ordinal, reason: e.to_string() }, Some(runtime)))),
        }
    }

    fn on_cpu(
        options: OpenOptions<'_>,
        loaded: Option<Runtime>,
        fell_back: Option<NoCuda>,
    ) -> Result<Self, OpenError> {
        let runtime = match loaded {
            Some(runtime) => runtime,
            None => Runtime::load(options.libraries)?,
        };
        let pool = options.host_pool.then(|| Pool::on_host(&runtime, Self::pool_options(options)));
        Ok(Self { pool: pool.transpose()?, runtime, gpu: None, choice: options.choice, fell_back })
    }

    fn pool_options(options: OpenOptions<'_>) -> PoolOptions {
        PoolOptions { limit: options.memory_limit, ..PoolOptions::default() }
    }

    /// ONNX Runtime.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The pool of its memory; `None` if ONNX Runtime manages host memory.
    #[must_use]
    pub fn pool(&self) -> Option<&Pool> {
        self.pool.as_ref()
    }

    /// The GPU; `None` for the CPU.
    #[must_use]
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }

    /// Whether the CPU may be used instead if this device cannot run a model.
    #[must_use]
    pub fn may_leave_to_cpu(&self) -> bool {
        self.choice == DeviceChoice::Auto
    }

    /// Why the CPU is used although a GPU was preferred.
    #[must_use]
    pub fn fell_back(&self) -> Option<&NoCuda> {
        self.fell_back.as_ref()
    }

    /// Loads `graph` on this device.
    ///
    /// # Errors
    /// As [`Session::open_in`] and [`Session::open`].
    pub fn session(&self, graph: &Graph, options: SessionOptions) -> Result<Session, DeviceError> {
        match &self.pool {
            Some(pool) => Session::open_in(pool, graph, options),
            None => Session::open(&self.runtime, graph, options),
        }
    }
}
