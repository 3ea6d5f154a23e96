//! StarCoder 2: Llama with layer normalisation, biases everywhere, and an MLP without a gate.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, NormStyle},
    fields::one_window,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("use_bias", true)?;
    let norms = NormStyle::layer(config.positive("norm_epsilon")?);
    let family = Family::read_with(config, norms)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias: bias, is_gated: false, ..family };
    let windows = one_window(config, family.dims.layers)?;
    let blueprint = family.blueprint("starcoder2", config)?.with_windows(windows);
    Ok(blueprint.renamed(&[("up_proj", "c_fc"), ("down_proj", "c_proj")]))
}
