//! Where weights come from, some rows at a time: a checkpoint with an adapter merged into it, or a seed.
//!
//! The merge is `W + scale · B·A` in float32, whatever the checkpoint's type: rounding the sum back to 16 bits, as a
//! merge in place does, would lose most of what a small adapter adds.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, ShapeError, linalg::general_mat_mul};

use super::{
    adapter::{Adapter, AdapterError, LowRank},
    checkpoint::{Checkpoint, CheckpointError},
    param::Param,
    random::RandomWeights,
};

/// Why a weight cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The checkpoint fails to give it.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter fails to give what it adds.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The adapter's matrices do not fit, which is checked before.
    #[error("{tensor}: the adapter's matrices do not fit: {source}")]
    Misfit {
        /// The weight.
        tensor: String,
        /// What does not.
        source: ShapeError,
    },
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
        /// What it holds.
        value: f32,
    },
}

/// Where weights come from.
#[derive(Debug)]
pub(super) enum Weights {
    Merged(Box<Merged>),
    Random(RandomWeights),
}

/// A checkpoint, and what is added to it.
#[derive(Debug)]
pub(super) struct Merged {
    pub checkpoint: Checkpoint,
    pub adapter: Option<Adapter>,
}

impl Weights {
    /// The given rows of `param`, row by row; every number is finite.
    pub(super) fn rows(&self, param: &Param, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        match self {
            Self::Random(weights) => Ok(weights.rows(param, rows)),
            Self::Merged(merged) => merged.rows(param, rows),
        }
    }
}

impl Merged {
    fn rows(&self, param: &Param, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let mut weights = self.checkpoint.rows(param, rows.clone())?;
        let mut origin = "base";
        if let Some(adapter) = &self.adapter
            && let Some(added) = adapter.low_rank(param, rows.clone())?
        {
            add(&mut weights, &added, adapter, param)?;
            origin = "merged";
        }
        if param.offset != 0.0 {
            weights.iter_mut().for_each(|weight| *weight += param.offset);
        }
        check_finite(&weights, param, rows.start, origin)?;
        Ok(weights)
    }
}

fn add(weights: &mut [f32], added: &LowRank, adapter: &Adapter, param: &Param) -> Result<(), WeightsError> {
    let cols = param.shape.cols();
    let rows = weights.len() / cols;
    let misfit = |source| WeightsError::Misfit { tensor: param.name.clone(), source };
    let a = ArrayView2::from_shape((adapter.rank, cols), &added.a).map_err(misfit)?;
    let b = ArrayView2::from_shape((rows, adapter.rank), &added.b).map_err(misfit)?;
    let mut sum = ArrayViewMut2::from_shape((rows, cols), weights).map_err(misfit)?;
    general_mat_mul(adapter.scale, &b, &a, 1.0, &mut sum);
    Ok(())
}

fn check_finite(
    weights: &[f32],
    param: &Param,
    first_row: usize,
    origin: &'static str,
) -> Result<(), WeightsError> {
    // Almost never found, so the whole piece is looked through in one go, without a branch for each number.
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
    use crate::export::testing::{self, Tensor};

    fn merged(dir: &Path, lora_a: Tensor, lora_b: Tensor) -> Weights {
        testing::write(&dir.join("model.safetensors"), &testing::tensors(true));
        let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 1}"#;
        fs::write(dir.join("adapter_config.json"), config).unwrap();
        testing::write(&dir.join("adapter_model.safetensors"), &[lora_a, lora_b]);
        let (checkpoint, adapter) = (Checkpoint::open(dir).unwrap(), Adapter::open(dir).unwrap());
        Weights::Merged(Box::new(Merged { checkpoint, adapter: Some(adapter) }))
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
    fn a_weight_that_is_no_number_is_named_with_its_place() {
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
