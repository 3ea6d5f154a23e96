//! Products of activations with int4 weights, in int8 arithmetic.
//!
//! Activations are rounded to int8, a scale for each 32 of a row, as ONNX Runtime does at accuracy level 4; a block's sum
//! is exact in int32, and blocks are added up in float32. One row (decode) is bound by reading the weights, once;
//! many rows (prefill, verification) by arithmetic: there a panel is unpacked to bytes once, and serves all rows.

#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "vector instructions, all under one condition: that the processor has them"
)]

use std::{cell::Cell, marker::PhantomData, ops::Range, slice};

use half::f16;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::{
    lanes::{Lanes, MOST_ROWS, Portable},
    matrix::{BLOCK, Matrix, PANEL},
};

/// Activations, rounded.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    rows: usize,
    blocks: usize,
    /// `[rows, blocks, 32]`.
    values: Vec<i8>,
    /// `[rows, blocks]`.
    scales: Vec<f32>,
    /// `[rows, blocks]`: what a block's sum starts with, as codes are eight too large.
    starts: Vec<i32>,
}

impl Rounded {
    /// Makes room for `rows` of activations for `matrix`; what was there is lost.
    pub(super) fn resize(&mut self, rows: usize, matrix: &Matrix) {
        (self.rows, self.blocks) = (rows, matrix.blocks);
        // Never less, as the next matrix may need more again.
        let count = rows * self.blocks;
        self.values.resize(self.values.len().max(count * BLOCK), 0);
        self.scales.resize(self.scales.len().max(count), 0.0);
        self.starts.resize(self.starts.len().max(count), 0);
    }
}

/// A slice whose parts several threads write, each its own.
pub(super) struct Parts<'a, T> {
    first: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice, taken apart by callers of `part`, who promise that no two parts overlap.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(super) fn of(slice: &'a mut [T]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part that starts at `start`.
    ///
    /// # Safety
    /// No other part that overlaps with it may be in use.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part of the slice");
        // SAFETY: within the slice (asserted above), which is borrowed mutably as long as `self` lives; no other part
        // overlaps, as the caller promises.
        unsafe { slice::from_raw_parts_mut(self.first.add(start), len) }
    }

    /// The part that starts at `start`, to be read.
    ///
    /// # Safety
    /// No part to be written that overlaps with it may be in use.
    pub(super) unsafe fn read(&self, start: usize, len: usize) -> &[T] {
        assert!(start <= self.len && len <= self.len - start, "a part of the slice");
        // SAFETY: as in `part`, but that nobody writes to it.
        unsafe { slice::from_raw_parts(self.first.add(start), len) }
    }
}

/// Rounding of rows of activations, one row a task.
pub(super) struct Rounding<'a> {
    input: &'a [f32],
    depth: usize,
    blocks: usize,
    unit: f32,
    values: Parts<'a, i8>,
    scales: Parts<'a, f32>,
    starts: Parts<'a, i32>,
}

impl<'a> Rounding<'a> {
    /// Of `input`, `[rows, depth]`.
    pub(super) fn new(input: &'a [f32], matrix: &Matrix, into: &'a mut Rounded) -> Self {
        Self {
            input,
            depth: matrix.depth,
            blocks: matrix.blocks,
            unit: matrix.unit,
            values: Parts::of(&mut into.values),
            scales: Parts::of(&mut into.scales),
            starts: Parts::of(&mut into.starts),
        }
    }

