//! Quantized matrices of a graph, packed for eka's operators.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    external_data::{ExternalData, Initializers, TensorRange},
    scaled_casts::{ScaleFactor, ScaledCasts},
};
use crate::{
    device::operators::{PackedShape, PackedStorage, PackedWeights, QuantizedBlocks, WeightBits},
    onnx::Node,
};

/// Packed matrices.
pub(super) type Matrices = BTreeMap<MatrixSource, Arc<PackedWeights>>;

/// A matrix as a `MatMulNBits` node has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MatrixSource {
    /// Bits of a weight: 4 or 8.
    pub(super) bits: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// Weights that share a scale.
    pub(super) block: usize,
    pub(super) codes: TensorRange,
    pub(super) scales: TensorRange,
    /// What the stored scales are multiplied with.
    pub(super) factor: ScaleFactor,
    pub(super) zero_points: Option<TensorRange>,
}

impl MatrixSource {
    /// The matrix of `node`, if it is a `MatMulNBits` that eka's operators support.
    pub(super) fn of(node: &Node, initializers: &Initializers, casts: &ScaledCasts) -> Option<Self> {
        let number = |name: &str| {
            let attribute = node.attribute.iter().find(|attribute| attribute.name == name)?;
            usize::try_from(attribute.i?).ok()
        };
        let range = |name: &String| TensorRange::of(initializers.get(&**name)?);
        if node.op_type != "MatMulNBits" || number("accuracy_level") != Some(4) {
            return None;
        }
        let (codes, scales, zero_points) = match &node.input[..] {
            [_, codes, scales] => (codes, scales, None),
            [_, codes, scales, zero_points] => (codes, scales, Some(range(zero_points)?)),
            _ => return None,
        };
        let bits = number("bits")?;
        WeightBits::of(bits)?;
        let (scales, factor) = match casts.get(scales) {
            Some(cast) => cast.clone(),
            None => (range(scales)?, ScaleFactor::ONE),
        };
        Some(Self {
            bits,
            columns: number("N")?,
            depth: number("K")?,
            block: number("block_size")?,
            codes: range(codes)?,
            scales,
            factor,
            zero_points,
        })
    }

    /// The files that it is read from.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        let ranges = [Some(&self.codes), Some(&self.scales), self.zero_points.as_ref()];
        ranges.into_iter().flatten().map(|range| &*range.file)
    }

    /// Its shape when it is packed.
    pub(super) fn shape(&self) -> Option<PackedShape> {
        Some(PackedShape {
            bits: WeightBits::of(self.bits)?,
            columns: self.columns,
            depth: self.depth,
            has_zeros: self.zero_points.is_some(),
        })
    }
}

/// Reads matrices and packs them.
pub(super) struct Packer<'a> {
    pub(super) data: ExternalData<'a>,
    pub(super) storage: PackedStorage,
    // Buffers that are reused for every tensor, because allocating them again would cost more than the read.
    codes: Vec<u8>,
    scales: Vec<f32>,
    halfs: Vec<u16>,
    zero_points: Vec<u8>,
}

impl<'a> Packer<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        let (codes, scales, halfs, zero_points) = Default::default();
        let storage = PackedStorage::default();
        Self { data: ExternalData::new(dir), storage, codes, scales, halfs, zero_points }
    }

    /// The matrix in memory of this packer; `None` where its tensors cannot be read, or do not fit together.
    pub(super) fn pack(&mut self, source: &MatrixSource) -> Option<PackedWeights> {
        self.data.read_codes(&source.codes, &mut self.codes)?;
        self.data.read_floats(&source.scales, &mut self.scales, &mut self.halfs)?;
        let factor = source.factor.get();
        self.scales.iter_mut().for_each(|scale| *scale *= factor);
        match &source.zero_points {
            Some(zero_points) => self.data.read_codes(zero_points, &mut self.zero_points)?,
            None => self.zero_points.clear(),
        }
        let blocks = QuantizedBlocks {
            bits: WeightBits::of(source.bits)?,
            columns: source.columns,
            depth: source.depth,
            block: source.block,
            codes: &self.codes,
            scales: &self.scales,
            zero_points: &self.zero_points,
        };
        PackedWeights::new(blocks, &mut self.storage)
    }
}
