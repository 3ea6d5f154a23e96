//! Lengths of the columns that DoRA gives a length of their own.

use ndarray::{Array2, ArrayView2};

use super::{error::UnmergedError, served_weights::ServedMatrix};
use crate::export::adapter::NodeDelta;

/// Weights that are read at once.
const PIECE: usize = 4 << 20;

/// What DoRA needs to know of each column of a node, as `device::operators::ColumnLengths` has it.
#[derive(Debug)]
pub(super) struct Lengths {
    pub(super) magnitude: Vec<f32>,
    pub(super) base: Vec<f32>,
    pub(super) cross: Vec<f32>,
    pub(super) added: Vec<f32>,
}

impl Lengths {
    /// Of a node whose layers `delta` changes; `None` without DoRA.
    pub(super) fn measure(
        delta: &NodeDelta,
        matrix: &ServedMatrix<'_>,
    ) -> Result<Option<Self>, UnmergedError> {
        if delta.pairs.iter().all(|pair| pair.magnitude.is_none()) {
            return Ok(None);
        }
        let (columns, depth) = (matrix.columns(), matrix.depth());
        let (ones, zeros) = (vec![1.0; columns], vec![0.0; columns]);
        let mut lengths = Self { magnitude: ones.clone(), base: ones, cross: zeros.clone(), added: zeros };
        for pair in &delta.pairs {
            let Some(magnitude) = &pair.magnitude else { continue };
            let (a, b) = (matrix_of(&pair.a, depth), matrix_of(&pair.b, pair.rank));
            let squares = a.dot(&a.t());
            let scale = f64::from(pair.scale);
            let step = (PIECE / depth.max(1)).max(1);
            for first in (0..pair.columns).step_by(step) {
                let rows = first..(first + step).min(pair.columns);
                let at = pair.first_column + rows.start..pair.first_column + rows.end;
                let weights = matrix_of(&matrix.rows(at.clone())?, depth);
                let projected = weights.dot(&a.t());
                for (index, column) in at.enumerate() {
                    let b = b.row(rows.start + index);
                    let row = weights.row(index);
                    lengths.magnitude[column] = magnitude[rows.start + index];
                    lengths.base[column] = single(row.dot(&row));
                    lengths.cross[column] = single(scale * projected.row(index).dot(&b));
                    lengths.added[column] = single(scale * scale * b.dot(&squares.dot(&b)));
                }
            }
        }
        Ok(Some(lengths))
    }
}

/// Rows of `cols` numbers, in double precision.
fn matrix_of(values: &[f32], cols: usize) -> Array2<f64> {
    let rows = values.len() / cols.max(1);
    ArrayView2::from_shape((rows, cols), &values[..rows * cols])
        .map(|values| values.mapv(f64::from))
        .unwrap_or_default()
}

#[expect(clippy::cast_possible_truncation, reason = "a squared length in single precision")]
const fn single(number: f64) -> f32 {
    number as f32
}
