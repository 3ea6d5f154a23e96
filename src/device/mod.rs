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
mod error_kind;
pub mod host;
mod host_buffer;
mod host_copy;
mod io_binding;
pub mod operators;
pub mod pool;
mod runtime;
mod select;
mod session;
mod strided_copy;
mod threads;

pub use error_kind::DeviceErrorKind;
pub use host_buffer::{DeviceTensor, Element};
pub use host_copy::HostCopy;
pub use io_binding::{Binding, Slot};
pub use pool::Pool;
pub use runtime::{Attempt, LIBRARY_MINOR, Runtime, RuntimeError, candidates, refuse_telemetry};
pub use select::{CUDA_PROVIDER, Device, Gpu, OpenError, OpenOptions};
pub use session::{Graph, Placement, Port, Session, SessionOptions};
pub use threads::Threads;

/// What the device could not do.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// ONNX Runtime refused or failed.
    #[error("{what}: {message}")]
    Runtime {
        /// What was attempted.
        what: &'static str,
        /// ONNX Runtime's own words.
        message: String,
    },
    /// The host has no memory left to map.
    #[error("cannot map {bytes} of memory: {source}")]
    Memory {
        /// How much was asked for.
        bytes: crate::units::Bytes,
        /// What the system said.
        source: std::io::Error,
    },
    /// The pool has no room, or had none while a graph ran.
    #[error("{what}: {source}")]
    NoRoom {
        /// What was attempted.
        what: &'static str,
        /// How much was asked for, and what there is.
        source: pool::NoRoom,
    },
    /// A session for a GPU would compute elsewhere as well, or copy to and fro.
    #[error(
        "{found} would not run on the GPU; export the model with `eka export --dtype float16`, or use --device cpu"
    )]
    Placement {
        /// How many nodes of which operators.
        found: String,
    },
    /// A shape that does not fit the memory it is laid over.
    #[error("a tensor of shape {shape:?} needs {needed} elements, its memory holds {room}")]
    Shape {
        /// The shape asked for.
        shape: Vec<usize>,
        /// Its elements; `usize::MAX` when they cannot be counted.
        needed: usize,
        /// What is there.
        room: usize,
    },
}

impl DeviceError {
    fn runtime<R>(what: &'static str) -> impl Fn(ort::Error<R>) -> Self {
        move |e| Self::Runtime { what, message: e.to_string() }
    }

    /// Whether a GPU was asked to run a whole graph and cannot: ONNX Runtime says so of a session that may not fall back to the
    /// CPU, or the placement of its nodes does.
    #[must_use]
    pub fn is_placement(&self) -> bool {
        match self {
            Self::Placement { .. } => true,
            Self::Runtime { message, .. } => {
                message.contains("assigned to the default CPU EP") || is_missing_kernel(message)
            }
            Self::Memory { .. } | Self::NoRoom { .. } | Self::Shape { .. } => false,
        }
    }

    /// What it means for the device.
    #[must_use]
    pub fn kind(&self) -> DeviceErrorKind {
        match self {
            Self::Runtime { message, .. } => DeviceErrorKind::of(message),
            Self::Memory { .. } | Self::NoRoom { .. } => DeviceErrorKind::OutOfMemory,
            Self::Shape { .. } | Self::Placement { .. } => DeviceErrorKind::Other,
        }
    }
}

/// ONNX Runtime has no kernel for a node, of the provider that was asked for or any other.
fn is_missing_kernel(message: &str) -> bool {
    message.contains("NOT_IMPLEMENTED") || message.contains("Could not find an implementation for")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str) -> DeviceError {
        DeviceError::Runtime { what: "the graph cannot be loaded", message: message.into() }
    }

    #[test]
    fn a_graph_that_does_not_fit_the_gpu_is_told_from_one_that_is_broken() {
        for message in [
            "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been \
             explicitly disabled by the user.",
            "Could not find an implementation for GroupQueryAttention(1) node with name '/model/layers.0/attn'",
        ] {
            assert!(said(message).is_placement(), "{message}");
        }
        assert!(DeviceError::Placement { found: "3 Shape (CPUExecutionProvider)".into() }.is_placement());
        for message in [
            "Protobuf parsing failed.",
            "CUDA failure 2: out of memory ; GPU=0",
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        ] {
            assert!(!said(message).is_placement(), "{message}");
        }
    }
}
