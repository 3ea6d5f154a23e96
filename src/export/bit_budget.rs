//! `--bits`: which modules get eight bits where the file may have some bits for each weight.
//!
//! Everything starts with four bits. Modules then get eight, the most sensitive first, as long as the file stays within the budget. The
//! order was measured on SmolLM2-135M: how much the KL divergence from float32 falls when all modules of a kind get eight bits, for each bit
//! per weight that the file grows by: value projections 0.59, down projections 0.11, up projections 0.05, output projections 0.04, gates
//! 0.02. Of a tied table the gain is between the first two. Down projections of the first and the last layers come before the others,
//! because their activations have the largest outliers.

use super::{
    BlockSize, Keep, NoSuchModule, Storage, TooLarge, WeightFormat, ZeroPoints,
    blueprint::{Blueprint, LmHead},
    data_layout::DATA_FILE,
    emit::{Precision, emit},
    param::Param,
};
use crate::{
    device_spec::BitBudget,
    manifest::{Dtype, GraphNames},
};

/// A budget that cannot be met.
#[derive(Debug, thiserror::Error)]
#[error(
    "--bits {budget} is too small: with four bits for every matrix this model has {least:.2} bits per weight, scales, norms and position \
     tables included; use more bits or a shorter --context-length"
)]
pub struct BudgetTooSmall {
    /// The budget.
    budget: BitBudget,
    /// The smallest file's bits per weight.
    least: f64,
}

