//! Quantized weights, laid out for products.
//!
//! # Layout
//! Columns of the product (rows of the matrix, as checkpoints have it) in panels of 32, because those are two registers'
//! worth of sums. Of a panel, four consecutive weights of each column lie together, as one instruction multiplies four:
//!
//! ```text
//! int4    [panel][k / 4][16][4]     low half: column c of the panel, high half: column c + 16
//! int8    [panel][k / 4][2][16][4]  columns 0 to 15, then columns 16 to 31
//! scales  [panel][k / 32][32]       float16
//! zeros   [panel][k / 32][32]       int8, only of weights with zero points: zero point - middle
//! ```
//!
//! So 4.5 or 8.5 bits a weight, read from the first byte to the last by every product, whether of one row or of many. A
//! code means `code - middle` (8 of 16, 128 of 256) or `code - zero point`; the middle is part of a sum's initial value.
//! Longer blocks are blocks of 32 with the same scale.

use half::{f16, slice::HalfFloatSliceExt};

use super::huge_pages::{HugePages, PackedStorage};

/// Weights that share a scale.
pub(super) const BLOCK: usize = 32;

/// Columns of the product in a panel.
pub(super) const PANEL: usize = 32;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightBits {
    /// Two codes a byte.
    Four,
    /// One code a byte.
    Eight,
}

impl WeightBits {
    /// The width for `bits` bits; `None` where it is neither four nor eight.
    #[must_use]
    pub const fn of(bits: usize) -> Option<Self> {
        match bits {
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            _ => None,
        }
    }

    /// The code of zero in weights without zero points.
    pub(super) const fn middle(self) -> i32 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    /// Bytes of an even number of codes.
    pub(super) const fn bytes(self, codes: usize) -> usize {
        match self {
            Self::Four => codes / 2,
            Self::Eight => codes,
        }
    }

    /// Code number `at` of `codes`.
    const fn code(self, codes: &[u8], at: usize) -> u8 {
        match self {
            Self::Four => (codes[at / 2] >> (at % 2 * 4)) & 15,
            Self::Eight => codes[at],
        }
    }
}

/// Weights as `MatMulNBits` has them.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedBlocks<'a> {
    /// Bits of a weight.
    pub bits: WeightBits,
    /// Columns of the product.
    pub columns: usize,
    /// Weights of each column.
    pub depth: usize,
    /// Weights that share a scale: a multiple of 32.
    pub block: usize,
    /// `[columns, blocks, block]` codes, packed as `bits` says, the first of two in the low half of a byte.
    pub codes: &'a [u8],
    /// `[columns, blocks]`.
    pub scales: &'a [f32],
    /// `[columns, blocks]` codes, each column in whole bytes; empty where all are in the middle.
    pub zero_points: &'a [u8],
}

impl QuantizedBlocks<'_> {
    /// Blocks of a column.
    fn blocks(&self) -> usize {
        self.depth.div_ceil(self.block.max(1))
    }

    /// Bytes of a column's zero points.
    fn zero_point_bytes(&self) -> usize {
        match self.bits {
            WeightBits::Four => self.blocks().div_ceil(2),
            WeightBits::Eight => self.blocks(),
        }
    }

    /// Whether all sizes belong together.
    fn is_consistent(&self) -> Option<bool> {
        let Self { columns, depth, block, bits, codes, scales, zero_points } = *self;
        let blocks = columns.checked_mul(self.blocks())?;
        let is_whole = block > 0 && block.is_multiple_of(BLOCK) && columns > 0 && depth > 0;
        Some(
            is_whole
                && codes.len() == blocks.checked_mul(bits.bytes(block))?
                && scales.len() == blocks
                && scales.iter().all(|scale| scale.is_finite())
                && (zero_points.is_empty() || zero_points.len() == columns * self.zero_point_bytes()),
        )
    }
}

/// A matrix to multiply with.
#[derive(Debug)]
pub struct PackedWeights {
    pub(super) bits: WeightBits,
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Blocks of 32 in a column.
    pub(super) blocks: usize,
    pub(super) codes: HugePages<u8>,
    pub(super) scales: HugePages<f16>,
    pub(super) zeros: Option<HugePages<i8>>,
    /// What every scale has been divided by, so that float16 has room for them: a power of two.
    pub(super) unit: f32,
}

impl PackedWeights {
    /// Lays `source` out in memory of `store`; `None` where its sizes do not belong together, or there is none.
    #[must_use]
    pub fn new(source: QuantizedBlocks, store: &mut PackedStorage) -> Option<Self> {
        if !source.is_consistent()? {
            return None;
        }
        let QuantizedBlocks { columns, depth, bits, .. } = source;
        let (blocks, panels) = (depth.div_ceil(BLOCK), columns.div_ceil(PANEL));
        let zeros = if source.zero_points.is_empty() {
            None
        } else {
            Some(HugePages::zeroed(panels * blocks * PANEL, store)?)
        };
        let mut matrix = Self {
            bits,
            columns,
            depth,
            blocks,
            codes: HugePages::zeroed(panels * blocks * bits.bytes(BLOCK * PANEL), store)?,
            scales: HugePages::zeroed(panels * blocks * PANEL, store)?,
            zeros,
            unit: unit(source.scales),
        };
        matrix.fill_codes(source);
        matrix.fill_scales(source);
        Some(matrix)
    }

