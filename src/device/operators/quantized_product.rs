//! Products of activations with int4 and int8 weights, in int8 arithmetic.
//!
//! Activations are rounded to int8, a scale for each 32 of a row, as ONNX Runtime does at accuracy level 4; a block's sum
//! is exact in int32, and blocks are added up in float32, in their order. So a row has the same bits whatever other rows
//! it is computed with. One row (decode) is bound by reading the weights, once; many rows (prefill, verification) by
//! arithmetic.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use std::ops::Range;

use super::{
    cpu_isa::{CpuIsa, Task},
    packed_weights::{BLOCK, PANEL, PackedWeights, WeightBits},
    parts::Parts,
    simd_i8::{MAX_ROWS, SimdI8},
};

/// Activations, rounded, in the order in which a product reads them: one row of numbers for the processor to run ahead on,
/// where separate arrays of values, scales and starts would be eighteen.
///
/// Rows are in groups of as many as one pass over the weights serves; the last may have fewer. Of a group of `r` rows, block
/// by block, in words of four bytes:
///
/// ```text
/// values  [8][r]  four int8 each
/// starts  [r]     int32: the initial value of a block's sum, as codes are too large by their middle
/// scales  [r]     float32
/// ```
#[derive(Debug, Default)]
pub(super) struct Rounded {
    rows: usize,
    words: Vec<i32>,
}

/// Words of a row's block.
const WORDS: usize = BLOCK / 4 + 2;

/// Some rows of rounded activations, for one product.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundedRows<'a> {
    rows: usize,
    words: &'a [i32],
}

impl Rounded {
    /// Makes room for `rows` of activations for `matrix`; the earlier content is lost.
    pub(super) fn resize(&mut self, rows: usize, matrix: &PackedWeights) {
        self.rows = rows;
        // Never less, as the next matrix may need more again.
        self.words.resize(self.words.len().max(rows * matrix.blocks * WORDS), 0);
    }

    /// All rows.
    pub(super) fn all(&self) -> RoundedRows<'_> {
        RoundedRows { rows: self.rows, words: &self.words }
    }

    /// Some rows of activations for `matrix`, rounded as [`split`](Self::split) has split them.
    pub(super) fn some(&self, rows: Range<usize>, matrix: &PackedWeights) -> RoundedRows<'_> {
        let of_row = matrix.blocks * WORDS;
        RoundedRows { rows: rows.len(), words: &self.words[rows.start * of_row..rows.end * of_row] }
    }

    /// The place of all rows, in consecutive parts of `counts` rows each, of activations for `matrix`.
    pub(super) fn split(
        &mut self,
        counts: impl Iterator<Item = usize>,
        matrix: &PackedWeights,
    ) -> Vec<&mut [i32]> {
        let mut rest = &mut *self.words;
        let part = |count: usize| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(count * matrix.blocks * WORDS);
            rest = behind;
            part
        };
        counts.map(part).collect()
    }
}

/// Rounding of rows of activations, one group a task.
pub(super) struct Rounding<'a> {
    /// `[rows, depth]`.
    input: &'a [f32],
    rows: usize,
    depth: usize,
    blocks: usize,
    unit: f32,
    middle: i32,
    kind: CpuIsa,
    words: Parts<'a, i32>,
}

impl<'a> Rounding<'a> {
    /// Of `input`, `[rows, depth]`, for a processor of `kind`.
    ///
    /// # Safety
    /// The processor must be of that kind.
    pub(super) unsafe fn new(
        input: &'a [f32],
        matrix: &PackedWeights,
        kind: CpuIsa,
        into: &'a mut Rounded,
    ) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::part(input, matrix, kind, &mut into.words) }
    }

    /// Of `input`, `[rows, depth]`, into the words of as many rows.
    ///
    /// # Safety
    /// As of [`new`](Self::new).
    pub(super) unsafe fn part(
        input: &'a [f32],
        matrix: &PackedWeights,
        kind: CpuIsa,
        words: &'a mut [i32],
    ) -> Self {
        let &PackedWeights { depth, blocks, unit, bits, .. } = matrix;
        let (rows, middle) = (input.len() / depth, bits.middle());
        Self { input, rows, depth, blocks, unit, middle, kind, words: Parts::of(words) }
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(self.kind.rows())
    }

    /// Rounds group number `group`.
    ///
    /// # Safety
    /// No two calls at once may be for the same group.
    pub(super) unsafe fn group(&self, group: usize) {
        // SAFETY: as the caller promises, and that of `new`.
        unsafe { self.kind.run(Group { rounding: self, group }) }
    }
}

/// Rounding of a group.
struct Group<'a> {
    rounding: &'a Rounding<'a>,
    group: usize,
}

