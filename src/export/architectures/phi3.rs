//! Phi-3, 3.5 and 4: query, key and value are one tensor, gate and up another.

use serde_json::Value;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::{self, Partial},
    },
    adjust::Fused,
    family::Family,
    fields::one_window,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_long_rope(config)?;
    let family = Family { partial: Partial::Supported, ..Family::read(config)? };
    let windows = one_window(config, family.dims.layers)?;
    let blueprint = family.blueprint("phi3", config)?.with_windows(windows);
    Ok(blueprint.with_fused_qkv("qkv_proj", Fused::Stacked).with_fused_gate("gate_up_proj"))
}

/// Early files call LongRoPE `su` or `yarn`.
fn with_long_rope(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let Some(rope) = rope::section(config)? else { return Ok(config.clone()) };
    let field = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    if !matches!(rope.text(field)?, Some("su" | "yarn")) {
        return Ok(config.clone());
    }
    let mut fields: serde_json::Map<String, Value> =
        rope.fields().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    fields.insert("rope_type".into(), "longrope".into());
    Ok(config.clone().with("rope_scaling", fields))
}
