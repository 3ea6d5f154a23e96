//! Block-wise quantization, as ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized` decode it.
//!
//! A block of consecutive weights of a row shares a scale and a zero point; a weight is an unsigned code, decoded as
//! `(code - zero_point) · scale`. Symmetric quantization has the zero point in the middle of the codes (8 of 16, 128 of
//! 256) and stores none. Its range is lopsided: one more step below zero than above. Scaling the weight of greatest
//! magnitude, with its sign, to the lowest code (as llama.cpp's `Q4_0` does) therefore uses the whole range. Asymmetric
//! quantization stores a zero point a block, a code like the others, so its range goes from the least weight to the
//! greatest.
//!
//! These "plain" ranges only think of one weight or two. We try a few around them, refit each scale by least squares to
//! the codes that it gives, and keep the one with the least squared error. Refitting and rounding again never increases
//! the error, and the plain range is among the candidates, as are the symmetric ones among the asymmetric, so neither
//! is worse than the scheme that it extends. The squared error, relative to plain symmetric rounding:
//!
//! | | int4, 32 | 64 | 128 | int8, 32 | 64 | 128 |
//! |---|---|---|---|---|---|---|
//! | symmetric, normal weights | 0.89 | 0.90 | 0.88 | 0.87 | 0.91 | 0.93 |
//! | asymmetric, normal weights | 0.79 | 0.84 | 0.85 | 0.70 | 0.76 | 0.80 |
//! | plain asymmetric, normal weights | 0.88 | 0.92 | 0.95 | 0.80 | 0.83 | 0.85 |
//! | symmetric, the demonstration model | 0.89 | 0.90 | 0.89 | 0.87 | 0.90 | 0.92 |
//! | asymmetric, the demonstration model | 0.80 | 0.85 | 0.86 | 0.70 | 0.77 | 0.80 |
//!
//! Four times as many candidates gain less than 0.01 with four bits.

mod block;
mod feedback;
mod scale_type;
#[cfg(test)]
mod tests;

use ndarray::ArrayView2;

use super::{
    known_blocks::KnownBlocks,
    stored_type::{SCALE_BLOCK, StoredType},
};
use block::{Block, Grid, Search};
pub(super) use feedback::Feedback;
pub(super) use scale_type::ScaleType;

/// How weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantizer {
    pub bits: Bits,
    /// Consecutive weights that share a scale: 32, 64 or 128.
    pub block_size: usize,
    pub zero_points: ZeroPoints,
    pub scale_type: ScaleType,
    pub rounding: Rounding,
    /// Whether a number is added to the decoded weights of each block, as in GGML's Q4_1 and Q4_K.
    pub has_offsets: bool,
}

/// The code of zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPoints {
    /// The middle code: symmetric quantization.
    #[default]
    Middle,
    /// Where it suits each block, stored beside the scale: asymmetric quantization.
    PerBlock,
}

/// How the range of a block is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// For the least squared error.
    #[default]
    LeastError,
    /// So that the greatest weights just fit: only there to measure what the other gains.
    Plain,
}

/// Bits of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bits {
    Four,
    Eight,
}

impl Bits {
    pub(super) const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The code of zero, unless a block has a zero point.
    const fn middle(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }

    /// The greatest code.
    const fn max_code(self) -> u8 {
        match self {
            Self::Four => 15,
            Self::Eight => 255,
        }
    }

    /// Bytes of `codes` codes.
    pub(super) const fn bytes(self, codes: usize) -> usize {
        match self {
            Self::Four => codes.div_ceil(2),
            Self::Eight => codes,
        }
    }

    /// Fills `bytes` with as many of `codes` as it has room for, the first of a pair in the low half of its byte.
    fn pack(self, codes: &[u8], bytes: &mut [u8]) {
        match self {
            Self::Eight => bytes.copy_from_slice(&codes[..bytes.len()]),
            Self::Four => {
                for (byte, pair) in bytes.iter_mut().zip(codes.chunks(2)) {
                    *byte = pair[0] | pair.get(1).map_or(0, |high| high << 4);
                }
            }
        }
    }
}

/// The output of a quantized row.
pub(super) struct PackedRow<'a> {
    /// Padded to whole blocks or not.
    pub codes: &'a mut [u8],
    /// One for each block.
    pub scales: &'a mut [f32],
    /// One a block, packed as codes are, in whole bytes; empty when all are in the middle.
    pub zero_points: &'a mut [u8],
    /// One for each block; empty without offsets.
    pub offsets: &'a mut [f32],
}

/// The shortest block.
const MIN_BLOCK: usize = 32;

impl Quantizer {
    /// The same with shorter blocks where rows of `cols` weights would not end with a block: the last block would be padded, and
    /// a head could not share the embedding's bytes.
    pub(super) fn fitting(self, cols: usize) -> Self {
        let mut block_size = self.block_size;
        while block_size > MIN_BLOCK && !cols.is_multiple_of(block_size) {
            block_size /= 2;
        }
        Self { block_size, ..self }
    }

    /// Whether its errors are large enough that feedback is worth its time.
    pub(super) fn takes_feedback(self) -> bool {
        self.bits == Bits::Four && self.rounding == Rounding::LeastError && !self.has_offsets
    }

