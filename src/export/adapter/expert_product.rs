//! The product of an expert's part of the low-rank matrices of all experts.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, s};

use super::merge_error::MergeError;
use crate::export::{param::Param, tensors::TensorFile};

/// The product of an expert's part of two matrices.
#[derive(Clone, Debug)]
pub(in crate::export) struct ExpertProduct {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) expert: usize,
    pub(super) experts: usize,
    /// The first output of this matrix among those of the parameter, and the distance of neighbours.
    pub(super) first: usize,
    pub(super) step: usize,
    /// Outputs of the parameter.
    pub(super) outputs: usize,
    /// Whether A is as wide as the output.
    pub(super) is_reversed: bool,
}

impl ExpertProduct {
    /// Adds the product to `weights`, the given rows of `param`.
    pub(super) fn add(
        &self,
        file: &TensorFile,
        weights: &mut [f32],
        (param, rows): (&Param, Range<usize>),
    ) -> Result<(), MergeError> {
        let (rank, columns) = (self.rank, param.shape.cols());
        let all = rank * self.experts;
        let of_input = |tensor: &str| -> Result<Vec<f32>, MergeError> {
            let start = self.expert * rank * columns;
            Ok(file.read(tensor, start..start + rank * columns)?)
        };
        let mut sum = ArrayViewMut2::from_shape((rows.len(), columns), weights)?;
        if self.is_reversed {
            // A [experts · rank, outputs], B [in, rank · experts].
            let start = self.expert * rank * self.outputs;
            let a = file.read(&self.a, start..start + rank * self.outputs)?;
            let a = ArrayView2::from_shape((rank, self.outputs), &a)?;
            let b = file.read(&self.b, 0..columns * all)?;
            let b = ArrayView2::from_shape((columns, all), &b)?;
            let b = b.slice(s![.., self.expert..; self.experts]);
            for (at, row) in rows.enumerate() {
                let added = b.dot(&a.column(self.first + row * self.step));
                sum.row_mut(at).scaled_add(self.scale, &added);
            }
            return Ok(());
        }
        let a = of_input(&self.a)?;
        let a = ArrayView2::from_shape((rank, columns), &a)?;
        for (at, row) in rows.enumerate() {
            let start = (self.first + row * self.step) * all;
            let b = file.read(&self.b, start..start + all)?;
            let b = ArrayView2::from_shape((rank, self.experts), &b)?;
            let added = a.t().dot(&b.column(self.expert));
            sum.row_mut(at).scaled_add(self.scale, &added);
        }
        Ok(())
    }
}
