//! Mistral: Llama with a window of keys.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, with_defaults},
    fields::windows,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let defaults = json!({ "num_key_value_heads": 8, "sliding_window": 4096 });
    let config = &with_defaults(config, "hidden_act").or(defaults);
    let family = Family::read(config)?;
    let windows = windows(config, family.dims.layers, |_| true)?;
    Ok(family.blueprint("mistral", config)?.with_windows(windows))
}