    /// Blocks in a row of `cols` weights; the last may be short.
    pub(super) const fn blocks(self, cols: usize) -> usize {
        cols.div_ceil(self.block_size)
    }

    /// Bytes of a row of whole blocks, which is how `MatMulNBits` wants it.
    pub(super) const fn padded_row_bytes(self, cols: usize) -> usize {
        self.bits.bytes(self.blocks(cols) * self.block_size)
    }

    /// Bytes of a row's zero points.
    pub(super) const fn zero_point_row_bytes(self, cols: usize) -> usize {
        match self.zero_points {
            ZeroPoints::Middle => 0,
            ZeroPoints::PerBlock => self.bits.bytes(self.blocks(cols)),
        }
    }

    /// Whether `stored` has the same blocks: then its scales give its own codes again, without another rounding.
    pub(super) fn repacks(self, stored: StoredType) -> bool {
        let (bits, has_offsets) = match stored {
            StoredType::Q4_0 => (Bits::Four, false),
            StoredType::Q4_1 | StoredType::Q4_K => (Bits::Four, true),
            StoredType::Q8_0 => (Bits::Eight, false),
            _ => return false,
        };
        bits == self.bits
            && has_offsets == self.has_offsets
            && self.block_size == SCALE_BLOCK
            && self.zero_points == ZeroPoints::Middle
    }

    /// `count` blocks of zeros.
    pub(super) fn zero_blocks(self, count: usize) -> KnownBlocks {
        KnownBlocks { scales: vec![0.0; count], offsets: vec![0.0; if self.has_offsets { count } else { 0 }] }
    }

    /// The same with offsets instead of zero points.
    pub(super) fn with_offsets(self) -> Self {
        Self { zero_points: ZeroPoints::Middle, has_offsets: true, ..self }
    }

    /// How many of its blocks a group of `size` numbers of `bits` bits around the middle is, if whole ones.
    pub(super) fn blocks_of_group(self, bits: u32, size: usize) -> Option<usize> {
        let is_same = matches!((self.bits, bits), (Bits::Four, 4) | (Bits::Eight, 8));
        let is_whole = self.zero_points == ZeroPoints::Middle
            && !self.has_offsets
            && size.is_multiple_of(self.block_size);
        (is_same && is_whole).then_some(size / self.block_size)
    }

    /// Quantizes one row; with `known` blocks if there are any.
    pub(super) fn quantize_row(self, row: &[f32], known: Option<&KnownBlocks>, packed: PackedRow) {
        let PackedRow { codes, scales, zero_points, offsets } = packed;
        let mut row_zero_points = Vec::with_capacity(scales.len());
        let blocks = row.chunks(self.block_size).zip(codes.chunks_mut(self.bits.bytes(self.block_size)));
        for (number, ((weights, codes), scale)) in blocks.zip(scales).enumerate() {
            let mut block = Block::of(weights, &[]);
            let grid = match known {
                Some(known) => Grid { scale: known.scales[number], zero_point: self.bits.middle() },
                None => self.grid(&mut block),
            };
            if let Some(offset) = known.and_then(|known| known.offsets.get(number)) {
                block.subtract(*offset);
                offsets[number] = *offset;
            }
            self.bits.pack(&block.codes(grid, self.bits), codes);
            *scale = grid.scale;
            row_zero_points.push(grid.zero_point);
        }
        self.bits.pack(&row_zero_points, zero_points);
    }

    /// Quantizes `rows`, `[rows, columns]`, with [`Feedback`] among their columns. `packed` has an element for each row.
    pub(super) fn quantize_rows(
        self,
        rows: ArrayView2<f32>,
        feedback: &Feedback,
        mut packed: Vec<PackedRow>,
    ) {
        let blocks = self.blocks(rows.ncols());
        let mut grids = Vec::with_capacity(rows.nrows() * blocks);
        for row in rows.rows() {
            let row = row.to_vec();
            let each = row.chunks(self.block_size).zip(feedback.importance().chunks(self.block_size));
            grids.extend(each.map(|(weights, importance)| self.grid(&mut Block::of(weights, importance))));
        }
        let padded = blocks * self.block_size;
        let mut codes = vec![0; rows.nrows() * padded];
        for (codes, grid) in codes.chunks_mut(self.block_size).zip(&grids) {
            codes.fill(grid.zero_point);
        }
        feedback.round_rows(rows, |row, column, target| {
            let grid = grids[row * blocks + column / self.block_size];
            let code = grid.code(target, self.bits);
            codes[row * padded + column] = code;
            grid.value(code)
        });
        for ((packed, codes), grids) in
            packed.iter_mut().zip(codes.chunks_exact(padded)).zip(grids.chunks_exact(blocks))
        {
            self.bits.pack(codes, packed.codes);
            for (scale, grid) in packed.scales.iter_mut().zip(grids) {
                *scale = grid.scale;
            }
            let zero_points: Vec<u8> = grids.iter().map(|grid| grid.zero_point).collect();
            self.bits.pack(&zero_points, packed.zero_points);
        }
    }

    fn grid(self, block: &mut Block) -> Grid {
        let search = Search { bits: self.bits, zero_points: self.zero_points, scale_type: self.scale_type };
        match self.rounding {
            Rounding::Plain => block.plain_grid(search),
            Rounding::LeastError => block.best_grid(search),
        }
    }
}
