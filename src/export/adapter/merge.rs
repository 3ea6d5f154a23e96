//! The arithmetic of a merge, some rows of a weight at a time.
//!
//! All of it is in float32, whatever the types of the files: rounding a sum back to 16 bits, as a merge in place does,
//! would lose most of what a small adapter adds.

use std::{ops::Range, sync::Arc};

use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

use super::{expert_product::ExpertProduct, merge_error::MergeError};
use crate::export::{
    param::{Param, Run},
    tensors::TensorFile,
    tensors_error::TensorsError,
};

/// A change of an adapter to a tensor of the base.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    /// Which of the adapters.
    pub adapter: usize,
    pub file: Arc<TensorFile>,
    pub change: Change,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    /// `W + scale · B·A`.
    LowRank { product: LowRank, magnitude: Option<Magnitude> },
    /// The same of one expert's part of matrices for all experts of a layer.
    Expert(ExpertProduct),
    /// `bias + scale · b`.
    Bias { tensor: String, scale: f32 },
    /// Rows of an embedding, in place of the base's.
    Tokens { tensor: String, tokens: Vec<usize> },
}

/// Two matrices and the scale of their product.
#[derive(Clone, Debug)]
pub(super) struct LowRank {
    pub a: String,
    pub b: String,
    pub rank: usize,
    pub scale: f32,
    /// Embeddings have a column of A for each row of the weight, and a row of B for each column.
    pub is_embedding: bool,
}

/// DoRA: `m · V / |V|`, where `V` is the weight with the product added to it.
#[derive(Clone, Debug)]
pub(super) enum Magnitude {
    /// `|V|` of each row: the tensor of `m`.
    Rows(String),
    /// `|V|` of each column, over all rows: the tensor of `m`, and `m / |V|` once it is known.
    Columns { tensor: String, factors: Option<Vec<f32>> },
}

impl Delta {
    /// Whether it can be combined with other adapters' deltas, in any order.
    pub(super) fn is_sum(&self) -> bool {
        matches!(
            self.change,
            Change::LowRank { magnitude: None, .. } | Change::Expert(_) | Change::Bias { .. }
        )
    }

