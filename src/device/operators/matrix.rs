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
//! is `0..=15` and means `code - 8`; the eight goes into what a sum starts with. Longer blocks are blocks of 32 with the
//! same scale.

use half::f16;

/// Weights that share a scale.
pub(super) const BLOCK: usize = 32;

/// Columns of the product in a panel.
pub(super) const PANEL: usize = 32;

/// Weights as `MatMulNBits` has them.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Columns of the product.
    pub columns: usize,
    /// Weights of each, what is multiplied with an activation.
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
pub struct Matrix {
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Blocks of 32 in a column.
    pub(super) blocks: usize,
    pub(super) codes: Box<[u8]>,
    pub(super) scales: Box<[f16]>,
    /// What every scale has been divided by, so that float16 has room for them: a power of two.
    pub(super) unit: f32,
}

impl Matrix {
    /// Lays `source` out; `None` where its sizes do not belong together.
    #[must_use]
    pub fn new(source: Blocks) -> Option<Self> {
        let Blocks { columns, depth, block, codes, scales } = source;
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
            // Eight means zero, and so do the columns that fill the last panel.
            codes: vec![0x88; panels * blocks * BLOCK * PANEL / 2].into(),
            scales: vec![f16::ZERO; panels * blocks * PANEL].into(),
            unit,
        };
        matrix.fill(source);
        Some(matrix)
    }

    fn fill(&mut self, source: Blocks) {
        use rayon::prelude::*;
        let (blocks, unit) = (self.blocks, self.unit);
        let source_blocks = source.depth.div_ceil(source.block);
        let of_panel = blocks * BLOCK * PANEL / 2;
        let panels = self.codes.par_chunks_mut(of_panel).zip(self.scales.par_chunks_mut(blocks * PANEL));
        panels.enumerate().for_each(|(panel, (codes, scales))| {
            let columns = source.columns.min((panel + 1) * PANEL) - panel * PANEL;
            for c in 0..columns {
                let column = panel * PANEL + c;
                let row = &source.codes[column * source_blocks * source.block / 2..][..blocks * BLOCK / 2];
                let (lane, shift) = (c % 16, if c < 16 { 0 } else { 4 });
                for (four, pairs) in codes.as_chunks_mut::<64>().0.iter_mut().zip(row.as_chunks::<2>().0) {
                    let four = &mut four[lane * 4..][..4];
                    let weights = [pairs[0] & 15, pairs[0] >> 4, pairs[1] & 15, pairs[1] >> 4];
                    for (byte, weight) in four.iter_mut().zip(weights) {
                        *byte = *byte & (0xF0 >> shift) | weight << shift;
                    }
                }
                let own = &source.scales[column * source_blocks..][..source_blocks];
                for (block, scales) in scales.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                    scales[c] = f16::from_f32(own[block * BLOCK / source.block] / unit);
                }
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
    let most = scales.iter().fold(0f32, |most, scale| most.max(scale.abs()));
    if most < f32::MIN_POSITIVE { 1.0 } else { (most.log2().ceil() - 15.0).exp2() }
}
