//! Asks the driver for the GPUs of this machine.

use cudarc::driver::{result, sys};
use libloading::Library;

use super::{
    NoCuda,
    libraries::reason,
    no_cuda::{CudaVersion, DRIVER, OLDEST},
};

/// Functions that the probe calls; every driver in use has them.
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

/// The GPUs of this machine, as the driver reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpus {
    /// The newest CUDA that the driver is for.
    pub driver: CudaVersion,
    /// The GPUs by name, in the driver's order; at least one.
    pub names: Vec<String>,
}

impl Gpus {
    /// The name of the GPU with this number.
    ///
    /// # Errors
    /// [`NoCuda::NoSuchDevice`] when this GPU does not exist.
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
/// [`NoCuda`] if the driver or the GPU is missing or unusable.
pub fn probe() -> Result<Gpus, NoCuda> {
    let driver = open_driver()?;
    has_all(driver, &FIRST)?;
    // The version first: an old driver lacks functions, and its version is the better error.
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
        // SAFETY: every program that uses the driver runs its initializers; a different library with the driver's name was put
        // there by the machine's administrator.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            // The loader gives this error only for a library that it cannot find.
            Err(e) if is_absent(name, &reason(&e)) => {}
            Err(e) => found = found.or(Some(reason(&e))),
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

/// Whether a GPU computes in bfloat16: from compute capability 8.0 on. `false` if the driver does not report it. Only after
/// [`probe`] has found it.
pub(in crate::device) fn has_bfloat16(ordinal: u16) -> bool {
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
        assert_eq!(refused, "GPU 1 does not exist: this machine has 1, counted from 0");
    }
}
