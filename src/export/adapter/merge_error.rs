//! Why weights cannot be merged.

use ndarray::ShapeError;

use super::AdapterError;
use crate::export::tensors_error::TensorsError;

/// Why weights cannot be merged.
#[derive(Debug, thiserror::Error)]
pub(in crate::export) enum MergeError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl From<TensorsError> for MergeError {
    fn from(source: TensorsError) -> Self {
        Self::Adapter(source.into())
    }
}
