//! A weight matrix in the data file.

use crate::export::{
    data_layout::{DataRange, QuantizedAt},
    quantize::Quantizer,
};

/// A matrix in the data file, as linear layers read it.
#[derive(Clone, Copy)]
pub(super) enum Matrix {
    Floats(DataRange),
    Quantized(Quantizer, QuantizedAt),
}

impl Matrix {
    /// Whether rows of `cols` weights end where a block does, so that padded and packed rows are the same.
    pub(super) fn has_whole_blocks(self, cols: usize) -> bool {
        match self {
            Self::Floats(_) => true,
            Self::Quantized(quantizer, _) => cols.is_multiple_of(quantizer.block_size),
        }
    }
}
