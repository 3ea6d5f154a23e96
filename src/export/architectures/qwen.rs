//! Qwen 2, 2.5 and 3.

use serde_json::{Value, json};

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, with_defaults},
    fields::windows,
};

/// Qwen 2 and 2.5: only query, key and value have biases.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_qwen_defaults(config)?;
    let family = Family { input_bias: true, ..Family::read(config)? };
    with_late_windows(family.blueprint("qwen2", config)?, config)
}

/// Qwen 3: norms of query and key heads.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_qwen_defaults(config)?.or(json!({ "head_dim": 128 }));
    let bias = config.flag("attention_bias", false)?;
    let family = Family { input_bias: bias, output_bias: bias, head_norms: true, ..Family::read(config)? };
    with_late_windows(family.blueprint("qwen3", config)?, config)
}

fn with_qwen_defaults(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let defaults = json!({ "sliding_window": 4096, "max_window_layers": 28 });
    let config = with_defaults(config, "hidden_act").or(defaults);
    // Without the flag the size has no effect.
    let is_used = config.flag("use_sliding_window", false)?;
    Ok(if is_used { config } else { config.with("sliding_window", Value::Null) })
}

/// The first `max_window_layers` layers see every key.
fn with_late_windows(blueprint: Blueprint, config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let full = config.count("max_window_layers")?;
    let windows = windows(config, blueprint.dims.layers, |layer| layer >= full)?;
    Ok(blueprint.with_windows(windows))
}
