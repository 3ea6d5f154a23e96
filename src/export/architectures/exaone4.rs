//! EXAONE 4: norms after each half and of query and key heads; with windows, layers without one do not rotate.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, HeadNormWidth},
    fields::sliding_layers,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family { head_norms: Some(HeadNormWidth::Each), ..Family::read(config)? };
    let layers = family.dims.layers;
    let window = config.optional_size("sliding_window")?;
    let every = match (config.get("layer_types"), window) {
        (None, Some(_)) => config.size("sliding_window_pattern")?,
        _ => 1,
    };
    let slides = sliding_layers(config, layers, |layer| !(layer + 1).is_multiple_of(every))?;
    let blueprint = family.blueprint("exaone4", config)?.with_norms_after();
    let blueprint = blueprint.with_layers(|layer, parts| {
        parts.attention.window = window.filter(|_| slides[layer]);
        parts.attention.rotary = (window.is_none() || slides[layer]).then_some(0);
    });
    Ok(blueprint.renamed(&[
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        ("input_layernorm", "post_attention_layernorm"),
    ]))
}