impl Task for Group<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        let Self { rounding, group } = self;
        let first = group * P::ROWS;
        let rows = (rounding.rows - first).min(P::ROWS);
        let of_row = rounding.blocks * WORDS;
        // SAFETY: the words of one group, which no other call is about, as the caller promises.
        let words = unsafe { rounding.words.part(first * of_row, rows * of_row) };
        for row in 0..rows {
            let (whole, rest) =
                rounding.input[(first + row) * rounding.depth..][..rounding.depth].as_chunks::<BLOCK>();
            let mut last = [0.0; BLOCK];
            last[..rest.len()].copy_from_slice(rest);
            let inputs = whole.iter().chain((!rest.is_empty()).then_some(&last));
            for (input, words) in inputs.zip(words.chunks_exact_mut(rows * WORDS)) {
                // SAFETY: the instructions are there, as the caller promises.
                let (values, sum, scale) = unsafe { round::<P>(input) };
                for (at, value) in values.into_iter().enumerate() {
                    words[at * rows + row] = value;
                }
                words[BLOCK / 4 * rows + row] = -rounding.middle * sum;
                words[(BLOCK / 4 + 1) * rows + row] = (scale * rounding.unit).to_bits().cast_signed();
            }
        }
    }
}

/// Rounds a block to int8: its values, their sum, and its scale, which is not a number where an activation is not finite.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn round<L: SimdI8>(input: &[f32; BLOCK]) -> ([i32; BLOCK / 4], i32, f32) {
    // SAFETY: as the caller promises.
    let greatest = unsafe { L::greatest(input) };
    if greatest >= f32::INFINITY.to_bits() {
        return ([0; BLOCK / 4], 0, f32::NAN);
    }
    let greatest = f32::from_bits(greatest);
    let inverse = if greatest > f32::MIN_POSITIVE { 127.0 / greatest } else { 0.0 };
    // SAFETY: as the caller promises.
    let (values, sum) = unsafe { L::rounded(input, inverse) };
    (values, sum, greatest / 127.0)
}

/// Some panels of a product.
struct Panels<'a> {
    product: &'a Product<'a>,
    panels: Range<usize>,
}

impl Task for Panels<'_> {
    #[inline(always)]
    unsafe fn run<P: SimdI8>(self) {
        // SAFETY: as the caller promises.
        unsafe { self.product.panels_by::<P>(self.panels) }
    }
}

/// A product under way, one panel of columns a task.
pub(super) struct Product<'a> {
    pub(super) matrix: &'a PackedWeights,
    pub(super) rounded: RoundedRows<'a>,
    /// `[rows, columns]`.
    pub(super) output: Parts<'a, f32>,
}

