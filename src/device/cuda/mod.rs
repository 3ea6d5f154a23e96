//! Whether there is a GPU that can be used, asked of the driver alone; and why not.
//!
//! The driver's library is opened, and looked through for every function that eka calls, before any of them is called:
//! `cudarc` panics without the library and on the first function that is missing. Nothing here creates a context, so
//! asking costs no device memory. Seen with the driver 580 of an H100; in tests a stand-in for the driver answers.

mod libraries;

use std::{fmt, path::PathBuf};

use cudarc::driver::{result, sys};
use libloading::Library;
pub(super) use libraries::{PROVIDER, preload};

use super::Attempt;

/// The oldest CUDA whose driver runs the libraries that `scripts/onnxruntime --gpu` installs.
pub const OLDEST: CudaVersion = CudaVersion { major: 13, minor: 0 };

/// The first driver for [`OLDEST`], as NVIDIA numbers them.
const OLDEST_DRIVER: u32 = 580;

/// Names of the driver's library, the usual one first.
#[cfg(not(windows))]
const DRIVER: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
#[cfg(windows)]
const DRIVER: [&str; 2] = ["nvcuda.dll", "cuda.dll"];

/// What is called to find out what there is: older than any driver in use.
const FIRST: [&str; 7] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// The driver's functions that are called to compute.
pub const FUNCTIONS: [&str; 31] = [
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamIsCapturing",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventDestroy_v2",
    "cuMemPoolCreate",
    "cuMemPoolDestroy",
    "cuMemPoolSetAttribute",
    "cuMemPoolGetAttribute",
    "cuMemPoolTrimTo",
    "cuMemAllocFromPoolAsync",
    "cuMemFreeAsync",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpy2DAsync_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuThreadExchangeStreamCaptureMode",
];

/// A version of CUDA, as its driver says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl CudaVersion {
    /// 12040 is 12.4.
    fn of_driver(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why no GPU can be used. Each says what is there, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCuda {
    /// No driver.
    #[error("this machine has no NVIDIA driver ({} is nowhere to be found)", DRIVER[0])]
    NoDriver,
    /// A driver that does not answer.
    #[error(
        "the NVIDIA driver cannot be used: {reason}; install it again, or restart the machine after an update"
    )]
    BrokenDriver {
        /// What it, or the system, said.
        reason: String,
    },
    /// A driver that is older than the libraries.
    #[error(
        "the NVIDIA driver is for CUDA {found} and the libraries are for CUDA {OLDEST}: update it to {OLDEST_DRIVER} or \
         newer"
    )]
    OldDriver {
        /// What it is for.
        found: CudaVersion,
    },
    /// A driver, and nothing for it to drive.
    #[error("the NVIDIA driver finds no GPU; is one there, and does CUDA_VISIBLE_DEVICES hide it?")]
    NoDevice,
    /// Not as many GPUs.
    #[error("there is no GPU {ordinal}: this machine has {count}, counted from 0")]
    NoSuchDevice {
        /// The one asked for.
        ordinal: u16,
        /// How many there are.
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
        /// What the system said.
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
        /// What the driver or ONNX Runtime said.
        reason: String,
    },
}

/// What the driver says about the GPUs of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpus {
    /// The newest CUDA that the driver is for.
    pub driver: CudaVersion,
    /// The GPUs by name, in the driver's order; at least one.
    pub names: Vec<String>,
}

impl Gpus {
    /// The name of one of them.
    ///
    /// # Errors
    /// [`NoCuda::NoSuchDevice`] when there are not as many.
    pub fn name(&self, ordinal: u16) -> Result<&str, NoCuda> {
        let count = self.names.len();
        self.names
            .get(usize::from(ordinal))
            .map(String::as_str)
            .ok_or(NoCuda::NoSuchDevice { ordinal, count })
    }
}

