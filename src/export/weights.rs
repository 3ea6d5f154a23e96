//! Where weights come from, some rows at a time: a checkpoint with adapters merged into it, or a seed.

use std::ops::Range;

use ndarray::ShapeError;

use super::{
    adapter::{AdapterError, MergeError, MergePlan, Origin},
    checkpoint::{Checkpoint, CheckpointError},
    known_blocks::KnownBlocks,
    param::Param,
    quantize::Quantizer,
    random::RandomWeights,
};

/// Why a weight cannot be read or merged.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The checkpoint's tensor cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter's tensors cannot be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The adapter's matrices do not fit, which is checked before.
    #[error("the adapter's matrices do not fit the weight: {0}")]
    Misfit(ShapeError),
    /// It is infinite, or not a number.
    #[error(
        "{tensor}: the {origin} weight at row {row}, column {column} is {value}; every answer of the model would be \
         meaningless, look for an intact copy"
    )]
    NotFinite {
        /// The weight, without prefixes.
        tensor: String,
        /// Whether an adapter was added to it.
        origin: &'static str,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        value: f32,
    },
}

impl From<MergeError> for WeightsError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Adapter(source) => Self::Adapter(source),
            MergeError::Shape(source) => Self::Misfit(source),
        }
    }
}

/// Where weights come from.
#[derive(Debug)]
pub(super) enum Weights {
    Merged(Box<Merged>),
    Random(RandomWeights),
}

/// A checkpoint with adapters merged into it.
#[derive(Debug)]
pub(super) struct Merged {
    checkpoint: Checkpoint,
    merge_plan: MergePlan,
}

impl Weights {
    /// The given rows of `param`, row by row; every number is finite.
    pub(super) fn rows(&self, param: &Param, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        match self {
            Self::Random(weights) => Ok(weights.rows(param, rows)),
            Self::Merged(merged) => merged.rows(param, rows),
        }
    }

    /// The blocks of these rows, if the source has those of `quantizer` and nothing changes them: its codes are then kept.
    pub(super) fn known_blocks(
        &self,
        param: &Param,
        rows: Range<usize>,
        quantizer: Quantizer,
    ) -> Result<Option<KnownBlocks>, WeightsError> {
        let Some(checkpoint) = self.unchanged(param) else { return Ok(None) };
        let known = checkpoint.known_blocks(param, rows, quantizer)?;
        Ok(known.map(|known| known.times(param.factor)))
    }

    /// Whether all of `param` can keep the codes that the source has for it, with `quantizer`.
    pub(super) fn repacks(&self, param: &Param, quantizer: Quantizer) -> bool {
        self.unchanged(param).is_some_and(|checkpoint| checkpoint.repacks(param, quantizer))
    }

    /// The checkpoint of weights that nothing is added to.
    fn unchanged(&self, param: &Param) -> Option<&Checkpoint> {
        match self {
            Self::Merged(merged) if !merged.merge_plan.changes(&param.name) && param.offset == 0.0 => {
                Some(&merged.checkpoint)
            }
            _ => None,
        }
    }
}

impl Merged {
    /// `tables` are the embeddings of the merged model, some of which have to be measured before.
    pub(super) fn new<'a>(
        checkpoint: Checkpoint,
        mut merge_plan: MergePlan,
        tables: impl Iterator<Item = &'a Param>,
    ) -> Result<Self, WeightsError> {
        for table in tables {
            merge_plan.measure(table, |merge_plan, rows| original(&checkpoint, merge_plan, table, rows))?;
        }
        Ok(Self { checkpoint, merge_plan })
    }

    pub(super) fn merge_plan(&self) -> &MergePlan {
        &self.merge_plan
    }

    fn rows(&self, param: &Param, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let mut weights = original(&self.checkpoint, &self.merge_plan, param, rows.clone())?;
        self.merge_plan.apply(&mut weights, param, rows.clone())?;
        if param.offset != 0.0 || param.factor != 1.0 {
            weights.iter_mut().for_each(|weight| *weight = (*weight + param.offset) * param.factor);
        }
        let origin = if self.merge_plan.changes(&param.name) { "merged" } else { "base" };
        check_finite(&weights, param, rows.start, origin)?;
        Ok(weights)
    }
}

