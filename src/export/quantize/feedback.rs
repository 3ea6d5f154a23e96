//! Rounding that corrects the error of one weight in the others (GPTQ).
//!
//! A linear layer computes `W·x`. Over the activations of a calibration text, the squared error of a row that is off by `e` is
//! `eᵀ·G·e`, where the Gram matrix `G` is the mean of `x·xᵀ`. With `G = L·Lᵀ` that is the sum over columns `j` of
//!
//! ```text
//! L[j][j]² · (e[j] + sum over k > j of L[k][j] / L[j][j] · e[k])²
//! ```
//!
//! So columns are rounded from the last to the first, and each is rounded not to its weight but to its weight plus that sum: what the
//! columns before it got wrong is put right as far as a code allows. This is what GPTQ computes
//! (<https://arxiv.org/abs/2210.17323>), without the inverse of `G`. Columns with large activations are rounded first ("act-order"),
//! when most of the others can still make up for them.
//!
//! `L[j][j]²` is also how much an error of column `j` costs that no other column makes up for, so it is the importance that scales and
//! zero points are chosen by. They are chosen before any weight is rounded, which leaves blocks of consecutive columns as they are.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, linalg::general_mat_mul, s};
use rayon::prelude::*;

/// What is added to the diagonal, as a share of its mean: activations of another text have other directions.
const DAMPING: f32 = 0.01;

/// Columns that are factored or rounded together: between them, products are of matrices.
const PANEL: usize = 64;

/// How errors of columns of one input make up for each other.
#[derive(Debug)]
pub(in crate::export) struct Feedback {
    parts: Vec<Part>,
    /// `L[j][j]²` by column.
    importance: Vec<f32>,
}

/// Consecutive columns that make up for each other, and for no others.
#[derive(Debug)]
struct Part {
    /// The first column.
    first: usize,
    /// The column at each place of the order, counted from the first: rounded from the last place to the first.
    order: Vec<usize>,
    /// `[places, places]`: `L[k][j] / L[j][j]` below the diagonal.
    factor: Array2<f32>,
}

impl Feedback {
    /// That of activations with the Gram matrix `gram`, `[columns, columns]`. `None` if it is not positive definite: it holds
    /// numbers that are not finite, or all activations were zero.
    pub(in crate::export) fn new(gram: ArrayView2<f32>) -> Option<Self> {
        let columns = gram.nrows();
        let mean = gram.diag().mean().filter(|mean| mean.is_normal() && *mean > 0.0)?;
        let mut order: Vec<usize> = (0..columns).collect();
        order.sort_by(|a, b| gram[[*a, *a]].total_cmp(&gram[[*b, *b]]));
        let mut factor =
            Array2::from_shape_fn((columns, columns), |(k, j)| gram[[order[k], order[j]]] / mean);
        factor.diag_mut().iter_mut().for_each(|value| *value += DAMPING);
        factorize(factor.view_mut())?;
        let mut importance = vec![0.0; columns];
        for (place, column) in order.iter().enumerate() {
            importance[*column] = factor[[place, place]].powi(2);
        }
        let diagonal = factor.diag().to_owned();
        factor.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| row /= &diagonal);
        Some(Self { parts: vec![Part { first: 0, order, factor }], importance })
    }

    /// That of several inputs whose columns lie side by side; `None` if there are none.
    pub(in crate::export) fn side_by_side(all: Vec<Self>) -> Option<Self> {
        all.into_iter().reduce(|mut left, right| {
            let first = left.importance.len();
            left.importance.extend(right.importance);
            left.parts.extend(right.parts.into_iter().map(|part| Part { first: part.first + first, ..part }));
            left
        })
    }

    /// The cost of an error in each column.
    pub(in crate::export) fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// Calls `round(row, column, target)` for every weight of `rows`, `[rows, columns]`; it gives the value that the weight is stored
    /// as, which `target` is close to.
    pub(super) fn round_rows(&self, rows: ArrayView2<f32>, mut round: impl FnMut(usize, usize, f32) -> f32) {
        for part in &self.parts {
            part.round_rows(rows, &mut round);
        }
    }
}

impl Part {
    fn round_rows(&self, rows: ArrayView2<f32>, round: &mut impl FnMut(usize, usize, f32) -> f32) {
        let places = self.order.len();
        let factors = self.factor.as_slice().unwrap_or_default();
        let column = |place: usize| self.first + self.order[place];
        let mut errors = Array2::<f32>::zeros((rows.nrows(), places));
        let mut end = places;
        while end > 0 {
            let start = end.saturating_sub(PANEL);
            let mut targets =
                Array2::from_shape_fn((rows.nrows(), end - start), |(row, i)| rows[[row, column(start + i)]]);
            let factor = self.factor.slice(s![end.., start..end]);
            general_mat_mul(1.0, &errors.slice(s![.., end..]), &factor, 1.0, &mut targets);
            let targets = targets.as_slice_mut().unwrap_or_default().chunks_exact_mut(end - start);
            for (row, targets) in targets.enumerate() {
                for place in (start..end).rev() {
                    let column = column(place);
                    let error = rows[[row, column]] - round(row, column, targets[place - start]);
                    errors[[row, place]] = error;
                    let factors = &factors[place * places + start..][..place - start];
                    for (target, factor) in targets.iter_mut().zip(factors) {
                        *target += error * factor;
                    }
                }
            }
            end = start;
        }
    }
}