    /// Rounds row number `row`.
    ///
    /// # Safety
    /// No two calls at once may be for the same row, and the processor must be of `kind`.
    pub(super) unsafe fn row(&self, kind: Kind, row: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            match kind {
                Kind::Portable => self.row_by(row),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => self.row_avx2(row),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => self.row_avx512(row),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn row_avx2(&self, row: usize) {
        // SAFETY: as the caller promises.
        unsafe { self.row_by(row) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn row_avx512(&self, row: usize) {
        // SAFETY: as the caller promises.
        unsafe { self.row_by(row) }
    }

    #[inline(always)]
    unsafe fn row_by(&self, row: usize) {
        let input = &self.input[row * self.depth..][..self.depth];
        // SAFETY: parts of one row, which no other call is about, as the caller promises.
        let values = unsafe { self.values.part(row * self.blocks * BLOCK, self.blocks * BLOCK) };
        // SAFETY: as above.
        let scales = unsafe { self.scales.part(row * self.blocks, self.blocks) };
        // SAFETY: as above.
        let starts = unsafe { self.starts.part(row * self.blocks, self.blocks) };
        let (whole, rest) = input.as_chunks::<BLOCK>();
        let mut last = [0.0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        let inputs = whole.iter().chain((!rest.is_empty()).then_some(&last));
        let outputs = values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(scales.iter_mut().zip(starts));
        for (input, (values, (scale, start))) in inputs.zip(outputs) {
            let (greatest, sum) = round(input, values);
            (*scale, *start) = (greatest * self.unit, -8 * sum);
        }
    }
}

/// Rounds a block to int8; its scale, which is not a number where an activation is not finite, and the sum of its values.
#[inline(always)]
fn round(input: &[f32; BLOCK], values: &mut [i8; BLOCK]) -> (f32, i32) {
    // Adding this to a number of fewer than 23 bits leaves it rounded in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let mut greatest = [0f32; 16];
    // Zero, or not a number: comparisons alone would overlook it.
    let mut none = [0f32; 16];
    for half in input.as_chunks::<16>().0 {
        for ((greatest, none), x) in greatest.iter_mut().zip(&mut none).zip(half) {
            let magnitude = x.abs();
            *greatest = if magnitude > *greatest { magnitude } else { *greatest };
            *none += x * 0.0;
        }
    }
    let none: f32 = none.iter().sum();
    let greatest = greatest.iter().fold(0f32, |a, b| if *b > a { *b } else { a });
    let inverse = if greatest > f32::MIN_POSITIVE { 127.0 / greatest } else { 0.0 };
    let mut sum = 0;
    for (value, x) in values.iter_mut().zip(input) {
        let rounded = (x * inverse + SHIFT).to_bits().cast_signed() - SHIFT.to_bits().cast_signed();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "between -127 and 127; of numbers that are none it does not matter"
        )]
        let byte = rounded as i8;
        *value = byte;
        sum += i32::from(byte);
    }
    (greatest / 127.0 + none, sum)
}

/// What a processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No instructions of its own are used.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kind {
    /// Of this machine's.
    #[must_use]
    pub fn detect() -> Self {
        Self::all().into_iter().next_back().unwrap_or(Self::Portable)
    }

    /// All that this machine's processor can do, the slowest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "there is nothing else"))]
        let mut kinds = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                kinds.push(Self::Avx2);
                let wide = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl");
                if wide && is_x86_feature_detected!("avx512vnni") {
                    kinds.push(Self::Avx512);
                }
            }
        }
        kinds
    }
}

/// A product under way, one panel of columns a task.
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) rounded: &'a Rounded,
    /// `[rows, columns]`.
    pub(super) output: Parts<'a, f32>,
}