/// Asks the driver for its GPUs.
///
/// # Errors
/// [`NoCuda`] when there is no driver, or none that can be used, or no GPU.
pub fn probe() -> Result<Gpus, NoCuda> {
    let driver = open_driver()?;
    has_all(driver, &FIRST)?;
    // Older drivers cannot but lack functions; that they are old says more.
    let version = driver_version().map_err(broken)?;
    if version < OLDEST {
        return Err(NoCuda::OldDriver { found: version });
    }
    has_all(driver, &FUNCTIONS)?;
    match names() {
        Ok(names) if !names.is_empty() => Ok(Gpus { driver: version, names }),
        Ok(_) | Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(NoCuda::NoDevice),
        Err(e) => Err(broken(e)),
    }
}

fn broken(e: result::DriverError) -> NoCuda {
    NoCuda::BrokenDriver { reason: e.to_string() }
}

/// The driver's library, which stays loaded.
fn open_driver() -> Result<&'static Library, NoCuda> {
    let mut found = None;
    for name in DRIVER {
        // SAFETY: the driver's initializers are those that any program runs which uses it; what only bears its name is
        // whatever the administrator of this machine put there.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            // The loader says this of a name that it finds nowhere, and of nothing else that is asked for by name.
            Err(e) if is_absent(name, &libraries::reason(&e)) => {}
            Err(e) => found = found.or(Some(libraries::reason(&e))),
        }
    }
    Err(found.map_or(NoCuda::NoDriver, |reason| NoCuda::BrokenDriver { reason }))
}

fn is_absent(name: &str, reason: &str) -> bool {
    cfg!(not(target_os = "linux"))
        || reason.starts_with(&format!("{name}: cannot open shared object file: No such file"))
}

fn has_all(driver: &Library, functions: &[&str]) -> Result<(), NoCuda> {
    let lacks = |name: &&&str| {
        // SAFETY: the address is looked for, and neither called nor read.
        unsafe { driver.get::<*const ()>(name.as_bytes()) }.is_err()
    };
    functions.iter().find(lacks).map_or(Ok(()), |name| {
        Err(NoCuda::BrokenDriver { reason: format!("its library has no function {name}") })
    })
}

fn driver_version() -> Result<CudaVersion, result::DriverError> {
    let mut version = 0;
    // SAFETY: the function was looked for above; the out-parameter is valid for the call.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(CudaVersion::of_driver(version))
}

/// Whether a GPU computes in bfloat16: from compute capability 8.0 on. `false` when the driver does not say. Only after
/// [`probe`] has found it.
pub(super) fn has_bfloat16(ordinal: u16) -> bool {
    const MAJOR: sys::CUdevice_attribute =
        sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    let Ok(device) = result::device::get(ordinal.into()) else { return false };
    // SAFETY: the driver has given this device, and is initialized.
    unsafe { result::device::get_attribute(device, MAJOR) }.is_ok_and(|major| major >= 8)
}

fn names() -> Result<Vec<String>, result::DriverError> {
    result::init()?;
    (0..result::device::get_count()?)
        .map(|ordinal| result::device::get_name(result::device::get(ordinal)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_never_panics_with_or_without_a_driver() {
        let answer = probe();
        assert_eq!(answer, probe(), "and it says the same twice");
    }

    #[test]
    fn the_drivers_number_is_a_version() {
        assert_eq!(CudaVersion::of_driver(12_040).to_string(), "12.4");
        assert_eq!(CudaVersion::of_driver(13_000), OLDEST);
        assert!(CudaVersion::of_driver(12_090) < OLDEST && OLDEST < CudaVersion::of_driver(13_010));
        assert!(CudaVersion::of_driver(-1) < OLDEST);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_the_number_of_those_that_are() {
        let gpus = Gpus { driver: OLDEST, names: vec!["NVIDIA T4".into()] };
        assert_eq!(gpus.name(0), Ok("NVIDIA T4"));
        let refused = gpus.name(1).unwrap_err().to_string();
        assert_eq!(refused, "there is no GPU 1: this machine has 1, counted from 0");
    }
}
