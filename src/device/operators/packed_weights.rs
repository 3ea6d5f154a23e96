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

use super::{
    huge_pages::{HugePages, LINE, PackedSlice, PackedStorage},
    packed_file::PackedFile,
};

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
    pub(super) codes: PackedSlice<u8>,
    pub(super) scales: PackedSlice<f16>,
    pub(super) zeros: Option<PackedSlice<i8>>,
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
        let shape = PackedShape {
            bits: source.bits,
            columns: source.columns,
            depth: source.depth,
            has_zeros: !source.zero_points.is_empty(),
        };
        let [codes, scales, zeros] = shape.lengths()?;
        let unit = unit(source.scales);
        let mut packed = HugePages::take(codes, store)?;
        fill_codes(source, &mut packed);
        let codes = packed.freeze();
        let mut packed = HugePages::take(scales, store)?;
        fill_scales(source, unit, &mut packed);
        let scales = packed.freeze();
        let zeros = if shape.has_zeros {
            let mut packed = HugePages::take(zeros, store)?;
            fill_zeros(source, &mut packed);
            Some(packed.freeze())
        } else {
            None
        };
        Some(Self::of(shape, unit, (codes, scales, zeros)))
    }

    /// The matrix that begins at the byte `start` of `file`, as [`parts`](Self::parts) were written, each at a
    /// [multiple](PackedShape::ALIGNMENT) of bytes; `None` where the file has no room for it.
    #[must_use]
    pub fn in_file(file: &PackedFile, shape: PackedShape, unit: f32, start: usize) -> Option<Self> {
        let [codes, scales, zeros] = shape.lengths()?;
        let after = |start: usize, bytes: usize| start.checked_add(bytes)?.checked_next_multiple_of(LINE);
        let at_scales = after(start, codes)?;
        let at_zeros = after(at_scales, scales.checked_mul(size_of::<f16>())?)?;
        let zeros =
            if shape.has_zeros { Some(PackedSlice::of(&file.mapping, at_zeros, zeros)?) } else { None };
        let codes = PackedSlice::of(&file.mapping, start, codes)?;
        let scales = PackedSlice::of(&file.mapping, at_scales, scales)?;
        Some(Self::of(shape, unit, (codes, scales, zeros)))
    }

    /// A copy in memory of `store`; `None` where there is none.
    #[must_use]
    pub fn copied(&self, store: &mut PackedStorage) -> Option<Self> {
        let zeros = match &self.zeros {
            Some(zeros) => Some(zeros.copied(store)?),
            None => None,
        };
        let arrays = (self.codes.copied(store)?, self.scales.copied(store)?, zeros);
        Some(Self::of(self.shape(), self.unit, arrays))
    }

    fn of(shape: PackedShape, unit: f32, arrays: Arrays) -> Self {
        let PackedShape { bits, columns, depth, .. } = shape;
        let (codes, scales, zeros) = arrays;
        Self { bits, columns, depth, blocks: depth.div_ceil(BLOCK), codes, scales, zeros, unit }
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> PackedShape {
        let Self { bits, columns, depth, .. } = *self;
        PackedShape { bits, columns, depth, has_zeros: self.zeros.is_some() }
    }

    /// What every scale has been divided by.
    #[must_use]
    pub fn unit(&self) -> f32 {
        self.unit
    }

    /// Codes, scales and zero points as bytes, in the processor's order; the last is empty where there are none.
    #[must_use]
    pub fn parts(&self) -> [&[u8]; 3] {
        let zeros = self.zeros.as_ref().map_or(&[][..], |zeros| &**zeros);
        [&self.codes, bytemuck::cast_slice(&self.scales), bytemuck::cast_slice(zeros)]
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

/// Codes, scales and zero points.
type Arrays = (PackedSlice<u8>, PackedSlice<f16>, Option<PackedSlice<i8>>);

/// What the sizes of a packed matrix follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedShape {
    /// Bits of a weight.
    pub bits: WeightBits,
    /// Columns of the product.
    pub columns: usize,
    /// Activations of a row.
    pub depth: usize,
    /// Whether blocks have zero points.
    pub has_zeros: bool,
}

impl PackedShape {
    /// In a file, each part of a matrix begins at a multiple of this many bytes.
    pub const ALIGNMENT: usize = LINE;

    /// Numbers of code bytes, scales and zero points.
    fn lengths(&self) -> Option<[usize; 3]> {
        let blocks = self.columns.div_ceil(PANEL).checked_mul(self.depth.div_ceil(BLOCK))?;
        let scales = blocks.checked_mul(PANEL)?;
        let codes = blocks.checked_mul(self.bits.bytes(BLOCK * PANEL))?;
        Some([codes, scales, if self.has_zeros { scales } else { 0 }])
    }

    /// Bytes of the matrix without padding; `None` where that is more than a number holds.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        let [codes, scales, zeros] = self.lengths()?;
        codes.checked_add(scales.checked_mul(size_of::<f16>())?)?.checked_add(zeros)
    }
}

fn fill_codes(source: QuantizedBlocks, packed: &mut [u8]) {
    use rayon::prelude::*;
    let bits = source.bits;
    let of_column = bits.bytes(source.depth.div_ceil(BLOCK) * BLOCK);
    let of_panel = of_column * PANEL;
    let source_column = source.blocks() * bits.bytes(source.block);
    // Columns that fill the last panel: zeros.
    let zero = match bits {
        WeightBits::Four => 0x88,
        WeightBits::Eight => 0x80,
    };
    let none = vec![zero; if source.columns.is_multiple_of(PANEL) { 0 } else { of_column }];
    packed.par_chunks_mut(of_panel).enumerate().for_each(|(panel, codes)| {
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

impl QuantizedBlocks<'_> {
    /// The column and the block of the source that column `c` of number `i` of the packed panels' blocks of 32 comes from;
    /// `None` for columns that fill the last panel.
    fn place(&self, i: usize, c: usize) -> Option<(usize, usize)> {
        let blocks = self.depth.div_ceil(BLOCK);
        let column = i / blocks * PANEL + c;
        (column < self.columns).then_some((column, i % blocks * BLOCK / self.block))
    }
}

fn fill_scales(source: QuantizedBlocks, unit: f32, packed: &mut [f16]) {
    let of_column = source.blocks();
    for (i, scales) in packed.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
        let scale = |c| {
            source.place(i, c).map_or(0.0, |(column, block)| source.scales[column * of_column + block] / unit)
        };
        scales.convert_from_f32_slice(&std::array::from_fn::<f32, PANEL, _>(scale));
    }
}

fn fill_zeros(source: QuantizedBlocks, packed: &mut [i8]) {
    let of_column = source.zero_point_bytes();
    let middle = source.bits.middle().to_le_bytes()[0];
    for (i, zeros) in packed.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
        for (c, zero) in zeros.iter_mut().enumerate() {
            *zero = source.place(i, c).map_or(0, |(column, block)| {
                let code = source.bits.code(&source.zero_points[column * of_column..][..of_column], block);
                // From -128 to 127.
                code.wrapping_sub(middle).cast_signed()
            });
        }
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
