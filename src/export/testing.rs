//! A tiny checkpoint for the tests of this folder.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::{architectures, blueprint::Blueprint, json_config::JsonConfig, param::Shape, random::normal_row};

/// `config.json` of the tiny model.
pub(super) fn config(tied: bool) -> String {
    format!(
        r#"{{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 50, "max_position_embeddings": 32,
        "tie_word_embeddings": {tied}, "eos_token_id": 2}}"#
    )
}

/// The blueprint of the tiny model.
pub(super) fn blueprint(tied: bool) -> Blueprint {
    architectures::read(&JsonConfig::parse(Path::new("config.json"), config(tied).as_bytes()).unwrap())
        .unwrap()
}

/// A float32 tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    /// With normal values that depend on the name's length only.
    pub(super) fn new(name: &str, shape: &[usize]) -> Self {
        let values = normal_row(name.len() as u64, shape.iter().product());
        Self { name: name.into(), shape: shape.into(), values }
    }
}

/// All tensors of the tiny model.
pub(super) fn tensors(tied: bool) -> Vec<Tensor> {
    let named =
        |name: &str| if name.starts_with("lm_head") { name.to_owned() } else { format!("model.{name}") };
    let shape = |shape: Shape| match shape {
        Shape::Vector(n) => vec![n],
        Shape::Matrix { rows, cols } => vec![rows, cols],
    };
    blueprint(tied).params().map(|param| Tensor::new(&named(&param.name), &shape(param.shape))).collect()
}

/// Writes `tensors` to a safetensors file at `path`.
pub(super) fn write(path: &Path, tensors: &[Tensor]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        (tensor.name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}
