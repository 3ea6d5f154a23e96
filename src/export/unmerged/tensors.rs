//! The tensors of an adapter's file.

use half::f16;
use safetensors::tensor::{Dtype, TensorView};

use super::{column_lengths::Lengths, error::UnmergedError, input_change::InputChange};
use crate::{
    export::adapter::{NodeDelta, PairDelta},
    manifest::{AdapterPair, AdapterProduct},
};

/// The exponent of the greatest number after scaling to float16, whose own greatest is just below 2^16.
const GREATEST_EXPONENT: i32 = 14;

/// The tensors of an adapter, by their names.
#[derive(Debug, Default)]
pub(super) struct AdapterTensors(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl AdapterTensors {
    /// Adds what an adapter changes about a node of `[columns, depth]`.
    pub(super) fn add(
        &mut self,
        node: &str,
        delta: &NodeDelta,
        [columns, depth]: [usize; 2],
    ) -> AdapterProduct {
        let is_half = !delta.pairs.is_empty() && delta.pairs.iter().all(|pair| pair.is_half);
        let dtype = if is_half { Dtype::F16 } else { Dtype::F32 };
        let (mut a, mut pairs) = (Vec::new(), Vec::new());
        for (index, pair) in delta.pairs.iter().enumerate() {
            let PairDelta { first_column, columns, rank, mut scale, .. } = *pair;
            let mut encode = |values: &[f32]| {
                if !is_half {
                    return values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
                }
                let factor = power_for_half(values);
                scale /= factor;
                values.iter().flat_map(|value| f16::from_f32(value * factor).to_le_bytes()).collect()
            };
            a.extend(encode(&pair.a));
            let b = encode(&pair.b);
            self.0.push((format!("{node}.b.{index}"), dtype, vec![columns, rank], b));
            pairs.push(AdapterPair { first_column, columns, rank, scale });
        }
        if !pairs.is_empty() {
            let rank = pairs.iter().map(|pair| pair.rank).sum();
            self.0.push((format!("{node}.a"), dtype, vec![rank, depth], a));
        }
        if !delta.biases.is_empty() {
            self.add_vector(format!("{node}.scaled_bias"), &spread(&delta.biases, columns));
        }
        AdapterProduct { node: node.into(), pairs, changes_input: false }
    }

    /// Adds what an adapter changes about what a node reads.
    pub(super) fn add_input(&mut self, node: &str, InputChange { factors, shifts }: &InputChange) {
        self.add_vector(format!("{node}.input_factors"), factors);
        if let Some(shifts) = shifts {
            self.add_vector(format!("{node}.input_shifts"), shifts);
        }
    }

    /// Adds a bias that does not depend on the adapter's weight.
    pub(super) fn add_bias(&mut self, node: &str, bias: &[f32]) {
        self.add_vector(format!("{node}.bias"), bias);
    }

    /// Adds what DoRA needs to know of the columns of a node.
    pub(super) fn add_lengths(&mut self, node: &str, lengths: &Lengths) {
        let Lengths { magnitude, base, cross, added } = lengths;
        for (name, values) in [("magnitude", magnitude), ("base", base), ("cross", cross), ("added", added)] {
            self.add_vector(format!("{node}.{name}"), values);
        }
    }

    fn add_vector(&mut self, name: String, values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.push((name, Dtype::F32, vec![values.len()], bytes));
    }

    /// The content of a safetensors file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, UnmergedError> {
        let views = self.0.iter().map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        });
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        Ok(safetensors::serialize(views, None)?)
    }
}

/// The values of some layers in a vector over all columns of a node, with zeros between them.
pub(super) fn spread(parts: &[(usize, Vec<f32>)], columns: usize) -> Vec<f32> {
    let mut all = vec![0.0; columns];
    for (first, values) in parts {
        for (to, value) in all.iter_mut().skip(*first).zip(values) {
            *to += value;
        }
    }
    all
}

/// A power of two by which all `values` can be multiplied to be float16 with the precision that they have in 16 bits.
fn power_for_half(values: &[f32]) -> f32 {
    if values.iter().all(|value| f16::from_f32(*value).to_f32() == *value) {
        return 1.0;
    }
    let greatest = values.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
    let exponent = (greatest.to_bits() >> 23).cast_signed() - 127;
    2f32.powi((GREATEST_EXPONENT - exponent).clamp(-126, 126))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_keeps_its_precision_in_float16() {
        let values: Vec<f32> = (-20..10)
            .flat_map(|exponent| [1.0, 1.0078125, -1.9921875].map(|value: f32| value * 2f32.powi(exponent)))
            .collect();
        let factor = power_for_half(&values);
        for value in &values {
            assert_eq!(f16::from_f32(value * factor).to_f32() / factor, *value);
        }
        assert_eq!(power_for_half(&[0.5, -3.0]), 1.0);
        assert!(f16::from_f32(1e30 * power_for_half(&[1e30, 1e-3])).is_finite());
    }

    #[test]
    fn layers_of_a_node_are_put_at_their_columns() {
        assert_eq!(spread(&[(1, vec![2.0, 3.0]), (4, vec![5.0])], 6), [0.0, 2.0, 3.0, 0.0, 5.0, 0.0]);
    }
}
