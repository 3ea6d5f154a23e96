//! Norms that an adapter saves whole, as changes of what the products after them read.
//!
//! A norm gives `x ∘ weight + bias`, and with the adapter's vectors `x ∘ weight' + bias'`. So a product that reads it reads
//!
//! ```text
//! input' = input ∘ factors + shifts        factors = weight' / weight, shifts = bias' - bias ∘ factors
//! ```
//!
//! which costs nothing while the adapter is not active. It is possible where only products of linear layers read the norm, and
//! no weight is zero.

use std::collections::{BTreeMap, BTreeSet};

use super::served_weights::ServedWeights;
use crate::export::{
    ExportError, WeightsError, adapter::MergePlan, blueprint::Blueprint, emit::ProductNode, modules::Norm,
};

/// The largest factor. Beyond it, the weight of the base has too few digits.
const MAX_FACTOR: f32 = 1e4;

/// What a product reads, by column of its matrix.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct InputChange {
    pub(super) factors: Vec<f32>,
    /// Of a norm with a bias.
    pub(super) shifts: Option<Vec<f32>>,
}

/// The changes of what products read, by the number of the product. The names of tensors that they cover are removed from
/// `open`.
pub(super) fn input_changes(
    (plan, blueprint): (&MergePlan, &Blueprint),
    weights: &ServedWeights,
    products: &[ProductNode],
    open: &mut BTreeSet<String>,
) -> Result<BTreeMap<usize, InputChange>, ExportError> {
    let mut changes = BTreeMap::new();
    for (scope, norm) in norms(blueprint) {
        let names = [Some(&norm.weight), norm.bias.as_ref()].into_iter().flatten().map(|param| &param.name);
        let changed: Vec<&String> = names.filter(|name| open.contains(*name)).collect();
        if changed.is_empty() {
            continue;
        }
        let (Some(readers), Some(change)) =
            (product_readers(&scope, weights, products), change(&scope, norm, plan, weights)?)
        else {
            continue;
        };
        changed.into_iter().for_each(|name| _ = open.remove(name));
        changes.extend(readers.into_iter().map(|product| (product, change.clone())));
    }
    Ok(changes)
}

/// The norms whose output may go to products alone, with the names of their outputs.
fn norms(blueprint: &Blueprint) -> impl Iterator<Item = (String, &Norm)> {
    let of_layers = blueprint.layers.iter().enumerate().flat_map(|(number, layer)| {
        [("attention_norm", &layer.attention_norm), ("mlp_norm", &layer.mlp_norm)]
            .into_iter()
            .filter_map(move |(name, norm)| Some((format!("layers.{number}.{name}"), norm.as_ref()?)))
    });
    of_layers.chain([("final_norm".to_owned(), &blueprint.final_norm)])
}

/// The numbers of the products that read the output of a norm; `None` if something else reads it as well. A product with offsets
/// of blocks reads it twice, the second time as sums.
fn product_readers(scope: &str, weights: &ServedWeights, products: &[ProductNode]) -> Option<Vec<usize>> {
    let of_node =
        |name: &str| products.iter().position(|product| product.node == name && product.offsets.is_none());
    weights.readers(scope).into_iter().map(|node| of_node(&node.name)).collect()
}

/// What the adapter's vectors change; `None` if that is not a factor.
fn change(
    scope: &str,
    norm: &Norm,
    plan: &MergePlan,
    weights: &ServedWeights,
) -> Result<Option<InputChange>, ExportError> {
    let base = weights.vector(&format!("{scope}.weight"))?;
    let weight = plan.replaced(&norm.weight).map_err(WeightsError::from)?;
    let Some(factors) = weight.map_or_else(|| Some(vec![1.0; base.len()]), |weight| ratios(&weight, &base))
    else {
        return Ok(None);
    };
    let Some(param) = &norm.bias else { return Ok(Some(InputChange { factors, shifts: None })) };
    let base = weights.vector(&format!("{scope}.bias"))?;
    let bias = plan.replaced(param).map_err(WeightsError::from)?.unwrap_or_else(|| base.clone());
    if bias.len() != factors.len() || base.len() != factors.len() {
        return Ok(None);
    }
    let shifts = bias.iter().zip(base.iter().zip(&factors)).map(|(new, (old, factor))| new - old * factor);
    let shifts: Vec<f32> = shifts.collect();
    let is_finite = shifts.iter().all(|shift| shift.is_finite());
    Ok(is_finite.then_some(InputChange { factors, shifts: Some(shifts) }))
}

/// `new / old`; `None` if one is too large or not a number.
fn ratios(new: &[f32], old: &[f32]) -> Option<Vec<f32>> {
    let ratio = |(new, old): (&f32, &f32)| {
        let ratio = if new == old { 1.0 } else { new / old };
        (ratio.abs() <= MAX_FACTOR).then_some(ratio)
    };
    (new.len() == old.len()).then(|| new.iter().zip(old).map(ratio).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_zero_has_no_factor_unless_it_stays() {
        assert_eq!(ratios(&[3.0, 0.0, 0.0], &[2.0, 0.0, 4.0]), Some(vec![1.5, 1.0, 0.0]));
        assert_eq!(ratios(&[3.0], &[0.0]), None);
        assert_eq!(ratios(&[f32::NAN], &[1.0]), None);
        assert_eq!(ratios(&[3.0], &[1e-6]), None);
        assert_eq!(ratios(&[3.0], &[1.0, 2.0]), None);
    }
}
