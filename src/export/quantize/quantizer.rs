//! Quantizing the rows of a matrix.

use ndarray::ArrayView2;

use super::{
    block::{Block, Grid, Search},
    codes::{Bits, ZeroPoints},
    feedback::Feedback,
    scale_type::ScaleType,
};
use crate::export::{
    known_blocks::KnownBlocks,
    stored_type::{SCALE_BLOCK, StoredType},
};

/// Parameters of the quantization in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::export) struct Quantizer {
    pub bits: Bits,
    /// Consecutive weights that share a scale: 32, 64 or 128.
    pub block_size: usize,
    pub zero_points: ZeroPoints,
    pub scale_type: ScaleType,
    pub rounding: Rounding,
    /// Whether a number is added to the decoded weights of each block, as in GGML's Q4_1 and Q4_K.
    pub has_offsets: bool,
}

/// How the scale of a block is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// With the least squared error.
    #[default]
    LeastError,
    /// The extreme weights get the extreme codes. Only a baseline for measurements.
    Plain,
}

/// The output of a quantized row.
pub(in crate::export) struct PackedRow<'a> {
    /// May end after the last code of the row, or after its last block.
    pub codes: &'a mut [u8],
    /// One for each block.
    pub scales: &'a mut [f32],
    /// One for each block, packed as codes are, in whole bytes; empty when all are in the middle.
    pub zero_points: &'a mut [u8],
    /// One for each block; empty without offsets.
    pub offsets: &'a mut [f32],
}

/// The shortest block.
const MIN_BLOCK: usize = 32;

impl Quantizer {
    /// The same with shorter blocks where rows of `cols` weights would not end with a block: the last block would be padded, and
    /// a head could not share the embedding's bytes.
    pub(in crate::export) fn fitting(self, cols: usize) -> Self {
        let mut block_size = self.block_size;
        while block_size > MIN_BLOCK && !cols.is_multiple_of(block_size) {
            block_size /= 2;
        }
        Self { block_size, ..self }
    }

    /// The same with other scales.
    pub(in crate::export) fn with_scales(self, scale_type: ScaleType) -> Self {
        Self { scale_type, ..self }
    }

    /// Whether its errors are large enough that feedback is worth its time.
    pub(in crate::export) fn takes_feedback(self) -> bool {
        self.bits == Bits::Four && self.rounding == Rounding::LeastError && !self.has_offsets
    }

    /// Blocks in a row of `cols` weights; the last may be short.
    pub(in crate::export) const fn blocks(self, cols: usize) -> usize {
        cols.div_ceil(self.block_size)
    }

    /// Bytes of a row of whole blocks, which is how `MatMulNBits` wants it.
    pub(in crate::export) const fn padded_row_bytes(self, cols: usize) -> usize {
        self.bits.bytes(self.blocks(cols) * self.block_size)
    }

    /// Bytes of a row's zero points.
    pub(in crate::export) const fn zero_point_row_bytes(self, cols: usize) -> usize {
        match self.zero_points {
            ZeroPoints::Middle => 0,
            ZeroPoints::PerBlock => self.bits.bytes(self.blocks(cols)),
        }
    }

    /// Whether `stored` has the same blocks: then its scales give its own codes again, without another rounding.
    pub(in crate::export) fn repacks(self, stored: StoredType) -> bool {
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
    pub(in crate::export) fn zero_blocks(self, count: usize) -> KnownBlocks {
        KnownBlocks { scales: vec![0.0; count], offsets: vec![0.0; if self.has_offsets { count } else { 0 }] }
    }

    /// The same with offsets instead of zero points.
    pub(in crate::export) fn with_offsets(self) -> Self {
        Self { zero_points: ZeroPoints::Middle, has_offsets: true, ..self }
    }

    /// Number of blocks in a group of `size` codes of another format with `bits` bits around the middle; `None` unless the group is a
    /// whole number of blocks of the same kind.
    pub(in crate::export) fn blocks_of_group(self, bits: u32, size: usize) -> Option<usize> {
        let is_same = matches!((self.bits, bits), (Bits::Four, 4) | (Bits::Eight, 8));
        let is_whole = self.zero_points == ZeroPoints::Middle
            && !self.has_offsets
            && size.is_multiple_of(self.block_size);
        (is_same && is_whole).then_some(size / self.block_size)
    }

    /// Quantizes one row; with `known` blocks if there are any.
    pub(in crate::export) fn quantize_row(self, row: &[f32], known: Option<&KnownBlocks>, packed: PackedRow) {
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
    pub(in crate::export) fn quantize_rows(
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
