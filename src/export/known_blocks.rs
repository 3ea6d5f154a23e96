//! Blocks of quantized weights as a source has them, whose codes an export keeps.

/// Some blocks, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct KnownBlocks {
    /// One for each block.
    pub scales: Vec<f32>,
    /// What is added to the decoded weights of each block; empty in formats that add nothing.
    pub offsets: Vec<f32>,
}

impl KnownBlocks {
    /// Adds `others` at the end.
    pub(super) fn extend(&mut self, others: Self) {
        self.scales.extend(others.scales);
        self.offsets.extend(others.offsets);
    }

    /// Those of weights that are multiplied with `factor`.
    pub(super) fn times(mut self, factor: f32) -> Self {
        self.scales.iter_mut().chain(&mut self.offsets).for_each(|number| *number *= factor);
        self
    }

    /// The blocks of row `row` among rows of `blocks` blocks.
    pub(super) fn row(&self, row: usize, blocks: usize) -> Self {
        let of = |numbers: &[f32]| numbers.get(row * blocks..(row + 1) * blocks).unwrap_or_default().to_vec();
        Self { scales: of(&self.scales), offsets: of(&self.offsets) }
    }
}
