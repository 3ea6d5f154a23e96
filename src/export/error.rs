//! Why an export failed.

use std::num::NonZeroUsize;

use super::{
    AdapterError, BudgetError, CheckpointError, GgufError, JsonConfigError, NoSuchModule, SourceError,
    StagingError, TokenizerFilesError, TooLarge, UnmergedError, WeightsError, WriteWeightsError,
};
use crate::text::TextError;

/// Why an export failed. Nothing was written then.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The progress asked to stop.
    #[error("the export was cancelled; what it had written is removed")]
    Cancelled,
    /// The configuration cannot be used.
    #[error(transparent)]
    JsonConfig(#[from] JsonConfigError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The GGUF file cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// More positions are asked for than there are.
    #[error("the context length {asked} is above the model's {max}; use {max} or less")]
    Context {
        /// The requested context length.
        asked: NonZeroUsize,
        /// The model's context length.
        max: usize,
    },
    /// Tokenizer, template or generation settings cannot be used.
    #[error(transparent)]
    TokenizerFiles(#[from] TokenizerFilesError),
    /// A server could not use the tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    /// A format is asked for modules that are not there.
    #[error(transparent)]
    NoSuchModule(#[from] NoSuchModule),
    /// A budget in bits per weight cannot be met.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// A source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model is larger than a file can be.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The weights cannot be had.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights cannot be written.
    #[error(transparent)]
    WriteWeights(WriteWeightsError),
    /// The adapter cannot be exported beside its base.
    #[error(transparent)]
    Unmerged(#[from] UnmergedError),
    /// The output cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

impl From<WriteWeightsError> for ExportError {
    fn from(error: WriteWeightsError) -> Self {
        match error {
            WriteWeightsError::Cancelled => Self::Cancelled,
            other => Self::WriteWeights(other),
        }
    }
}