    /// A name for the change, for errors.
    pub(super) fn what(&self) -> &'static str {
        match self.change {
            Change::LowRank { magnitude: Some(_), .. } => "DoRA's magnitudes",
            Change::Tokens { .. } => "rows that are replaced",
            _ => "low-rank matrices",
        }
    }

    /// The tensor of the lengths that it gives columns.
    pub(super) fn column_lengths(&self) -> Option<&str> {
        match &self.change {
            Change::LowRank { magnitude: Some(Magnitude::Columns { tensor, .. }), .. } => Some(tensor),
            _ => None,
        }
    }

    /// Sets what columns are multiplied with to have these lengths.
    pub(super) fn set_factors(&mut self, measured: Vec<f32>) {
        if let Change::LowRank { magnitude: Some(Magnitude::Columns { factors, .. }), .. } = &mut self.change
        {
            *factors = Some(measured);
        }
    }

    /// Changes `weights`, the given rows of `param`.
    pub(super) fn apply(
        &self,
        weights: &mut [f32],
        param: &Param,
        rows: Range<usize>,
    ) -> Result<(), MergeError> {
        match &self.change {
            Change::LowRank { product, magnitude } => {
                self.add(product, weights, param, rows.clone())?;
                if let Some(magnitude) = magnitude {
                    self.rescale(magnitude, weights, param, rows)?;
                }
            }
            Change::Expert(product) => product.add(&self.file, weights, (param, rows))?,
            Change::Bias { tensor, scale } => {
                let added = lines(&self.file, tensor, param, (rows, 1))?;
                weights.iter_mut().zip(added).for_each(|(weight, added)| *weight += scale * added);
            }
            Change::Tokens { tensor, tokens } => {
                let cols = param.shape.cols();
                for (place, &token) in tokens.iter().enumerate() {
                    if !rows.contains(&token) {
                        continue;
                    }
                    let row = self.file.read(tensor, place * cols..(place + 1) * cols)?;
                    let start = (token - rows.start) * cols;
                    weights[start..start + cols].copy_from_slice(&row);
                }
            }
        }
        Ok(())
    }

    fn rescale(
        &self,
        magnitude: &Magnitude,
        weights: &mut [f32],
        param: &Param,
        rows: Range<usize>,
    ) -> Result<(), MergeError> {
        match magnitude {
            Magnitude::Rows(tensor) => {
                scale_rows(weights, param.shape.cols(), &lines(&self.file, tensor, param, (rows, 1))?);
            }
            Magnitude::Columns { factors, .. } => {
                for row in weights.chunks_exact_mut(param.shape.cols()) {
                    row.iter_mut()
                        .zip(factors.iter().flatten())
                        .for_each(|(weight, factor)| *weight *= factor);
                }
            }
        }
        Ok(())
    }

    /// Adds the scaled product of the two matrices.
    fn add(
        &self,
        product: &LowRank,
        weights: &mut [f32],
        param: &Param,
        rows: Range<usize>,
    ) -> Result<(), MergeError> {
        let (rank, cols) = (product.rank, param.shape.cols());
        let mut sum = ArrayViewMut2::from_shape((weights.len() / cols, cols), weights)?;
        if product.is_embedding {
            // A table of positions may be a part of the stored one.
            let first = match param.stored(rows.clone()).first() {
                Some(Run::Stored(lines)) => lines.start,
                _ => rows.start,
            };
            let a = self.columns(&product.a, rank, param.stored_lines(), first..first + rows.len())?;
            let a = ArrayView2::from_shape((rank, rows.len()), &a)?;
            let b = self.file.read(&product.b, 0..cols * rank)?;
            let b = ArrayView2::from_shape((cols, rank), &b)?;
            general_mat_mul(product.scale, &a.t(), &b.t(), 1.0, &mut sum);
        } else {
            let a = param.arrange_columns(self.file.read(&product.a, 0..rank * param.stored_cols())?);
            let a = ArrayView2::from_shape((rank, cols), &a)?;
            let b = lines(&self.file, &product.b, param, (rows, rank))?;
            let b = ArrayView2::from_shape((b.len() / rank, rank), &b)?;
            general_mat_mul(product.scale, &b, &a, 1.0, &mut sum);
        }
        Ok(())
    }

    /// Some columns of a matrix of `height` rows of `width` numbers, row by row.
    fn columns(
        &self,
        tensor: &str,
        height: usize,
        width: usize,
        columns: Range<usize>,
    ) -> Result<Vec<f32>, TensorsError> {
        let mut values = Vec::with_capacity(height * columns.len());
        for start in (0..height).map(|row| row * width) {
            values.extend(self.file.read(tensor, start + columns.start..start + columns.end)?);
        }
        Ok(values)
    }
}

/// The values for `rows` of `param` in a tensor with `width` numbers for each stored line.
pub(super) fn lines(
    file: &TensorFile,
    tensor: &str,
    param: &Param,
    (rows, width): (Range<usize>, usize),
) -> Result<Vec<f32>, TensorsError> {
    let mut values = Vec::new();
    for run in param.stored(rows) {
        match run {
            Run::Zeros(count) => values.resize(values.len() + count * width, 0.0),
            Run::Stored(lines) => values.extend(file.read(tensor, lines.start * width..lines.end * width)?),
        }
    }
    Ok(values)
}

/// Gives every row the length that `magnitudes` has for it.
fn scale_rows(weights: &mut [f32], cols: usize, magnitudes: &[f32]) {
    for (row, magnitude) in weights.chunks_exact_mut(cols).zip(magnitudes) {
        let length = row.iter().map(|weight| weight * weight).sum::<f32>().sqrt();
        // Rows of zeros that pad a head.
        let factor = if length == 0.0 && *magnitude == 0.0 { 1.0 } else { magnitude / length };
        row.iter_mut().for_each(|weight| *weight *= factor);
    }
}

/// Sums of squares of every column of a matrix, piece by piece.
pub(super) fn add_squares(sums: &mut [f64], weights: &[f32]) {
    for row in weights.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += f64::from(weight * weight));
    }
}
