//! The steps of attention over a block of positions, for sixteen rows at once.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use super::super::simd_f32::{LANES, SimdF32, exp, tanh};

/// A matrix of float32; `stride` is the distance between rows.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) stride: usize,
}

/// Each score is the sum of this many partial sums: lane `i` adds the products of elements `i`, `i + 4`, `i + 8` and so on.
pub(super) const FOUR: usize = 4;

/// Scores of `4 · N` rows, `queries` being `[dim / 4][N][16]`: row `i` in quarter `i / N` of register `i % N`.
///
/// A score is four partial sums (see [`FOUR`]), added up at the end, in the same order for any number of rows.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn scores<V: SimdF32, const N: usize>(
    queries: &[f32],
    keys: Matrix,
    count: usize,
    scores: &mut [f32],
) {
    let mut at = 0;
    while at < count {
        let left = count - at;
        // SAFETY: as the caller promises.
        at += unsafe {
            match V::SUMS / N {
                8.. if left >= 8 => some_scores::<V, N, 8>(queries, keys, at, scores),
                4.. if left >= 4 => some_scores::<V, N, 4>(queries, keys, at, scores),
                2.. if left >= 2 => some_scores::<V, N, 2>(queries, keys, at, scores),
                _ => some_scores::<V, N, 1>(queries, keys, at, scores),
            }
        };
    }
}

/// Computes the scores of `P` positions from `at` on, and returns `P`.
#[inline(always)]
unsafe fn some_scores<V: SimdF32, const N: usize, const P: usize>(
    queries: &[f32],
    keys: Matrix,
    at: usize,
    scores: &mut [f32],
) -> usize {
    let steps = queries.len() / (N * LANES);
    let keys_here = &keys.numbers[at * keys.stride..][..(P - 1) * keys.stride + steps * FOUR];
    let scores = &mut scores[at * LANES..][..P * LANES];
    // SAFETY: all that is read and written lies within the three slices; as the caller promises.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; P];
        for step in 0..steps {
            let mut query = [V::splat(0.0); N];
            for (n, query) in query.iter_mut().enumerate() {
                *query = V::load(queries.as_ptr().add((step * N + n) * LANES));
            }
            for (p, sums) in sums.iter_mut().enumerate() {
                let key = V::splat_four(keys_here.as_ptr().add(p * keys.stride + step * FOUR));
                for (sum, query) in sums.iter_mut().zip(query) {
                    *sum = V::fma(key, query, *sum);
                }
            }
        }
        for (p, sums) in sums.into_iter().enumerate() {
            V::store(V::sum_rows(sums), scores.as_mut_ptr().add(p * LANES));
        }
    }
    P
}

/// Scores of a single row with `count` keys, as [`scores`] computes them: four positions a register, each with four lanes.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn scores_of_one<V: SimdF32>(
    queries: &[f32],
    keys: Matrix,
    count: usize,
    scores: &mut [f32],
) {
    let mut at = 0;
    while at < count {
        // SAFETY: as the caller promises.
        at += unsafe {
            match V::SUMS {
                4.. if count - at >= 4 * FOUR => some_of_one::<V, 4>(queries, keys, at, scores),
                _ if count - at >= FOUR => some_of_one::<V, 1>(queries, keys, at, scores),
                _ => some_scores::<V, 1, 1>(queries, keys, at, scores),
            }
        };
    }
}

/// Computes the scores of `4 · G` positions from `at` on, and returns their number.
#[inline(always)]
unsafe fn some_of_one<V: SimdF32, const G: usize>(
    queries: &[f32],
    keys: Matrix,
    at: usize,
    scores: &mut [f32],
) -> usize {
    let (steps, stride) = (queries.len() / LANES, keys.stride);
    let keys_here = &keys.numbers[at * stride..][..(G * FOUR - 1) * stride + steps * FOUR];
    let scores = &mut scores[at * LANES..][..G * FOUR * LANES];
    let mut all = [0.0; LANES];
    // SAFETY: all that is read and written lies within these slices; as the caller promises.
    unsafe {
        let mut sums = [V::splat(0.0); G];
        for step in 0..steps {
            let query = V::splat_four(queries.as_ptr().add(step * LANES));
            for (g, sum) in sums.iter_mut().enumerate() {
                let first = keys_here.as_ptr().add(g * FOUR * stride + step * FOUR);
                let key =
                    V::four_fours([first, first.add(stride), first.add(2 * stride), first.add(3 * stride)]);
                *sum = V::fma(key, query, *sum);
            }
        }
        for (g, sum) in sums.into_iter().enumerate() {
            V::store(V::sum_rows([sum]), all.as_mut_ptr());
            for (i, score) in all[..FOUR].iter().enumerate() {
                scores[(g * FOUR + i) * LANES] = *score;
            }
        }
    }
    G * FOUR
}

