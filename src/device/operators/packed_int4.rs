//! int4 weights, laid out for products.
//!
//! # Layout
//! Columns of the product (rows of the matrix, as checkpoints have it) in panels of 32, because those are two registers'
//! worth of sums. Of a panel, four consecutive weights of each column lie together, as one instruction multiplies four:
//!
//! ```text
//! codes   [panel][k / 4][16][4]  low half: column c of the panel, high half: column c + 16
//! scales  [panel][k / 32][32]    float16
//! ```
//!
//! So 4.5 bits a weight, read from the first byte to the last by every product, whether of one row or of many. A code
//! is `0..=15` and means `code - 8`; the eight is part of a sum's initial value. Longer blocks are blocks of 32 with the
//! same scale.

use half::{f16, slice::HalfFloatSliceExt};

use super::huge_pages::{HugePages, PackedStorage};

/// Weights that share a scale.
pub(super) const BLOCK: usize = 32;

/// Columns of the product in a panel.
pub(super) const PANEL: usize = 32;

/// Weights as `MatMulNBits` has them.
#[derive(Clone, Copy, Debug)]
pub struct Int4Blocks<'a> {
    /// Columns of the product.
    pub columns: usize,
    /// Weights of each column.
    pub depth: usize,
    /// Weights that share a scale: a multiple of 32.
    pub block: usize,
    /// `[columns, blocks, block / 2]`, two codes a byte, the first in its low half.
    pub codes: &'a [u8],
    /// `[columns, blocks]`.
    pub scales: &'a [f32],
}

/// A matrix to multiply with.
#[derive(Debug)]
pub struct PackedInt4 {
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Blocks of 32 in a column.
    pub(super) blocks: usize,
    pub(super) codes: HugePages<u8>,
    pub(super) scales: HugePages<f16>,
    /// What every scale has been divided by, so that float16 has room for them: a power of two.
    pub(super) unit: f32,
}

impl PackedInt4 {
    /// Lays `source` out in memory of `store`; `None` where its sizes do not belong together, or there is none.
    #[must_use]
    pub fn new(source: Int4Blocks, store: &mut PackedStorage) -> Option<Self> {
        let Int4Blocks { columns, depth, block, codes, scales } = source;
        let source_blocks = depth.div_ceil(block.max(1));
        let fits = block.is_multiple_of(BLOCK)
            && block > 0
            && codes.len() == columns.checked_mul(source_blocks)?.checked_mul(block / 2)?
            && scales.len() == columns * source_blocks
            && scales.iter().all(|scale| scale.is_finite());
        if !fits || columns == 0 || depth == 0 {
            return None;
        }
        let blocks = depth.div_ceil(BLOCK);
        let panels = columns.div_ceil(PANEL);
        let unit = unit(scales);
        let mut matrix = Self {
            columns,
            depth,
            blocks,
            codes: HugePages::zeroed(panels * blocks * BLOCK * PANEL / 2, store)?,
            scales: HugePages::zeroed(panels * blocks * PANEL, store)?,
            unit,
        };
        matrix.fill(source);
        Some(matrix)
    }

    fn fill(&mut self, source: Int4Blocks) {
        use rayon::prelude::*;
        let (blocks, unit) = (self.blocks, self.unit);
        let source_blocks = source.depth.div_ceil(source.block);
        let of_panel = blocks * BLOCK * PANEL / 2;
        // Columns that fill the last panel: a code of eight means zero.
        let none = vec![0x88; if source.columns.is_multiple_of(PANEL) { 0 } else { blocks * BLOCK / 2 }];
        let panels = self.codes.par_chunks_mut(of_panel).zip(self.scales.par_chunks_mut(blocks * PANEL));
        panels.enumerate().for_each(|(panel, (codes, scales))| {
            let column = |c: usize| Some(panel * PANEL + c).filter(|column| *column < source.columns);
            let row = |c| match column(c) {
                Some(column) => {
                    &source.codes[column * source_blocks * source.block / 2..][..blocks * BLOCK / 2]
                }
                None => &none[..],
            };
            for lane in 0..PANEL / 2 {
                interleave([row(lane), row(lane + PANEL / 2)], lane, codes);
            }
            for (block, scales) in scales.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                let at = block * BLOCK / source.block;
                let scale =
                    |c| column(c).map_or(0.0, |column| source.scales[column * source_blocks + at] / unit);
                scales.convert_from_f32_slice(&std::array::from_fn::<f32, PANEL, _>(scale));
            }
        });
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
        self.codes.len() + size_of_val(&*self.scales)
    }

    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }
}

/// The power of two that brings the greatest of `scales` just below the greatest float16, where those are finest relative
/// to the least.
fn unit(scales: &[f32]) -> f32 {
    let max = scales.iter().fold(0f32, |max, scale| max.max(scale.abs()));
    if max < f32::MIN_POSITIVE { 1.0 } else { (max.log2().ceil() - 15.0).exp2() }
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

/// Eight codes, two a byte, as eight bytes.
fn spread(codes: [u8; 4]) -> u64 {
    let codes = u64::from(u32::from_le_bytes(codes));
    let pairs = (codes | codes << 16) & 0x0000_FFFF_0000_FFFF;
    let bytes = (pairs | pairs << 8) & 0x00FF_00FF_00FF_00FF;
    (bytes | bytes << 4) & 0x0F0F_0F0F_0F0F_0F0F
}