    fn fill_codes(&mut self, source: QuantizedBlocks) {
        use rayon::prelude::*;
        let (bits, of_column) = (self.bits, self.bits.bytes(self.blocks * BLOCK));
        let of_panel = of_column * PANEL;
        let source_column = source.blocks() * bits.bytes(source.block);
        // Columns that fill the last panel: zeros.
        let zero = match bits {
            WeightBits::Four => 0x88,
            WeightBits::Eight => 0x80,
        };
        let none = vec![zero; if source.columns.is_multiple_of(PANEL) { 0 } else { of_column }];
        self.codes.par_chunks_mut(of_panel).enumerate().for_each(|(panel, codes)| {
            let row = |c: usize| match panel * PANEL + c {
                column if column < source.columns => &source.codes[column * source_column..][..of_column],
                _ => &none[..],
            };
            for lane in 0..PANEL / 2 {
                let two = [row(lane), row(lane + PANEL / 2)];
                match bits {
                    WeightBits::Four => interleave(two, lane, codes),
                    WeightBits::Eight => interleave_bytes(two, lane, codes),
                }
            }
        });
    }

    fn fill_scales(&mut self, source: QuantizedBlocks) {
        let (blocks, source_blocks, unit) = (self.blocks, source.blocks(), self.unit);
        let at = |panel: usize, block: usize, c: usize| {
            let column = panel * PANEL + c;
            (column < source.columns).then_some((column, block * BLOCK / source.block))
        };
        for (i, scales) in self.scales.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let scale = |c| {
                at(i / blocks, i % blocks, c)
                    .map_or(0.0, |(column, block)| source.scales[column * source_blocks + block] / unit)
            };
            scales.convert_from_f32_slice(&std::array::from_fn::<f32, PANEL, _>(scale));
        }
        let of_column = source.zero_point_bytes();
        for (i, zeros) in
            self.zeros.iter_mut().flat_map(|zeros| zeros.as_chunks_mut::<PANEL>().0.iter_mut()).enumerate()
        {
            for (c, zero) in zeros.iter_mut().enumerate() {
                let Some((column, block)) = at(i / blocks, i % blocks, c) else { continue };
                let code = self.bits.code(&source.zero_points[column * of_column..][..of_column], block);
                // From -128 to 127.
                *zero = code.wrapping_sub(self.bits.middle().to_le_bytes()[0]).cast_signed();
            }
        }
    }

    /// Columns of the product.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Activations of a row.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(&*self.scales) + self.zeros.as_ref().map_or(0, |zeros| zeros.len())
    }

    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }
}

/// The power of two that brings the greatest of `scales` just below the greatest float16, where those are finest relative
/// to the least.
fn unit(scales: &[f32]) -> f32 {
    let most = scales.iter().fold(0f32, |most, scale| most.max(scale.abs()));
    if most < f32::MIN_POSITIVE { 1.0 } else { (most.log2().ceil() - 15.0).exp2() }
}

/// Puts the codes of two columns where a panel has those of `lane`: the first in the low halves, the second in the high
/// ones.
fn interleave([low, high]: [&[u8]; 2], lane: usize, codes: &mut [u8]) {
    let columns = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (fours, (low, high)) in codes.as_chunks_mut::<128>().0.iter_mut().zip(columns) {
        let eight = (spread(*low) | spread(*high) << 4).to_le_bytes();
        fours[lane * 4..][..4].copy_from_slice(&eight[..4]);
        fours[64 + lane * 4..][..4].copy_from_slice(&eight[4..]);
    }
}

/// As [`interleave`], of codes that take a byte each.
fn interleave_bytes([first, second]: [&[u8]; 2], lane: usize, codes: &mut [u8]) {
    let columns = first.as_chunks::<4>().0.iter().zip(second.as_chunks::<4>().0);
    for (fours, (first, second)) in codes.as_chunks_mut::<128>().0.iter_mut().zip(columns) {
        fours[lane * 4..][..4].copy_from_slice(first);
        fours[64 + lane * 4..][..4].copy_from_slice(second);
    }
}

/// Eight codes, two a byte, as eight bytes.
fn spread(codes: [u8; 4]) -> u64 {
    let codes = u64::from(u32::from_le_bytes(codes));
    let pairs = (codes | codes << 16) & 0x0000_FFFF_0000_FFFF;
    let bytes = (pairs | pairs << 8) & 0x00FF_00FF_00FF_00FF;
    (bytes | bytes << 4) & 0x0F0F_0F0F_0F0F_0F0F
}
