//! A pool of device memory that eka owns and ONNX Runtime allocates from.
//!
//! ```text
//! session ──Alloc, Free, Reserve──► ort_allocator ──► allocator ──► backend: host, CUDA
//!                                       (C)           free list,    source of memory
//!                                                     limit, stats
//! ```
//!
//! ONNX Runtime's own arenas keep their memory and do not report their size. A pool registered in their place counts
//! every byte, has a limit, and gives memory back when asked: [`Pool::trim`] between two requests, all of it when the
//! sessions are gone.
//!
//! # Lifetimes
//! ONNX Runtime calls the pool for as long as a session or a registration lives. So each [`Session`](super::Session)
//! opened on a pool and each [`Binding`](super::Binding) of it owns a share of the registration, and the registration
//! owns the environment: whichever goes last, it is the registration that ends first, then the pool's memory.
//!
//! # Order
//! Blocks are ordered by one stream: a block that is freed while the device still works on it goes to work submitted
//! later on the same stream, without waiting. A block for use outside the stream is only handed out when the device is done with
//! it.

mod allocator;
mod backend;
mod cuda;
mod free_list;
mod host;
mod memory_pool;
mod no_room;
mod ort_allocator;
mod sizes;
mod stats;
#[cfg(test)]
mod tests;

pub(in crate::device) use self::{
    backend::ALIGNMENT,
    memory_pool::{Described, Pinned, Recording},
};
pub use self::{
    cuda::CudaOptions,
    memory_pool::{Buffer, GpuStream, Pool, PoolOptions},
    no_room::NoRoom,
    stats::PoolStats,
};