/// Keeps scores below `cap`.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn soften<V: SimdF32>(scores: &mut [f32], count: usize, cap: f32) {
    for scores in scores.as_chunks_mut::<LANES>().0.iter_mut().take(count) {
        // SAFETY: sixteen scores; as the caller promises.
        unsafe {
            let capped = tanh::<V>(V::mul(V::load(scores.as_ptr()), V::splat(1.0 / cap)));
            V::store(V::mul(capped, V::splat(cap)), scores.as_mut_ptr());
        }
    }
}

/// Turns scores into weights relative to the greatest so far, adds them to totals, and returns the factor for earlier sums.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn exponentials<V: SimdF32>(
    scores: &mut [f32],
    count: usize,
    [tops, totals]: [&mut [f32]; 2],
    factors: &mut [f32],
) {
    let scores = &mut scores[..count * LANES];
    // SAFETY: sixteen numbers each, `count` times sixteen scores; as the caller promises.
    unsafe {
        let before = V::load(tops.as_ptr());
        let mut top = before;
        for at in 0..count {
            top = V::max(top, V::load(scores.as_ptr().add(at * LANES)));
        }
        let factor = exp::<V>(V::sub(before, top));
        let mut total = V::mul(V::load(totals.as_ptr()), factor);
        for at in 0..count {
            let place = scores.as_mut_ptr().add(at * LANES);
            let weight = exp::<V>(V::sub(V::load(place), top));
            total = V::add(total, weight);
            V::store(weight, place);
        }
        V::store(top, tops.as_mut_ptr());
        V::store(total, totals.as_mut_ptr());
        V::store(factor, factors.as_mut_ptr());
    }
}

/// The sums over some positions for sixteen rows or fewer.
pub(super) struct State<'a> {
    /// `[rows][padded]`: values by weight.
    pub(super) sums: &'a mut [f32],
    /// `[16]`: the greatest score.
    pub(super) tops: &'a mut [f32],
    /// `[16]`: what all weights add up to.
    pub(super) totals: &'a mut [f32],
}

/// Adds the sums over further positions, `more`, to those of `state`.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn fold<V: SimdF32>(state: &mut State, more: [&[f32]; 3], padded: usize) {
    let [sums, tops, totals] = more;
    let rows = state.sums.len() / padded;
    assert!(rows <= LANES && sums.len() >= rows * padded, "a tile");
    assert!([tops.len(), totals.len(), state.tops.len(), state.totals.len()].iter().all(|n| *n >= LANES));
    let (mut before, mut after) = ([0.0; LANES], [0.0; LANES]);
    // SAFETY: sixteen numbers each (asserted above), or within a row; as the caller promises.
    unsafe {
        let (first, second) = (V::load(state.tops.as_ptr()), V::load(tops.as_ptr()));
        let top = V::max(first, second);
        let factors = [exp::<V>(V::sub(first, top)), exp::<V>(V::sub(second, top))];
        let total = V::mul(V::load(state.totals.as_ptr()), factors[0]);
        V::store(V::fma(V::load(totals.as_ptr()), factors[1], total), state.totals.as_mut_ptr());
        V::store(top, state.tops.as_mut_ptr());
        V::store(factors[0], before.as_mut_ptr());
        V::store(factors[1], after.as_mut_ptr());
        for row in 0..rows {
            let (before, after) = (V::splat(before[row]), V::splat(after[row]));
            for at in (row * padded..(row + 1) * padded).step_by(LANES) {
                let place = state.sums.as_mut_ptr().add(at);
                let scaled = V::mul(V::load(place), before);
                V::store(V::fma(V::load(sums.as_ptr().add(at)), after, scaled), place);
            }
        }
    }
}

/// Sums over positions, for every row of a share.
pub(super) struct Sums<'a> {
    /// `[rows][padded]`.
    pub(super) sums: &'a mut [f32],
    /// `[rows]`: the greatest score, and what all of them add up to.
    pub(super) tops: &'a mut [f32],
    pub(super) totals: &'a mut [f32],
}

