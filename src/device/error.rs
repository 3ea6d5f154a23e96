//! Errors of the device.

use std::io;

use super::{DeviceErrorKind, pool::NoRoom};
use crate::units::Bytes;

/// Errors of the device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// ONNX Runtime rejected or failed.
    #[error("{what}: {message}")]
    Runtime {
        /// The operation.
        what: &'static str,
        /// ONNX Runtime's own words.
        message: String,
    },
    /// The host has no memory left to map.
    #[error("cannot map {bytes} of memory: {source}")]
    Memory {
        /// Requested size.
        bytes: Bytes,
        /// The system's error.
        source: io::Error,
    },
    /// The pool has no room, or had none while a graph ran.
    #[error("{what}: {source}")]
    NoRoom {
        /// The operation.
        what: &'static str,
        /// The requested size, and how much memory is in use.
        source: NoRoom,
    },
    /// A GPU session would run nodes on the CPU or copy between GPU and host.
    #[error(
        "{found} would not run on the GPU; export the model with `eka export --dtype float16`, or use --device cpu"
    )]
    Placement {
        /// The number of nodes by operator.
        found: String,
    },
    /// A shape needs more elements than the memory has.
    #[error("a tensor of shape {shape:?} needs {needed} elements, its memory holds {room}")]
    Shape {
        /// The requested shape.
        shape: Vec<usize>,
        /// Its elements; `usize::MAX` when they cannot be counted.
        needed: usize,
        /// Elements of the memory.
        room: usize,
    },
}

impl DeviceError {
    pub(super) fn runtime<R>(what: &'static str) -> impl Fn(ort::Error<R>) -> Self {
        move |e| Self::Runtime { what, message: e.to_string() }
    }

    /// Whether a GPU cannot run a whole graph: ONNX Runtime reports it for a session without fallback to the CPU, or the
    /// placement of its nodes shows it.
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

    /// The consequence for the device.
    #[must_use]
    pub fn kind(&self) -> DeviceErrorKind {
        match self {
            Self::Runtime { message, .. } => DeviceErrorKind::of(message),
            Self::Memory { .. } | Self::NoRoom { .. } => DeviceErrorKind::OutOfMemory,
            Self::Shape { .. } | Self::Placement { .. } => DeviceErrorKind::Other,
        }
    }
}

/// Whether ONNX Runtime has no kernel for a node, of the requested provider or any other.
fn is_missing_kernel(message: &str) -> bool {
    message.contains("NOT_IMPLEMENTED") || message.contains("Could not find an implementation for")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime_error(message: &str) -> DeviceError {
        DeviceError::Runtime { what: "the graph cannot be loaded", message: message.into() }
    }

    #[test]
    fn an_unsupported_graph_is_distinguished_from_a_broken_one() {
        for message in [
            "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been \
             explicitly disabled by the user.",
            "Could not find an implementation for GroupQueryAttention(1) node with name '/model/layers.0/attn'",
        ] {
            assert!(runtime_error(message).is_placement(), "{message}");
        }
        assert!(DeviceError::Placement { found: "3 Shape (CPUExecutionProvider)".into() }.is_placement());
        for message in [
            "Protobuf parsing failed.",
            "CUDA failure 2: out of memory ; GPU=0",
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        ] {
            assert!(!runtime_error(message).is_placement(), "{message}");
        }
    }
}