impl Product<'_> {
    /// Computes the columns of `panels`.
    ///
    /// # Safety
    /// No two calls at once may be for the same panel, and the processor must be of `kind`.
    pub(super) unsafe fn panels(&self, kind: Kind, panels: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe {
            match kind {
                Kind::Portable => self.panels_by::<Portable>(panels),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => self.panels_avx2(panels),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => self.panels_avx512(panels),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn panels_avx2(&self, panels: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe { self.panels_by::<Avx2>(panels) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn panels_avx512(&self, panels: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe { self.panels_by::<Avx512>(panels) }
    }

    #[inline(always)]
    unsafe fn panels_by<L: Lanes>(&self, panels: Range<usize>) {
        let of_panel = self.matrix.blocks * BLOCK * PANEL / 2;
        let unpacks = self.rounded.rows >= 2 * L::ROWS;
        let mut scratch = if unpacks { SCRATCH.take() } else { Vec::new() };
        for panel in panels {
            let codes = &self.matrix.codes[panel * of_panel..][..of_panel];
            let scales = &self.matrix.scales[panel * self.matrix.blocks * PANEL..];
            if unpacks {
                scratch.resize(2 * of_panel, 0);
                // SAFETY: as the caller promises.
                unsafe { unpack::<L>(codes, &mut scratch) };
            }
            let mut row = 0;
            while row < self.rounded.rows {
                let rows = (self.rounded.rows - row).min(L::ROWS);
                // SAFETY: as the caller promises.
                unsafe {
                    if unpacks {
                        self.rows::<L, false>(panel, [row, rows], &scratch, scales);
                    } else {
                        self.rows::<L, true>(panel, [row, rows], codes, scales);
                    }
                }
                row += rows;
            }
        }
        if unpacks {
            SCRATCH.set(scratch);
        }
    }

    #[inline(always)]
    unsafe fn rows<L: Lanes, const PACKED: bool>(
        &self,
        panel: usize,
        [row, rows]: [usize; 2],
        weights: &[u8],
        scales: &[f16],
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            match rows {
                1 => self.tile::<L, 1, PACKED>(panel, row, weights, scales),
                2 => self.tile::<L, 2, PACKED>(panel, row, weights, scales),
                3 => self.tile::<L, 3, PACKED>(panel, row, weights, scales),
                4 => self.tile::<L, 4, PACKED>(panel, row, weights, scales),
                5 => self.tile::<L, 5, PACKED>(panel, row, weights, scales),
                _ => self.tile::<L, MOST_ROWS, PACKED>(panel, row, weights, scales),
            }
        }
    }

    /// `R` rows from `row` on, by the columns of a panel.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize, const PACKED: bool>(
        &self,
        panel: usize,
        row: usize,
        weights: &[u8],
        scales: &[f16],
    ) {
        let blocks = self.matrix.blocks;
        let of_block = if PACKED { BLOCK * PANEL / 2 } else { BLOCK * PANEL };
        assert!(weights.len() >= blocks * of_block && scales.len() >= blocks * PANEL, "a panel of weights");
        let values = self.rounded.values[row * blocks * BLOCK..][..R * blocks * BLOCK].as_ptr();
        let row_scales = self.rounded.scales[row * blocks..][..R * blocks].as_ptr();
        let starts = self.rounded.starts[row * blocks..][..R * blocks].as_ptr();
        // SAFETY: all that is read lies within the lengths asserted above, block by block; the instructions are there,
        // as the caller promises.
        let totals = unsafe {
            let mut totals = [[L::zeros(); 2]; R];
            for block in 0..blocks {
                let mut sums = [[L::sums(0); 2]; R];
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [L::sums(*starts.add(r * blocks + block)); 2];
                }
                let weights = weights.as_ptr().add(block * of_block);
                for four in 0..BLOCK / 4 {
                    let [low, high] = if PACKED {
                        let at = weights.add(four * 64);
                        if R == 1 {
                            L::fetch(at.wrapping_add(AHEAD));
                        }
                        L::halves(L::bytes(at))
                    } else {
                        [L::bytes(weights.add(four * 128)), L::bytes(weights.add(four * 128 + 64))]
                    };
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let at = values.add((r * blocks + block) * BLOCK + four * 4);
                        let activations = at.cast::<i32>().read_unaligned();
                        *sums = [L::dot(sums[0], low, activations), L::dot(sums[1], high, activations)];
                    }
                }
                let scales = scales.as_ptr().add(block * PANEL);
                let scales = [L::halfs(scales), L::halfs(scales.add(16))];
                for (r, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                    let scale = *row_scales.add(r * blocks + block);
                    totals[0] = L::add(totals[0], sums[0], L::times(scales[0], scale));
                    totals[1] = L::add(totals[1], sums[1], L::times(scales[1], scale));
                }
            }
            totals
        };
        let columns = (self.matrix.columns - panel * PANEL).min(PANEL);
        for (r, [low, high]) in totals.into_iter().enumerate() {
            // SAFETY: the panel's columns of this row, which no other call is about, as the caller promises.
            let output =
                unsafe { self.output.part((row + r) * self.matrix.columns + panel * PANEL, columns) };
            let mut whole = [0f32; PANEL];
            // SAFETY: there is room for 32; the instructions are there, as the caller promises.
            unsafe {
                L::put(low, whole.as_mut_ptr());
                L::put(high, whole.as_mut_ptr().add(16));
            }
            output.copy_from_slice(&whole[..columns]);
        }
    }
}

/// How far ahead of what is read the next is asked for, in bytes: reading one row's weights once is all that decode does.
const AHEAD: usize = 1024;

thread_local! {
    /// A panel, unpacked; kept, because mapping it anew for each would cost more than filling it.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Spreads `codes`, two a byte, over twice as many bytes: 64 low halves, 64 high ones, and so on.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn unpack<L: Lanes>(codes: &[u8], bytes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks::<64>().0.iter().zip(bytes.as_chunks_mut::<128>().0) {
        // SAFETY: 64 bytes are read, 128 written; the instructions are there, as the caller promises.
        unsafe {
            let [low, high] = L::halves(L::bytes(codes.as_ptr()));
            L::put_bytes(low, bytes.as_mut_ptr());
            L::put_bytes(high, bytes.as_mut_ptr().add(64));
        }
    }
}
