//! Why a worker ended, or a model could not be loaded.

use crate::{
    device::{DeviceErrorKind, OpenError},
    engine::EngineError,
    model::ModelError,
    wire::WireError,
};

/// Why a worker ended early.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The first frame was not the worker's settings.
    #[error("expected a Start message first, got {0}")]
    NoStart(String),
    /// The device cannot be opened. The parent has received the error.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The device has failed for good. The parent has received the error.
    #[error("the device can no longer be used")]
    Poisoned,
    /// The pipe to the parent failed.
    #[error(transparent)]
    Pipe(#[from] WireError),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the model does not run: {0}")]
    Engine(#[from] EngineError),
    #[error(
        "the model returns the logits of the last token only, so it cannot verify the tokens of a draft model; export it again, \
         or remove the draft model"
    )]
    Unverifiable,
    #[error(transparent)]
    Pipe(#[from] WireError),
}

impl LoadError {
    /// Whether the device can still be used.
    pub(super) fn fault(&self) -> DeviceErrorKind {
        match self {
            Self::Model(ModelError::Load { source, .. }) => source.kind(),
            Self::Engine(e) => e.fault(),
            Self::Model(_) | Self::Unverifiable | Self::Pipe(_) => DeviceErrorKind::Other,
        }
    }
}
