//! Why a generation failed.

use crate::{
    device::{DeviceError, DeviceErrorKind},
    job::Failure,
};

/// Why a generation failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The sequence exceeds the context length.
    #[error("context full: {used} of {capacity} positions used, {asked} more requested")]
    Context {
        /// Positions in use.
        used: usize,
        /// Further positions requested.
        asked: usize,
        /// All positions.
        capacity: usize,
    },
    /// The model cannot run this job.
    #[error(transparent)]
    Job(Failure),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl EngineError {
    /// Whether the device can still be used.
    #[must_use]
    pub fn fault(&self) -> DeviceErrorKind {
        match self {
            Self::Device(e) => e.kind(),
            _ => DeviceErrorKind::Other,
        }
    }

    /// Advice against a lack of memory, unless the error already contains it.
    fn memory_advice(&self) -> &'static str {
        match self {
            Self::Device(DeviceError::NoRoom { .. }) => "",
            _ => {
                "; use a shorter prompt or answer, lower engine.context_length, or raise device.memory_limit_bytes"
            }
        }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        match e {
            EngineError::Job(failure) => failure,
            other if other.fault() == DeviceErrorKind::OutOfMemory => {
                Self::OutOfMemory { message: format!("{other}{}", other.memory_advice()) }
            }
            other => Self::Device { message: other.to_string() },
        }
    }
}
