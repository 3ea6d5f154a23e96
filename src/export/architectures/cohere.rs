//! Command R: both halves of a layer read the same normalised stream, pairs are side by side, and logits have a factor.

use super::{
    super::{
        blueprint::{Blueprint, NormKind},
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, NormStyle},
    fields::{require_flag, sliding_layers},
};

/// Command R and Aya.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "use_qk_norm", false)?;
    finish(read_family(config)?.blueprint("cohere", config)?, config)
}

/// Command R7B and Command A: layers without a window do not rotate.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = read_family(config)?;
    let every = config.optional_size("sliding_window_pattern")?.unwrap_or(4);
    let slides = sliding_layers(config, family.dims.layers, |layer| !(layer + 1).is_multiple_of(every))?;
    let window = config.optional_size("sliding_window")?;
    let blueprint = family.blueprint("cohere2", config)?;
    let blueprint = blueprint.with_layers(|layer, parts| {
        parts.attention.window = window.filter(|_| slides[layer]);
        parts.attention.rotary = parts.attention.window.map(|_| 0);
    });
    finish(blueprint, config)
}

fn read_family(config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let norms = NormStyle { kind: NormKind::Layer, ..NormStyle::rms(config.positive("layer_norm_eps")?) };
    let bias = config.flag("attention_bias", false)?;
    let family = Family::read_with(config, norms)?;
    Ok(Family { input_bias: bias, output_bias: bias, interleaved: true, ..family })
}

fn finish(blueprint: Blueprint, config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let mut blueprint = blueprint.in_parallel(false);
    blueprint.logits_scale = Some(config.positive("logit_scale")?);
    Ok(blueprint)
}
