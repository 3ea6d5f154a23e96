//! Llama 2, 3 and 3.x, and the many that took its shape.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::Family,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias, ..Family::read(config)? };
    family.blueprint("llama", config)
}

/// Arcee: an MLP without a gate.
pub(super) fn read_arcee(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let family = Family::read(config)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias, is_gated: false, ..family };
    family.blueprint("arcee", config)
}

/// Seed-OSS: biases of query, key and value, and separately of the output.
pub(super) fn read_seed_oss(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family {
        input_bias: config.flag("attention_bias", true)?,
        output_bias: config.flag("attention_out_bias", false)?,
        mlp_bias: config.flag("mlp_bias", false)?,
        ..Family::read(config)?
    };
    family.blueprint("seed_oss", config)
}

/// Helium: pairs side by side, and no bias of the output.
pub(super) fn read_helium(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family {
        input_bias: config.flag("attention_bias", false)?,
        mlp_bias: config.flag("mlp_bias", false)?,
        interleaved: true,
        ..Family::read(config)?
    };
    family.blueprint("helium", config)
}

/// ERNIE 4.5: pairs side by side.
pub(super) fn read_ernie4_5(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("use_bias", false)?;
    let family = Family::read(config)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias: bias, interleaved: true, ..family };
    family.blueprint("ernie4_5", config)
}
