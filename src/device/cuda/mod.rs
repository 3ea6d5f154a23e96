//! Whether there is a GPU that can be used, asked of the driver alone; and why not.
//!
//! The driver's library is opened, and looked through for every function that eka calls, before any of them is called:
//! `cudarc` panics without the library and on the first function that is missing. Nothing here creates a context, so
//! asking costs no device memory. Seen with the driver 580 of an H100; in tests a stand-in for the driver answers.

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
