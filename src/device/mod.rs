//! The device: the only folder with `unsafe`.
//!
//! It wraps what the safe API of `ort` leaves out, in types that cannot be misused from the outside:
//!
//! - [`Device`]: the CPU, or a GPU with its libraries and its memory.
//! - [`Runtime`]: ONNX Runtime's library, found, checked and loaded once for the process.
//! - [`Session`]: a graph, loaded, with the placement of its nodes.
//! - [`Binding`]: a graph's inputs and outputs over memory that stays where it is, run without allocating or rebinding.
//! - [`DeviceTensor`]: memory that only the device reads and writes, such as a key-value cache.
//! - [`HostCopy`]: rows of such memory in the host's, to be written to a file or read from one.
//! - [`process_memory`]: the memory of this process on the host, and returning it.
//! - [`affinity`], [`scheduling`]: physical cores, pinned threads and scheduling hints.
//! - [`Pool`]: memory that ONNX Runtime allocates from: counted, limited, and returned on request.
//! - [`operators`]: eka's operators for sessions on the CPU.
//! - [`DeviceErrorKind`]: the consequence of an error for the device: retry with less, or replace the process.
//! - [`cuda`]: probes for a GPU without loading ONNX Runtime.

pub mod affinity;
pub mod cuda;
mod cuda_graph;
mod device_tensor;
mod element;
mod error;
mod error_kind;
mod host_buffer;
mod host_copy;
mod io_binding;
mod library_search;
pub mod operators;
pub mod pool;
pub mod process_memory;
mod runtime;
pub mod scheduling;
mod select;
mod session;
mod strided_copy;
mod threads;

pub use device_tensor::DeviceTensor;
pub use element::Element;
pub use error::DeviceError;
pub use error_kind::DeviceErrorKind;
pub use host_copy::HostCopy;
pub use io_binding::{Binding, Slot};
pub use library_search::Attempt;
pub use pool::Pool;
pub use runtime::{LIBRARY_MINOR, Runtime, RuntimeError, candidates, refuse_telemetry};
pub use select::{Device, Gpu, OpenError, OpenOptions};
pub use session::{CUDA_PROVIDER, Graph, Placement, Port, Session, SessionOptions};
pub use threads::Threads;
