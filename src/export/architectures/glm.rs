//! GLM-4: fused gate and up, and rotary positions on half of each head, with pairs side by side.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::Partial,
    },
    family::Family,
};

/// GLM-4 of 2024.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    read_as("glm", config)
}

/// GLM-4-0414: norms before and after each half.
pub(super) fn read_4(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let blueprint = read_as("glm4", config)?;
    let ends = ["post_self_attn_layernorm", "post_mlp_layernorm"];
    Ok(blueprint.with_layers(|number, layer| {
        let [attention, mlp] = ends.map(|end| {
            let norm = layer.attention_norm.clone();
            norm.map(|norm| norm.renamed(format!("layers.{number}.{end}.weight")))
        });
        (layer.attention_end, layer.mlp_end) = (attention, mlp);
    }))
}

fn read_as(name: &'static str, config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(json!({ "partial_rotary_factor": 0.5 }));
    let family = Family {
        input_bias: config.flag("attention_bias", true)?,
        partial: Partial::Supported,
        interleaved: true,
        ..Family::read(config)?
    };
    Ok(family.blueprint(name, config)?.with_fused_gate("gate_up_proj"))
}
