//! The place of every weight in the data file, decided before any is read.
//!
//! All sizes follow from the blueprint. With every place known, weights can be read, merged, quantized and written in
//! any order and by several threads, one small piece at a time, and the same export gives the same bytes.

use crate::manifest::Dtype;

use super::{
    param::{Param, Shape},
    quantize::Quantizer,
    rope::Table,
};

/// The weights' file name in a model directory.
pub(super) const DATA_FILE: &str = "model.onnx.data";

/// Tensors start at multiples of a page, so that they can be mapped into memory as they are.
const ALIGNMENT: u64 = 4096;

/// The data file is larger than a file can be.
#[derive(Debug, thiserror::Error)]
#[error("the weights need more than 2^63 bytes; are the sizes in config.json right?")]
pub struct TooLarge;

/// Bytes of the data file that hold one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataRange {
    pub offset: u64,
    pub bytes: u64,
}

/// Parameters stacked by their rows into one matrix, of as many columns as each; vectors are put end to end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stack(pub Vec<Param>);

impl Stack {
    pub(super) fn rows(&self) -> usize {
        self.0.iter().map(|param| param.shape.rows()).sum()
    }

    pub(super) fn cols(&self) -> usize {
        self.0.first().map_or(0, |param| param.shape.cols())
    }

    /// Its shape as a tensor.
    pub(super) fn dims(&self) -> Vec<usize> {
        match self.0.first().map(|param| param.shape) {
            Some(Shape::Matrix { cols, .. }) => vec![self.rows(), cols],
            _ => vec![self.0.iter().map(|param| param.shape.cols()).sum()],
        }
    }
}

/// The task of writing one tensor.
#[derive(Clone, Debug)]
pub(super) enum TensorJob {
    /// Weights as they are.
    Floats { stack: Stack, dtype: Dtype, at: DataRange },
    /// Weights as codes, `row_bytes` a row, scales, perhaps zero points, and perhaps offsets of `dtype`.
    Quantized { stack: Stack, quantizer: Quantizer, row_bytes: usize, dtype: Dtype, at: QuantizedAt },
    /// A table of the rotary positions number `rotary`.
    Rotary { rotary: usize, table: Table, positions: usize, pairs: usize, dtype: Dtype, at: DataRange },
}

/// The place of a quantized matrix in the data file.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuantizedAt {
    pub codes: DataRange,
    pub scales: DataRange,
    /// Empty when all are in the middle.
    pub zero_points: DataRange,
    /// Empty when there are none.
    pub offsets: DataRange,
}

/// The data file.
#[derive(Debug, Default)]
pub(super) struct DataLayout {
    pub fills: Vec<TensorJob>,
    end: u64,
}

impl DataLayout {
    /// Its length in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    pub(super) fn floats(&mut self, stack: Stack, dtype: Dtype) -> Result<DataRange, TooLarge> {
        let elements = stack.0.iter().map(|param| param.shape.elements()).sum();
        let at = self.reserve(elements, dtype.bytes())?;
        self.fills.push(TensorJob::Floats { stack, dtype, at });
        Ok(at)
    }

    /// `row_bytes` decides whether rows are padded to whole blocks.
    pub(super) fn quantized(
        &mut self,
        stack: Stack,
        quantizer: Quantizer,
        row_bytes: usize,
        dtype: Dtype,
    ) -> Result<QuantizedAt, TooLarge> {
        let rows = stack.rows() as u64;
        let codes = self.reserve(rows, row_bytes as u64)?;
        let scale_bytes = quantizer.scale_type.stored().bytes();
        let scales = self.reserve(rows, quantizer.blocks(stack.cols()) as u64 * scale_bytes)?;
        let zero_points = self.reserve(rows, quantizer.zero_point_row_bytes(stack.cols()) as u64)?;
        let offset_row_bytes =
            if quantizer.has_offsets { quantizer.blocks(stack.cols()) as u64 * dtype.bytes() } else { 0 };
        let offsets = self.reserve(rows, offset_row_bytes)?;
        let at = QuantizedAt { codes, scales, zero_points, offsets };
        self.fills.push(TensorJob::Quantized { stack, quantizer, row_bytes, dtype, at });
        Ok(at)
    }

    pub(super) fn rotary(
        &mut self,
        rotary: usize,
        table: Table,
        [positions, pairs]: [usize; 2],
        dtype: Dtype,
    ) -> Result<DataRange, TooLarge> {
        let at = self.reserve(positions as u64, pairs as u64 * dtype.bytes())?;
        self.fills.push(TensorJob::Rotary { rotary, table, positions, pairs, dtype, at });
        Ok(at)
    }

    fn reserve(&mut self, rows: u64, row_bytes: u64) -> Result<DataRange, TooLarge> {
        if row_bytes == 0 {
            return Ok(DataRange { offset: self.end, bytes: 0 });
        }
        let offset = self.end.checked_next_multiple_of(ALIGNMENT).ok_or(TooLarge)?;
        let bytes = rows.checked_mul(row_bytes).ok_or(TooLarge)?;
        let end = offset.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
        self.end = end.ok_or(TooLarge)?;
        Ok(DataRange { offset, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_start_on_pages_and_do_not_overlap() {
        let mut layout = DataLayout::default();
        let stack = |rows| Stack(vec![Param::matrix("a.weight", rows, 3)]);
        let first = layout.floats(stack(5), Dtype::Float32).unwrap();
        let second = layout.floats(stack(1), Dtype::Float32).unwrap();
        assert_eq!(first, DataRange { offset: 0, bytes: 60 });
        assert_eq!(second, DataRange { offset: 4096, bytes: 12 });
        assert_eq!(layout.bytes(), 4108);
    }

    #[test]
    fn sizes_that_no_file_has_are_an_error() {
        let mut layout = DataLayout::default();
        let huge = || Stack(vec![Param::matrix("a.weight", 1 << 24, 1 << 24)]);
        let result = (0..10_000).try_for_each(|_| layout.floats(huge(), Dtype::Float32).map(drop));
        assert!(result.is_err());
    }
}
