//! A pool of device memory that eka owns and ONNX Runtime allocates from.
//!
//! ```text
//! session ──Alloc, Free, Reserve──► ort_allocator ──► allocator ──► backend: host, CUDA
//!                                       (C)           free list,    source of memory
//!                                                     limit, stats
//! ```
//!
//! ONNX Runtime's arenas keep their memory and do not report their size. A pool that replaces them counts every byte, has a limit,
//! and returns memory to the device: in [`Pool::trim`] between two requests, and completely when its sessions are dropped.
//!
//! # Lifetimes
//! ONNX Runtime calls the pool as long as a session or a registration lives. So each [`Session`](super::Session) on a pool and
//! each of its [`Binding`](super::Binding)s holds a reference to the registration, and the registration holds the environment.
//! The last reference to be dropped ends the registration first, and then frees the pool's memory.
//!
//! # Order
//! One stream orders the use of blocks: a block that is freed while the device still works on it can be allocated for work that is
//! submitted to the same stream later, without waiting. Before a block is allocated for use outside the stream, the pool waits
//! until the device has finished with it.

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