impl Product<'_> {
    /// Computes the columns of `panels`.
    ///
    /// # Safety
    /// No two calls at once may be for the same panel, and the processor must be of `kind`.
    pub(super) unsafe fn panels(&self, kind: CpuIsa, panels: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe { kind.run(Panels { product: self, panels }) }
    }

    #[inline(always)]
    unsafe fn panels_by<L: SimdI8>(&self, panels: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe {
            match (self.matrix.bits, self.matrix.zeros.is_some()) {
                (WeightBits::Four, false) => self.tiles::<L, 4, false>(panels),
                (WeightBits::Four, true) => self.tiles::<L, 4, true>(panels),
                (WeightBits::Eight, false) => self.tiles::<L, 8, false>(panels),
                (WeightBits::Eight, true) => self.tiles::<L, 8, true>(panels),
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<L: SimdI8, const BITS: usize, const ZEROS: bool>(&self, panels: Range<usize>) {
        let rows = self.rounded.rows;
        for panel in panels {
            for first in (0..rows).step_by(L::ROWS) {
                // SAFETY: as the caller promises.
                unsafe {
                    match (rows - first).min(L::ROWS) {
                        1 => self.tile::<L, BITS, ZEROS, 1>(panel, first),
                        2 => self.tile::<L, BITS, ZEROS, 2>(panel, first),
                        3 => self.tile::<L, BITS, ZEROS, 3>(panel, first),
                        4 => self.tile::<L, BITS, ZEROS, 4>(panel, first),
                        5 => self.tile::<L, BITS, ZEROS, 5>(panel, first),
                        _ => self.tile::<L, BITS, ZEROS, MAX_ROWS>(panel, first),
                    }
                }
            }
        }
    }

    /// `R` rows from `row` on, by the columns of a panel.
    ///
    /// Codes are taken apart anew for each few rows: a panel of them stays in the processor's cache, and one that was taken
    /// apart for all rows, at twice the size, was slower at any number of rows (1.5 times so at 12, by 3 % at 512).
    #[inline(always)]
    unsafe fn tile<L: SimdI8, const BITS: usize, const ZEROS: bool, const R: usize>(
        &self,
        panel: usize,
        row: usize,
    ) {
        let blocks = self.matrix.blocks;
        let of_block = BLOCK * PANEL * BITS / 8;
        let codes = &self.matrix.codes[panel * blocks * of_block..][..blocks * of_block];
        let scales = &self.matrix.scales[panel * blocks * PANEL..][..blocks * PANEL];
        let zeros = match &self.matrix.zeros {
            Some(zeros) if ZEROS => &zeros[panel * blocks * PANEL..][..blocks * PANEL],
            _ => &[],
        };
        let words = &self.rounded.words[row * blocks * WORDS..][..R * blocks * WORDS];
        // SAFETY: all that is read lies within the lengths above, block by block; the instructions are there, as the caller
        // promises.
        let totals = unsafe {
            let mut totals = [[L::splat(0.0); 2]; R];
            for block in 0..blocks {
                let words = words.as_ptr().add(block * R * WORDS);
                let start = |r: usize| *words.add(BLOCK / 4 * R + r);
                if R > 1 && row == 0 {
                    // The first rows read the panel from memory, the others from the cache.
                    for line in (0..of_block).step_by(LINE) {
                        L::fetch(codes.as_ptr().wrapping_add(block * of_block + AHEAD + line));
                    }
                }
                let sums = block_sums::<L, BITS, R>(codes.as_ptr().add(block * of_block), words);
                let scales = scales.as_ptr().add(block * PANEL);
                let scales = [L::halfs(scales), L::halfs(scales.add(PANEL / 2))];
                for (r, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                    let scale =
                        L::splat(f32::from_bits((*words.add((BLOCK / 4 + 1) * R + r)).cast_unsigned()));
                    for (half, total) in totals.iter_mut().enumerate() {
                        let mut sums = if BITS == 4 {
                            L::floats(sums[half], start(r))
                        } else {
                            L::byte_floats(sums[half])
                        };
                        if ZEROS {
                            // Whole numbers far below 2^24: exact.
                            let zeros = L::bytes(zeros.as_ptr().add(block * PANEL + half * PANEL / 2));
                            sums = L::fma(zeros, L::splat(negative_sum::<BITS>(start(r))), sums);
                        }
                        *total = L::fma(sums, L::mul(scales[half], scale), *total);
                    }
                }
            }
            totals
        };
        let columns = (self.matrix.columns - panel * PANEL).min(PANEL);
        for (r, totals) in totals.into_iter().enumerate() {
            // SAFETY: the panel's columns of this row, which no other call is about, as the caller promises.
            let output =
                unsafe { self.output.part((row + r) * self.matrix.columns + panel * PANEL, columns) };
            if let Ok(output) = <&mut [f32; PANEL]>::try_from(&mut *output) {
                // SAFETY: the instructions are there, as the caller promises.
                unsafe { put::<L>(totals, output) };
            } else {
                let mut whole = [0.0; PANEL];
                // SAFETY: as above.
                unsafe { put::<L>(totals, &mut whole) };
                output.copy_from_slice(&whole[..columns]);
            }
        }
    }
}

/// The sums of a block, for `R` rows by the columns of a panel.
///
/// # Safety
/// The block has as many codes and words as it must; the processor must have the instructions of `L`.
#[inline(always)]
unsafe fn block_sums<L: SimdI8, const BITS: usize, const R: usize>(
    codes: *const u8,
    words: *const i32,
) -> [[L::Sums; 2]; R] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[L::sums(0); 2]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let start = *words.add(BLOCK / 4 * R + r);
            *sums = [if BITS == 4 { L::sums(start) } else { L::byte_sums(start) }; 2];
        }
        for four in 0..BLOCK / 4 {
            let codes = codes.add(four * 4 * PANEL * BITS / 8);
            if R == 1 {
                L::fetch(codes.wrapping_add(AHEAD));
                if BITS == 8 {
                    L::fetch(codes.wrapping_add(AHEAD + LINE));
                }
            }
            let [low, high] = if BITS == 4 {
                L::halves(L::codes(codes))
            } else {
                [L::byte_codes(codes), L::byte_codes(codes.add(64))]
            };
            for (r, sums) in sums.iter_mut().enumerate() {
                let activations = *words.add(four * R + r);
                *sums = if BITS == 4 {
                    [L::dot(sums[0], low, activations), L::dot(sums[1], high, activations)]
                } else {
                    [L::byte_dot(sums[0], low, activations), L::byte_dot(sums[1], high, activations)]
                };
            }
        }
        sums
    }
}

/// Writes the totals of a row.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn put<L: SimdI8>([low, high]: [L::Floats; 2], to: &mut [f32; PANEL]) {
    // SAFETY: there is room for 32; the instructions are there, as the caller promises.
    unsafe {
        L::store(low, to.as_mut_ptr());
        L::store(high, to.as_mut_ptr().add(PANEL / 2));
    }
}

/// The sum of a block's activations, times -1: the initial value of its sum is that times the middle code.
#[expect(clippy::cast_precision_loss, reason = "at most 32 · 127")]
fn negative_sum<const BITS: usize>(start: i32) -> f32 {
    (start / (1 << (BITS - 1))) as f32
}

/// Prefetch distance in bytes. Decode only reads each row of weights once, so it is bound by memory.
const AHEAD: usize = 1024;

/// Bytes that are fetched at once.
const LINE: usize = 64;
