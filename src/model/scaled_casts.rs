//! Scales that are stored in 16 bits, in graphs that compute in float32.
//!
//! The graph casts them and multiplies them by a number; `export::quantize` writes them in this way. What packs the weights reads
//! them where they are stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::external_data::{Initializers, TensorRange};
use crate::onnx::{ElementType, Node};

/// What stored scales are multiplied with: the bits of a float32, so that it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct ScaleFactor(u32);

impl ScaleFactor {
    /// Of scales that are used as they are stored.
    pub(super) const ONE: Self = Self(1f32.to_bits());

    pub(super) const fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// Where scales are stored and their factor, by the names of the float32 scales that the graph makes of them.
pub(super) type ScaledCasts = BTreeMap<String, (TensorRange, ScaleFactor)>;

/// The outputs of each `Mul` by a single number of a `Cast` of a stored tensor to float32.
pub(super) fn find(nodes: &[Node], initializers: &Initializers) -> ScaledCasts {
    let float = i64::from(i32::from(ElementType::Float));
    let casts: BTreeMap<&str, TensorRange> = nodes
        .iter()
        .filter(|node| node.op_type == "Cast" && node.attribute.iter().all(|to| to.i == Some(float)))
        .filter_map(|node| match (&node.input[..], &node.output[..]) {
            ([input], [output]) => Some((&**output, TensorRange::of(initializers.get(&**input)?)?)),
            _ => None,
        })
        .collect();
    let scaled = |node: &Node| {
        let ([cast, factor], [output]) = (&node.input[..], &node.output[..]) else { return None };
        let factor = initializers.get(&**factor)?;
        let is_single = factor.data_type == i32::from(ElementType::Float) && factor.dims.is_empty();
        let bytes = <[u8; 4]>::try_from(&*factor.raw_data).ok().filter(|_| is_single)?;
        let factor = ScaleFactor(f32::from_le_bytes(bytes).to_bits());
        Some((output.clone(), (casts.get(&**cast)?.clone(), factor)))
    };
    nodes.iter().filter(|node| node.op_type == "Mul").filter_map(scaled).collect()
}
