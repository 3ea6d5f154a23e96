//! Qwen 2, 2.5 and 3, and the text models of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

use serde_json::Value;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, HeadNormWidth},
    fields::windows,
};

/// Qwen 2 and 2.5: only query, key and value have biases.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &without_unused_window(config)?;
    let family = Family { input_bias: true, ..Family::read(config)? };
    with_late_windows(family.blueprint("qwen2", config)?, config)
}

/// Qwen 3: norms of query and key heads.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &without_unused_window(config)?;
    with_late_windows(family_3(config)?.blueprint("qwen3", config)?, config)
}

/// The text model of Qwen2-VL and Qwen2.5-VL. Without images, its three kinds of positions are the same.
pub(super) fn read_2_vl(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &without_unused_window(config)?;
    let family = Family { input_bias: true, ..Family::read(config)? };
    with_late_windows(family.blueprint("qwen2_vl_text", config)?, config)
}

/// The text model of Qwen3-VL.
pub(super) fn read_3_vl(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    family_3(config)?.blueprint("qwen3_vl_text", config)
}

fn family_3(config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let head_norms = Some(HeadNormWidth::Each);
    Ok(Family { input_bias: bias, output_bias: bias, head_norms, ..Family::read(config)? })
}

/// Without the flag the size has no effect.
fn without_unused_window(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let is_used = config.flag("use_sliding_window", false)?;
    Ok(if is_used { config.clone() } else { config.clone().with("sliding_window", Value::Null) })
}

/// The first `max_window_layers` layers see every key.
fn with_late_windows(blueprint: Blueprint, config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let full = config.count("max_window_layers")?;
    let windows = windows(config, blueprint.dims.layers, |layer| layer >= full)?;
    Ok(blueprint.with_windows(windows))
}