/// Why a budget gives no formats.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// Too few bits.
    #[error(transparent)]
    TooSmall(#[from] BudgetTooSmall),
    /// A rule names no module.
    #[error(transparent)]
    NoSuchModule(#[from] NoSuchModule),
    /// The model is larger than a file can be.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl Storage {
    /// The same with the budget turned into rules, and into longer blocks where it is too small for those asked for.
    ///
    /// # Errors
    /// [`BudgetError`] when four bits for every matrix are too many already.
    pub(super) fn within_budget(&self, blueprint: &Blueprint, dtype: Dtype) -> Result<Self, BudgetError> {
        let Some(budget) = self.bits else { return Ok(self.clone()) };
        let parameters = blueprint.parameters().max(1) as f64;
        let most = budget.get() * parameters / 8.0;
        let mut least = f64::INFINITY;
        for block_size in BlockSize::ALL.into_iter().filter(|size| size.get() >= self.block_size.get()) {
            let storage = self.all_in_four_bits(block_size, blueprint);
            let used = storage.bytes(blueprint, dtype)?;
            if used <= most {
                return storage.with_eight_bits(blueprint, dtype, [used, most]);
            }
            least = least.min(used * 8.0 / parameters);
        }
        Err(BudgetTooSmall { budget, least }.into())
    }

    /// Four bits with zero points, which lower the loss by more than the same bits for a few modules, except for modules that a rule
    /// of the user names.
    fn all_in_four_bits(&self, block_size: BlockSize, blueprint: &Blueprint) -> Self {
        let table = Keep::new(blueprint.embedding.table.module(), WeightFormat::Int4);
        let keep = [table].into_iter().chain(self.keep.iter().cloned()).collect();
        let (format, zero_points) = (WeightFormat::Int4, ZeroPoints::PerBlock);
        Self { bits: None, format, block_size, zero_points, keep, rounding: self.rounding }
    }

    /// Adds rules for eight bits, from `used` to at most `most` bytes.
    fn with_eight_bits(
        mut self,
        blueprint: &Blueprint,
        dtype: Dtype,
        [mut used, most]: [f64; 2],
    ) -> Result<Self, BudgetError> {
        let rules = self.keep.len();
        // After the rule for the table, and before those of the user, which win.
        let first = 1;
        for param in by_sensitivity(blueprint) {
            // Eight bits instead of four. Starts of tensors are aligned, so this is not exact.
            let more = param.shape.elements() as f64 / 2.0;
            if used + more <= most {
                used += more;
                self.keep.insert(first, Keep::new(param.module(), WeightFormat::Int8));
            }
        }
        while self.bytes(blueprint, dtype)? > most && self.keep.len() > rules {
            self.keep.remove(first);
        }
        Ok(self)
    }

    /// Bytes of the weights' file.
    fn bytes(&self, blueprint: &Blueprint, dtype: Dtype) -> Result<f64, BudgetError> {
        let formats = self.formats(blueprint)?.for_graph(dtype);
        let precision = Precision { dtype, formats };
        Ok(emit(blueprint, precision, GraphNames::default(), DATA_FILE)?.layout.bytes() as f64)
    }
}

/// The matrices of a model, the most sensitive first.
fn by_sensitivity(blueprint: &Blueprint) -> Vec<&Param> {
    let layers = blueprint.layers.len();
    let edge = layers.div_ceil(8);
    let is_edge = |layer: usize| layer < edge || layer + edge >= layers;
    let mut ranked: Vec<(usize, &Param)> = Vec::new();
    for (number, layer) in blueprint.layers.iter().enumerate() {
        let down = if is_edge(number) { 2 } else { 3 };
        ranked.push((0, &layer.attention.value.weight));
        ranked.push((5, &layer.attention.output.weight));
        ranked.push((6, &layer.attention.key.weight));
        ranked.push((7, &layer.attention.query.weight));
        // Experts keep four bits: all of a layer have one format, and together they are most of the file.
        let Some(mlp) = layer.mlp.dense() else { continue };
        ranked.push((down, &mlp.down.weight));
        // What is multiplied with the input, then what decides how much of it.
        let inner: Vec<_> = mlp.inner_linears().collect();
        ranked.extend(inner.into_iter().rev().zip([4, 8]).map(|(linear, rank)| (rank, &linear.weight)));
    }
    ranked.push((1, &blueprint.embedding.table));
    if let LmHead::Separate(head) = &blueprint.head {
        ranked.push((1, &head.weight));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, param)| param).filter(|param| param.is_stored()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing;

    fn storage(bits: &str) -> Storage {
        Storage { bits: Some(bits.parse().unwrap()), ..Storage::default() }
    }

    fn bits_of(storage: &Storage, blueprint: &Blueprint) -> f64 {
        let formats = storage.formats(blueprint).unwrap().for_graph(Dtype::Float32);
        let precision = Precision { dtype: Dtype::Float32, formats };
        let layout = emit(blueprint, precision, GraphNames::default(), DATA_FILE).unwrap().layout;
        layout.bytes() as f64 * 8.0 / blueprint.parameters() as f64
    }

    /// Large enough that page padding does not decide.
    fn blueprint() -> Blueprint {
        let config = testing::config(true).replace("\"hidden_size\": 64", "\"hidden_size\": 1024");
        let config = config.replace("\"intermediate_size\": 96", "\"intermediate_size\": 2048");
        let config = crate::export::json_config::JsonConfig::parse("config.json".as_ref(), config.as_bytes());
        crate::export::architectures::read(&config.unwrap()).unwrap()
    }

    #[test]
    fn a_larger_budget_gives_more_modules_eight_bits_and_is_never_exceeded() {
        let blueprint = blueprint();
        let mut last = 0;
        for bits in ["4.7", "5.2", "6", "7.5"] {
            let storage = storage(bits).within_budget(&blueprint, Dtype::Float32).unwrap();
            let found = bits_of(&storage, &blueprint);
            assert!(found <= bits.parse().unwrap(), "{bits}: {found}");
            assert!(storage.keep.len() > last, "{bits}: {:?}", storage.keep);
            last = storage.keep.len();
        }
    }

    #[test]
    fn value_projections_get_eight_bits_first() {
        let storage = storage("4.9").within_budget(&blueprint(), Dtype::Float32).unwrap();
        let eight =
            |name: &str| storage.keep.iter().any(|keep| keep.to_string() == format!("layers.0.{name}=int8"));
        assert!(eight("self_attn.v_proj") && !eight("mlp.up_proj"), "{:?}", storage.keep);
    }

    #[test]
    fn a_budget_below_four_bits_for_everything_names_the_least() {
        let message = storage("4").within_budget(&blueprint(), Dtype::Float32).unwrap_err().to_string();
        assert!(
            message.contains("--bits 4 is too small") && message.contains("bits per weight"),
            "{message}"
        );
    }
}