/// Replaces the lower triangle of `matrix`, which is symmetric, by its Cholesky factor. `None` if there is none.
fn factorize(mut matrix: ArrayViewMut2<f32>) -> Option<()> {
    let size = matrix.nrows();
    for start in (0..size).step_by(PANEL) {
        let end = (start + PANEL).min(size);
        let (mut left, mut rest) = matrix.slice_mut(s![start.., start..]).split_at(Axis(1), end - start);
        let (mut top, mut below) = left.view_mut().split_at(Axis(0), end - start);
        factorize_top(&mut top)?;
        below.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| solve(&top.view(), row.view_mut()));
        let mut rest = rest.slice_mut(s![end - start.., ..]);
        rest.axis_chunks_iter_mut(Axis(0), PANEL).into_par_iter().enumerate().for_each(
            |(chunk, mut stripe)| {
                let (first, last) = (chunk * PANEL, chunk * PANEL + stripe.nrows());
                general_mat_mul(
                    -1.0,
                    &below.slice(s![first..last, ..]),
                    &below.slice(s![..last, ..]).t(),
                    1.0,
                    // Only the lower triangle is read.
                    &mut stripe.slice_mut(s![.., ..last]),
                );
            },
        );
    }
    Some(())
}

/// [`factorize`] for a few rows.
fn factorize_top(top: &mut ArrayViewMut2<f32>) -> Option<()> {
    for i in 0..top.nrows() {
        let (above, mut rows) = top.view_mut().split_at(Axis(0), i);
        let mut row = rows.row_mut(0);
        solve(&above.slice(s![.., ..i]), row.slice_mut(s![..i]));
        let rest = row[i] - row.slice(s![..i]).dot(&row.slice(s![..i]));
        if !(rest.is_normal() && rest > 0.0) {
            return None;
        }
        row[i] = rest.sqrt();
    }
    Some(())
}

/// Solves `x · triangleᵀ = row` for `x` in place; `triangle` is a lower triangle.
fn solve(triangle: &ArrayView2<f32>, mut row: ArrayViewMut1<f32>) {
    for j in 0..triangle.nrows() {
        let known = triangle.slice(s![j, ..j]).dot(&row.slice(s![..j]));
        row[j] = (row[j] - known) / triangle[[j, j]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::random::normal_row;

    /// Activations whose columns depend on each other, and their Gram matrix.
    fn gram(columns: usize) -> Array2<f32> {
        let rows = columns * 2;
        let mixed = Array2::from_shape_vec((columns, columns), normal_row(3, columns * columns)).unwrap();
        let plain = Array2::from_shape_vec((rows, columns), normal_row(4, rows * columns)).unwrap();
        let activations = plain.dot(&mixed);
        activations.t().dot(&activations) / rows as f32
    }

    fn loss(gram: &Array2<f32>, errors: &Array2<f32>) -> f32 {
        (errors.dot(gram) * errors).sum()
    }

    #[test]
    fn the_factor_times_itself_is_the_matrix() {
        // More than one panel, and a last one that is not full.
        let gram = gram(150);
        let mut factor = gram.clone();
        factorize(factor.view_mut()).unwrap();
        for ((row, column), value) in factor.indexed_iter_mut() {
            if column > row {
                *value = 0.0;
            }
        }
        let difference = (factor.dot(&factor.t()) - &gram).mapv(f32::abs);
        let largest = gram.iter().fold(0f32, |most, value| most.max(value.abs()));
        assert!(difference.iter().all(|value| *value < largest * 1e-4));
    }

    #[test]
    fn rounding_with_feedback_loses_less_than_rounding_each_weight() {
        let gram = gram(150);
        let weights = Array2::from_shape_vec((8, 150), normal_row(5, 8 * 150)).unwrap();
        let feedback = Feedback::new(gram.view()).unwrap();
        let mut stored = Array2::zeros((8, 150));
        feedback.round_rows(weights.view(), |row, column, target| {
            stored[[row, column]] = target.round();
            target.round()
        });
        let alone = weights.mapv(f32::round);
        let [with, without] = [stored, alone].map(|stored| loss(&gram, &(&weights - stored)));
        assert!(with < 0.5 * without, "{with} {without}");
    }

    #[test]
    fn activations_that_give_no_factor_give_no_feedback() {
        for value in [0.0, f32::NAN, f32::INFINITY, -1.0] {
            assert!(Feedback::new(Array2::from_elem((4, 4), value).view()).is_none(), "{value}");
        }
    }
}
