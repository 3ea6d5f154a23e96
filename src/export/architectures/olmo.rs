//! OLMo 1, 2 and 3.

use serde_json::{Value, json};

use super::{
    super::{
        blueprint::{Blueprint, NormKind},
        json_config::{JsonConfig, JsonConfigError},
        rope::Rotary,
    },
    family::{Family, HeadNormWidth, NormStyle},
    fields::sliding_layers,
};

/// OLMo: layer normalisation without weights.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let norms = NormStyle { kind: NormKind::Layer, has_weights: false, ..NormStyle::rms(1e-5) };
    let bias = config.flag("attention_bias", false)?;
    let clip = config.optional_positive("clip_qkv")?;
    let family = Family { input_bias: bias, output_bias: bias, ..Family::read_with(config, norms)? };
    Ok(family.blueprint("olmo", config)?.with_layers(|_, layer| layer.attention.clip = clip))
}

/// OLMo 2: norms after each half, and of all queries and all keys.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    Ok(with_names(family_2(config)?.blueprint("olmo2", config)?))
}

/// OLMo 3: windows in most layers, and scaled angles only in the others.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = family_2(config)?;
    let layers = family.dims.layers;
    let slides = sliding_layers(config, layers, |layer| !(layer + 1).is_multiple_of(4))?;
    let window = config.optional_size("sliding_window")?;
    let plain = config.clone().with("rope_parameters", Value::Null).with("rope_scaling", Value::Null);
    let rotaries = read_rotaries(config, &family)?;
    let blueprint = Blueprint { rotaries, ..family.blueprint("olmo3", &plain)? };
    let blueprint = with_names(blueprint.with_rotary(|layer| Some(usize::from(slides[layer]))));
    Ok(blueprint.with_layers(|layer, parts| parts.attention.window = window.filter(|_| slides[layer])))
}

fn family_2(config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let head_norms = Some(HeadNormWidth::Whole);
    Ok(Family { input_bias: bias, output_bias: bias, head_norms, ..Family::read(config)? })
}

fn with_names(blueprint: Blueprint) -> Blueprint {
    blueprint.with_norms_after().renamed(&[
        ("post_attention_layernorm", "post_feedforward_layernorm"),
        ("input_layernorm", "post_attention_layernorm"),
    ])
}

/// Angles of layers that see every key, and of those with a window.
fn read_rotaries(config: &JsonConfig, family: &Family) -> Result<Vec<Rotary>, JsonConfigError> {
    let nested = config.section("rope_parameters")?;
    let section = |name| nested.as_ref().map_or(Ok(None), |nested| nested.section(name));
    let full = match section("full_attention")? {
        Some(full) => Some(full),
        None => config.section("rope_scaling")?,
    };
    let sliding = section("sliding_attention")?;
    let heads = (family.dims.head_dim, family.partial);
    // transformers applies the field to the first of the two alone.
    let local = config.clone().with("rope_theta", json!(500_000.0));
    Ok(vec![
        Rotary::read_section(config, full.as_ref(), heads)?,
        Rotary::read_section(&local, sliding.as_ref(), heads)?,
    ])
}
