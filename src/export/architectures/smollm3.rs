//! SmolLM3: Llama in which some layers do not rotate.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::Family,
    fields::windows,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    const ROTATES: &str = "no_rope_layers";
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias, ..Family::read(config)? };
    let layers = family.dims.layers;
    let interval = config.size("no_rope_layer_interval")?;
    let rotates = match config.get(ROTATES) {
        // Despite its name, it is one for layers that rotate.
        Some(_) => config.ids(ROTATES)?.into_iter().map(|rotates| rotates != 0).collect(),
        None => (0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect::<Vec<_>>(),
    };
    if rotates.len() != layers {
        return Err(config.wrong(ROTATES, format!("{layers} numbers, one for each layer")));
    }
    let windows = if config.flag("use_sliding_window", false)? {
        windows(config, layers, |layer| !rotates[layer])?
    } else {
        vec![None; layers]
    };
    let blueprint = family.blueprint("smollm3", config)?.with_windows(windows);
    Ok(blueprint.with_rotary(|layer| rotates[layer].then_some(0)))
}
