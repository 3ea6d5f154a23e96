//! Why no GPU can be used.

use std::{fmt, path::PathBuf};

use crate::device::library_search::Attempt;

/// The oldest CUDA whose driver runs the libraries that `scripts/onnxruntime --gpu` installs.
pub const OLDEST: CudaVersion = CudaVersion { major: 13, minor: 0 };

/// The first driver for [`OLDEST`], as NVIDIA numbers them.
const OLDEST_DRIVER: u32 = 580;

/// Names of the driver's library, the usual one first.
#[cfg(not(windows))]
pub(super) const DRIVER: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
#[cfg(windows)]
pub(super) const DRIVER: [&str; 2] = ["nvcuda.dll", "cuda.dll"];

/// A version of CUDA, as its driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl CudaVersion {
    /// From the driver's number: 12040 is 12.4.
    pub(super) fn of_driver(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no GPU can be used, with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCuda {
    /// No driver.
    #[error("this machine has no NVIDIA driver ({} was not found)", DRIVER[0])]
    NoDriver,
    /// A driver that does not answer.
    #[error(
        "the NVIDIA driver cannot be used: {reason}; install it again, or restart the machine after an update"
    )]
    BrokenDriver {
        /// The error of the driver or the system.
        reason: String,
    },
    /// A driver that is older than the libraries.
    #[error(
        "the NVIDIA driver supports CUDA {found}, the libraries need CUDA {OLDEST}: update the driver to {OLDEST_DRIVER} or \
         newer"
    )]
    OldDriver {
        /// Its CUDA version.
        found: CudaVersion,
    },
    /// There is a driver but no GPU.
    #[error(
        "the NVIDIA driver finds no GPU; check that one is installed and that CUDA_VISIBLE_DEVICES does not hide it"
    )]
    NoDevice,
    /// There is no GPU with this number.
    #[error("GPU {ordinal} does not exist: this machine has {count}, counted from 0")]
    NoSuchDevice {
        /// The requested number.
        ordinal: u16,
        /// Number of GPUs.
        count: usize,
    },
    /// No ONNX Runtime for GPUs.
    #[error(
        "no ONNX Runtime with CUDA; run scripts/onnxruntime --gpu, or set onnxruntime.dir to the directory of the \
         libraries. Tried:{}", attempts.iter().map(|a| format!("\n  {a}")).collect::<String>()
    )]
    NoLibrary {
        /// Every place, in order.
        attempts: Vec<Attempt>,
    },
    /// What ONNX Runtime needs is not beside it.
    #[error("{name} is missing in {}; run scripts/onnxruntime --gpu", dir.display())]
    NoDependency {
        /// The library.
        name: String,
        /// Where it should be.
        dir: PathBuf,
    },
    /// What ONNX Runtime needs cannot be loaded.
    #[error("{} cannot be loaded: {reason}; remove its directory and run scripts/onnxruntime --gpu", path.display())]
    BadDependency {
        /// The library.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
    /// The library beside the provider was built without it.
    #[error(
        "{} was built without CUDA; remove its directory and run scripts/onnxruntime --gpu", path.display()
    )]
    NotBuiltIn {
        /// The core library.
        path: PathBuf,
    },
    /// The GPU cannot be opened.
    #[error("GPU {ordinal} cannot be opened: {reason}")]
    NotOpened {
        /// Which.
        ordinal: u16,
        /// The error of the driver or ONNX Runtime.
        reason: String,
    },
}
