//! The device: the only folder with `unsafe`.
//!
//! It wraps what the safe API of `ort` leaves out, in types that cannot be misused from the outside:
//!
//! - [`Device`]: the one that was asked for, or why not: the CPU, or a GPU with its libraries and its memory.
//! - [`Runtime`]: ONNX Runtime's library, found, checked and loaded once for the process.
//! - [`Session`]: a graph, loaded, with the placement of its nodes.
//! - [`Binding`]: a graph's inputs and outputs over memory that stays where it is, run without allocating or rebinding.
//! - [`DeviceTensor`]: memory that only the device reads and writes, such as a key-value cache.
//! - [`HostCopy`]: rows of such memory in the host's, to be written to a file or read from one.
//! - [`host`]: what this process holds of the host's memory, and giving it back.
//! - [`Pool`]: memory that ONNX Runtime allocates from, counted, limited, and given back when asked.
//! - [`operators`]: operators of our own, that sessions on the CPU may have.
//! - [`DeviceErrorKind`]: what an error means for the device: try again with less, or never again.
//! - [`cuda`]: whether there is a GPU, asked without loading ONNX Runtime.

pub mod cores;
pub mod cuda;
mod cuda_graph;
mod error;
mod error_kind;
pub mod host;
mod host_buffer;
mod host_copy;
mod io_binding;
mod library_search;
pub mod operators;
pub mod pool;
mod runtime;
mod select;
mod session;
mod strided_copy;
mod threads;

pub use error::DeviceError;
pub use error_kind::DeviceErrorKind;
pub use host_buffer::{DeviceTensor, Element};
pub use host_copy::HostCopy;
pub use io_binding::{Binding, Slot};
pub use library_search::Attempt;
pub use pool::Pool;
pub use runtime::{LIBRARY_MINOR, Runtime, RuntimeError, candidates, refuse_telemetry};
pub use select::{Device, Gpu, OpenError, OpenOptions};
pub use session::{CUDA_PROVIDER, Graph, Placement, Port, Session, SessionOptions};
pub use threads::Threads;
