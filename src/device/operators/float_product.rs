//! Products of activations with float weights, which are read where ONNX Runtime has mapped them.
//!
//! Checkpoints store a matrix as `[columns, depth]`, one row of weights for each column of the product. An output is the dot
//! product of a row of activations with a row of weights: sixteen sums, of every sixteenth product each, added up at the end.
//! That order does not depend on the number of rows, so a row has the same bits in decode and in prefill, and weights need no
//! other layout than the file's.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use std::ops::Range;

use half::f16;

use super::{
    cpu_isa::{CpuIsa, Task},
    parts::Parts,
    simd_f32::{LANES, SimdF32},
    simd_i8::SimdI8,
};

/// Columns of the product that a task takes at once.
pub(super) const PANEL: usize = 32;

/// Bytes of activations that are multiplied with a panel before the next ones: they stay in the processor's second cache.
const ROWS_BYTES: usize = 256 << 10;

/// `[columns, depth]`.
#[derive(Clone, Copy, Debug)]
pub(super) enum FloatWeights<'a> {
    Float32(&'a [f32]),
    Float16(&'a [f16]),
}

impl FloatWeights<'_> {
    /// Some of the numbers.
    pub(super) fn some(&self, range: Range<usize>) -> Self {
        match self {
            Self::Float32(weights) => Self::Float32(&weights[range]),
            Self::Float16(weights) => Self::Float16(&weights[range]),
        }
    }
}

/// A product under way, a few panels a task.
pub(super) struct FloatProduct<'a> {
    pub(super) weights: FloatWeights<'a>,
    /// `[rows, depth]`.
    pub(super) input: &'a [f32],
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// `[rows, columns]`.
    pub(super) output: Parts<'a, f32>,
}

/// Some panels of a product.
struct Panels<'a> {
    product: &'a FloatProduct<'a>,
    panels: Range<usize>,
}

impl Task for Panels<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        // SAFETY: as the caller promises.
        unsafe {
            match self.product.weights {
                FloatWeights::Float32(weights) => self.product.panels_by::<P, f32>(weights, self.panels),
                FloatWeights::Float16(weights) => self.product.panels_by::<P, f16>(weights, self.panels),
            }
        }
    }
}

/// A type of weights.
pub(super) trait Weight: Copy + Default {
    /// Sixteen of them as float32.
    ///
    /// # Safety
    /// There must be sixteen; and as of [`SimdF32`].
    unsafe fn load<V: SimdF32>(from: *const Self) -> V::Floats;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<V: SimdF32>(from: *const Self) -> V::Floats {
        // SAFETY: as the caller promises.
        unsafe { V::load(from) }
    }
}

impl Weight for f16 {
    #[inline(always)]
    unsafe fn load<V: SimdF32>(from: *const Self) -> V::Floats {
        // SAFETY: as the caller promises.
        unsafe { V::halfs(from) }
    }
}

impl FloatProduct<'_> {
    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Computes the columns of `panels`.
    ///
    /// # Safety
    /// No two calls at once may be for the same panel, and the processor must be of `kind`.
    pub(super) unsafe fn compute(&self, kind: CpuIsa, panels: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe { kind.run(Panels { product: self, panels }) }
    }

    #[inline(always)]
    unsafe fn panels_by<V: SimdF32, W: Weight>(&self, weights: &[W], panels: Range<usize>) {
        let rows = self.input.len() / self.depth;
        let [high, wide] = V::TILE;
        let at_once = (ROWS_BYTES / (self.depth * size_of::<f32>())).next_multiple_of(high).max(high);
        for panel in panels {
            let columns = panel * PANEL..((panel + 1) * PANEL).min(self.columns);
            for first in (0..rows).step_by(at_once) {
                let rows = first..(first + at_once).min(rows);
                let mut column = columns.start;
                while column < columns.end {
                    let width = if columns.end - column >= wide { wide } else { 1 };
                    let mut row = rows.start;
                    while row < rows.end {
                        let height = if rows.end - row >= high { high } else { 1 };
                        // SAFETY: these rows and columns exist; as the caller promises.
                        unsafe {
                            match (height, width) {
                                (4, 4) => self.tile::<V, W, 4, 4>(weights, row, column),
                                (4, _) => self.tile::<V, W, 4, 1>(weights, row, column),
                                (2, 2) => self.tile::<V, W, 2, 2>(weights, row, column),
                                (2, _) => self.tile::<V, W, 2, 1>(weights, row, column),
                                (_, 4) => self.tile::<V, W, 1, 4>(weights, row, column),
                                (_, 2) => self.tile::<V, W, 1, 2>(weights, row, column),
                                _ => self.tile::<V, W, 1, 1>(weights, row, column),
                            }
                        }
                        row += height;
                    }
                    column += width;
                }
            }
        }
    }

    /// `R` rows by `C` columns.
    #[inline(always)]
    unsafe fn tile<V: SimdF32, W: Weight, const R: usize, const C: usize>(
        &self,
        weights: &[W],
        row: usize,
        column: usize,
    ) {
        let depth = self.depth;
        let input = &self.input[row * depth..][..R * depth];
        let weights = &weights[column * depth..][..C * depth];
        let whole = depth / LANES * LANES;
        // SAFETY: all that is read lies within these rows; the instructions are there, as the caller promises.
        let sums = unsafe {
            let mut sums = [[V::splat(0.0); C]; R];
            for at in (0..whole).step_by(LANES) {
                // The first rows of a pass read the weights from memory, the others from the cache.
                if row == 0 {
                    for c in 0..C {
                        V::fetch(
                            weights.as_ptr().wrapping_add(c * depth + at).cast::<u8>().wrapping_add(AHEAD),
                        );
                    }
                }
                let mut columns = [V::splat(0.0); C];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = W::load::<V>(weights.as_ptr().add(c * depth + at));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let input = V::load(input.as_ptr().add(r * depth + at));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = V::fma(input, column, *sum);
                    }
                }
            }
            if whole < depth {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let mut last = [0.0; LANES];
                    last[..depth - whole].copy_from_slice(&input[r * depth..][whole..depth]);
                    for (c, sum) in sums.iter_mut().enumerate() {
                        let mut column = [W::default(); LANES];
                        column[..depth - whole].copy_from_slice(&weights[c * depth..][whole..depth]);
                        *sum = V::fma(V::load(last.as_ptr()), W::load::<V>(column.as_ptr()), *sum);
                    }
                }
            }
            sums
        };
        for (r, sums) in sums.into_iter().enumerate() {
            // SAFETY: columns of this panel, which no other call is about; as the caller promises.
            let output = unsafe { self.output.part((row + r) * self.columns + column, C) };
            for (output, sum) in output.iter_mut().zip(sums) {
                // SAFETY: as the caller promises.
                *output = unsafe { V::sum(sum) };
            }
        }
    }
}

/// Prefetch distance in bytes. A single row is bound by memory.
const AHEAD: usize = 1024;
