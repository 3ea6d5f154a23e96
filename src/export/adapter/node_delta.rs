//! What an adapter changes about the linear layers of one node of the graph, for an adapter that stays beside its base.

use std::collections::BTreeSet;

use super::{
    AdapterError,
    merge::{Change, Delta, LowRank, Magnitude, lines},
    merge_error::MergeError,
    merge_plan::{AdapterTensor, MergePlan, Origin},
};
use crate::export::{blueprint::Linear, param::Param};

/// The changes of one adapter to the layers of a node.
#[derive(Debug, Default)]
pub(in crate::export) struct NodeDelta {
    pub pairs: Vec<PairDelta>,
    /// First column of a layer, and what its bias gets, in the base's units.
    pub biases: Vec<(usize, Vec<f32>)>,
    /// First column of a layer, and its new bias.
    pub whole_biases: Vec<(usize, Vec<f32>)>,
}

/// The low-rank matrices of one layer, in single precision.
#[derive(Debug)]
pub(in crate::export) struct PairDelta {
    pub first_column: usize,
    pub columns: usize,
    pub rank: usize,
    pub scale: f32,
    /// `[rank, depth]`.
    pub a: Vec<f32>,
    /// `[columns, rank]`.
    pub b: Vec<f32>,
    /// Whether the files have both in 16 bits.
    pub is_half: bool,
    /// DoRA's length of each column.
    pub magnitude: Option<Vec<f32>>,
}

impl NodeDelta {
    /// Whether nothing changes.
    pub(in crate::export) fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.biases.is_empty() && self.whole_biases.is_empty()
    }
}

impl MergePlan {
    /// What the adapters change about `linears`, which lie one after the other in the output of a node. The names of the tensors
    /// that are covered are removed from `open`.
    pub(in crate::export) fn node_delta(
        &self,
        linears: &[&Linear],
        open: &mut BTreeSet<String>,
    ) -> Result<NodeDelta, MergeError> {
        let (mut delta, mut first_column) = (NodeDelta::default(), 0);
        for linear in linears {
            self.add_pairs(&linear.weight, first_column, &mut delta, open)?;
            if let Some(bias) = &linear.bias {
                self.add_biases(bias, first_column, &mut delta, open)?;
            }
            first_column += linear.weight.shape.rows();
        }
        Ok(delta)
    }

    /// The names of all tensors that the adapters change or replace.
    pub(in crate::export) fn changed(&self) -> BTreeSet<String> {
        let held = self.origins().filter(|(_, origin)| matches!(origin, Origin::Adapter(_)));
        held.map(|(name, _)| name).chain(self.deltas().map(|(name, _)| name)).cloned().collect()
    }

    /// The vector that an adapter has in place of the base's `param`, in the graph's units.
    pub(in crate::export) fn replaced(&self, param: &Param) -> Result<Option<Vec<f32>>, MergeError> {
        let Some(Origin::Adapter(AdapterTensor { file, tensor, .. })) = self.origin(&param.name) else {
            return Ok(None);
        };
        let mut values = file.read_param(tensor, param, 0..1).map_err(AdapterError::from)?;
        values.iter_mut().for_each(|value| *value = (*value + param.offset) * param.factor);
        Ok(Some(values))
    }

    fn add_pairs(
        &self,
        weight: &Param,
        first_column: usize,
        delta: &mut NodeDelta,
        open: &mut BTreeSet<String>,
    ) -> Result<(), MergeError> {
        let is_product = |change: &Delta| {
            matches!(&change.change, Change::LowRank { product, magnitude }
                if !product.is_embedding && !matches!(magnitude, Some(Magnitude::Columns { .. })))
        };
        let changes = self.deltas_of(&weight.name);
        let is_replaced = matches!(self.origin(&weight.name), Some(Origin::Adapter(_)));
        if is_replaced || !changes.iter().all(is_product) {
            return Ok(());
        }
        open.remove(&weight.name);
        for change in changes {
            if let Change::LowRank { product, magnitude } = &change.change {
                delta.pairs.push(change.pair(product, magnitude.as_ref(), weight, first_column)?);
            }
        }
        Ok(())
    }

    fn add_biases(
        &self,
        bias: &Param,
        first_column: usize,
        delta: &mut NodeDelta,
        open: &mut BTreeSet<String>,
    ) -> Result<(), MergeError> {
        if let Some(values) = self.replaced(bias)? {
            delta.whole_biases.push((first_column, values));
        }
        for change in self.deltas_of(&bias.name) {
            let Change::Bias { tensor, scale } = &change.change else { return Ok(()) };
            let mut values = lines(&change.file, tensor, bias, (0..1, 1))?;
            values.iter_mut().for_each(|value| *value *= scale * bias.factor);
            delta.biases.push((first_column, values));
        }
        open.remove(&bias.name);
        Ok(())
    }
}

impl Delta {
    fn pair(
        &self,
        product: &LowRank,
        magnitude: Option<&Magnitude>,
        weight: &Param,
        first_column: usize,
    ) -> Result<PairDelta, MergeError> {
        let (rank, columns) = (product.rank, weight.shape.rows());
        let a = weight.arrange_columns(self.file.read(&product.a, 0..rank * weight.stored_cols())?);
        let b = lines(&self.file, &product.b, weight, (0..columns, rank))?;
        let magnitude = match magnitude {
            Some(Magnitude::Rows(tensor)) => {
                let mut lengths = lines(&self.file, tensor, weight, (0..columns, 1))?;
                lengths.iter_mut().for_each(|length| *length *= weight.factor);
                Some(lengths)
            }
            _ => None,
        };
        let is_half = [&product.a, &product.b].into_iter().all(|tensor| self.file.is_half(tensor));
        let scale = product.scale * weight.factor;
        Ok(PairDelta { first_column, columns, rank, scale, a, b, is_half, magnitude })
    }
}
