//! Nemotron and Minitron: layer normalisation that stores how much weights differ from one, and squared ReLU without a gate.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::Partial,
    },
    family::{Family, NormStyle},
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(json!({ "partial_rotary_factor": 0.5 }));
    let norms = NormStyle { offset: 1.0, ..NormStyle::layer(config.positive("norm_eps")?) };
    let bias = config.flag("attention_bias", false)?;
    let family = Family {
        input_bias: bias,
        output_bias: bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        is_gated: false,
        partial: Partial::Supported,
        ..Family::read_with(config, norms)?
    };
    family.blueprint("nemotron", config)
}
