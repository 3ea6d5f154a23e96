//! StableLM: layer normalisation, and rotary positions on a part of each head.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::Partial,
    },
    family::{Family, NormStyle},
    fields::require_flag,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(json!({ "partial_rotary_factor": 0.25 }));
    require_flag(config, "qk_layernorm", false)?;
    let norms = NormStyle::layer(config.positive("layer_norm_eps")?);
    let family = Family {
        input_bias: config.flag("use_qkv_bias", false)?,
        partial: Partial::Supported,
        ..Family::read_with(config, norms)?
    };
    let blueprint = family.blueprint("stablelm", config)?;
    Ok(if config.flag("use_parallel_residual", false)? { blueprint.in_parallel(false) } else { blueprint })
}
