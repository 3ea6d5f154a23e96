//! Llama 2, 3 and 3.x, and the many that took its shape.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, with_defaults},
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_defaults(config, "hidden_act");
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias, ..Family::read(config)? };
    family.blueprint("llama", config)
}
