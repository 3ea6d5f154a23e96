//! Probes the driver for a usable GPU.
//!
//! The driver's library is opened and searched for every function that eka calls before any is called, because `cudarc` panics
//! without the library and on the first missing function. Nothing here creates a context, so a probe takes no device memory.
//! Tested with driver 580 on an H100; the tests use a fake driver.

mod driver;
mod libraries;
mod no_cuda;

pub(super) use self::{
    driver::has_bfloat16,
    libraries::{PROVIDER, preload},
};
pub use self::{
    driver::{FUNCTIONS, Gpus, probe},
    no_cuda::{CudaVersion, NoCuda, OLDEST},
};