/// Rows of `param` before anything is added to them.
fn original(
    checkpoint: &Checkpoint,
    merge_plan: &MergePlan,
    param: &Param,
    rows: Range<usize>,
) -> Result<Vec<f32>, WeightsError> {
    match merge_plan.origin(&param.name) {
        _ if !param.is_stored() => Ok(vec![0.0; rows.len() * param.shape.cols()]),
        None => Ok(checkpoint.rows(param, rows)?),
        Some(Origin::Base(name)) => {
            Ok(checkpoint.rows(&Param { name: name.clone(), ..param.clone() }, rows)?)
        }
        Some(Origin::Adapter(held)) => {
            Ok(held.file.read_param(&held.tensor, param, rows).map_err(AdapterError::from)?)
        }
    }
}

fn check_finite(
    weights: &[f32],
    param: &Param,
    first_row: usize,
    origin: &'static str,
) -> Result<(), WeightsError> {
    // Almost never found, so the whole piece is checked at once, without a branch for each number.
    if weights.iter().fold(true, |finite, w| finite & w.is_finite()) {
        return Ok(());
    }
    let position = weights.iter().position(|w| !w.is_finite()).unwrap_or_default();
    let cols = param.shape.cols();
    Err(WeightsError::NotFinite {
        tensor: param.name.clone(),
        origin,
        row: first_row + position / cols,
        column: position % cols,
        value: weights[position],
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::export::{
        adapter::Adapter,
        testing::{self, Tensor},
    };

    fn merged(dir: &Path, lora_a: Tensor, lora_b: Tensor) -> Weights {
        testing::write(&dir.join("model.safetensors"), &testing::tensors(true));
        let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 1}"#;
        fs::write(dir.join("adapter_config.json"), config).unwrap();
        testing::write(&dir.join("adapter_model.safetensors"), &[lora_a, lora_b]);
        let adapter = Adapter::open(dir, 1.0).unwrap();
        let (merge_plan, blueprint) = MergePlan::new(vec![adapter], testing::blueprint(true)).unwrap();
        let tables = blueprint.tables();
        Weights::Merged(Box::new(Merged::new(Checkpoint::open(dir).unwrap(), merge_plan, tables).unwrap()))
    }

    fn lora(matrix: &str, shape: &[usize]) -> Tensor {
        Tensor::new(&format!("base_model.model.model.layers.1.mlp.down_proj.{matrix}.weight"), shape)
    }

    #[test]
    fn the_merge_adds_the_scaled_product_to_each_row() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (lora("lora_A", &[2, 96]), lora("lora_B", &[64, 2]));
        let weights = merged(dir.path(), a.clone(), b.clone());
        let param = Param::matrix("layers.1.mlp.down_proj.weight", 64, 96);
        let base = Tensor::new("model.layers.1.mlp.down_proj.weight", &[64, 96]);
        let rows = weights.rows(&param, 10..12).unwrap();
        for (index, merged) in rows.iter().enumerate() {
            let (row, col) = (10 + index / 96, index % 96);
            let product = b.values[row * 2] * a.values[col] + b.values[row * 2 + 1] * a.values[96 + col];
            let expected = base.values[row * 96 + col] + 0.5 * product;
            assert!((merged - expected).abs() < 1e-5, "{merged} {expected}");
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named_with_its_position() {
        let dir = tempfile::tempdir().unwrap();
        let (a, mut b) = (lora("lora_A", &[2, 96]), lora("lora_B", &[64, 2]));
        b.values[7 * 2] = f32::NAN;
        let weights = merged(dir.path(), a, b);
        let param = Param::matrix("layers.1.mlp.down_proj.weight", 64, 96);
        let message = weights.rows(&param, 5..9).unwrap_err().to_string();
        assert!(
            message.contains("layers.1.mlp.down_proj.weight: the merged weight at row 7, column 0"),
            "{message}"
        );
        weights.rows(&param, 0..7).unwrap();
    }
}