impl Sums<'_> {
    /// Resets to zero positions.
    pub(super) fn clear(&mut self) {
        self.sums.fill(0.0);
        self.totals.fill(0.0);
        // Not negative infinity, because the difference of two infinities is NaN.
        self.tops.fill(f32::MIN);
    }

    /// The sums of the tile of rows that starts at row `first`.
    pub(super) fn tile(&mut self, first: usize, rows: usize, padded: usize) -> State<'_> {
        State {
            sums: &mut self.sums[first * padded..][..rows * padded],
            tops: &mut self.tops[first..][..LANES],
            totals: &mut self.totals[first..][..LANES],
        }
    }

    /// Adds the sums over further positions, `[sums, tops, totals]`, for `rows` rows.
    ///
    /// # Safety
    /// The same as for [`SimdF32`].
    #[inline(always)]
    pub(super) unsafe fn add<V: SimdF32>(&mut self, more: [&[f32]; 3], rows: usize, padded: usize) {
        let [sums, tops, totals] = more;
        for first in (0..rows).step_by(LANES) {
            let mut state = self.tile(first, (rows - first).min(LANES), padded);
            // SAFETY: as the caller promises.
            unsafe {
                fold::<V>(&mut state, [&sums[first * padded..], &tops[first..], &totals[first..]], padded);
            }
        }
    }
}

/// Adds `weights` times values to each row's sums, which are multiplied by its factor before.
///
/// # Safety
/// The same as for [`SimdF32`].
#[inline(always)]
pub(super) unsafe fn accumulate<V: SimdF32>(
    sums: &mut [f32],
    padded: usize,
    factors: &[f32],
    weights: &[f32],
    values: Matrix,
    count: usize,
) {
    let rows = sums.len() / padded;
    assert!(rows <= LANES && factors.len() >= LANES && weights.len() >= count * LANES, "a tile");
    assert!(values.numbers.len() >= count * values.stride && values.stride >= padded, "a block of values");
    let [most_rows, most_columns] = V::TILE;
    let mut row = 0;
    while row < rows {
        let height = if rows - row >= most_rows { most_rows } else { 1 };
        let mut column = 0;
        while column < padded {
            let width = if padded - column >= most_columns * LANES { most_columns } else { 1 };
            // SAFETY: within the bounds asserted above; as the caller promises.
            unsafe {
                let sums = sums.as_mut_ptr().add(row * padded + column);
                let (factors, weights) = (factors.as_ptr().add(row), weights.as_ptr().add(row));
                let (values, strides) = (values.numbers.as_ptr().add(column), [padded, values.stride]);
                let to = Target { sums, factors, weights, values, strides, count };
                match (height, width) {
                    (4, 4) => to.add::<V, 4, 4>(),
                    (4, _) => to.add::<V, 4, 1>(),
                    (2, 2) => to.add::<V, 2, 2>(),
                    (2, _) => to.add::<V, 2, 1>(),
                    (_, 4) => to.add::<V, 1, 4>(),
                    (_, 2) => to.add::<V, 1, 2>(),
                    _ => to.add::<V, 1, 1>(),
                }
            }
            column += width * LANES;
        }
        row += height;
    }
}

/// A few rows by a few registers of columns, and the sums to add to.
struct Target {
    sums: *mut f32,
    factors: *const f32,
    weights: *const f32,
    values: *const f32,
    /// From one row of sums, and of values, to the next.
    strides: [usize; 2],
    count: usize,
}

impl Target {
    #[inline(always)]
    unsafe fn add<V: SimdF32, const R: usize, const J: usize>(&self) {
        // SAFETY: `R` rows by `J` times sixteen columns, as the caller promises.
        unsafe {
            let place = |r: usize, j: usize| self.sums.add(r * self.strides[0] + j * LANES);
            let mut sums = [[V::splat(0.0); J]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*self.factors.add(r));
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = V::mul(V::load(place(r, j)), factor);
                }
            }
            for at in 0..self.count {
                let mut values = [V::splat(0.0); J];
                for (j, value) in values.iter_mut().enumerate() {
                    *value = V::load(self.values.add(at * self.strides[1] + j * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(*self.weights.add(at * LANES + r));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = V::fma(weight, value, *sum);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    V::store(sum, place(r, j));
                }
            }
        }
    }
}
