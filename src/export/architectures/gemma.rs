//! Gemma 1 and 2 and the text model of Gemma 3: norms that store how much they differ from one, an embedding that is scaled,
//! and from the second on four norms a layer and windows.

use serde_json::Value;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::Rotary,
    },
    family::{Family, HeadNormWidth, NormStyle},
    fields::windows,
};

/// Gemma 1: a Llama otherwise.
pub(super) fn read_1(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    // Early files say gelu, and mean its approximation.
    let is_early = config.text("hidden_act")? == Some("gelu");
    let config =
        if is_early { config.clone().with("hidden_act", "gelu_pytorch_tanh") } else { config.clone() };
    let family = Family { activation: "hidden_act", ..read_family(&config)? };
    Ok(scaled(family.blueprint("gemma", &config)?))
}

/// Gemma 2: caps on scores and logits; every other layer has a window, the first one included.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = read_family(config)?;
    let windows = windows(config, family.dims.layers, |layer| layer.is_multiple_of(2))?;
    let blueprint = family.blueprint("gemma2", config)?.with_windows(windows);
    finish(blueprint, &family, config)
}

/// VaultGemma: Gemma 2 without norms after each half.
pub(super) fn read_vault(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let blueprint = Blueprint { architecture: "vaultgemma", ..read_2(config)? };
    Ok(blueprint.with_layers(|_, layer| {
        layer.attention_end = None;
        layer.mlp_end = None;
    }))
}

/// Gemma 3: norms of query and key heads; layers with a window turn by other angles than those without.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family { head_norms: Some(HeadNormWidth::Each), ..read_family(config)? };
    let every = config.optional_size("sliding_window_pattern")?;
    let every = every.or(config.optional_size("_sliding_window_pattern")?).unwrap_or(6);
    let windows = windows(config, family.dims.layers, |layer| !(layer + 1).is_multiple_of(every))?;
    let blueprint = family.blueprint("gemma3_text", &without_rope(config))?.with_windows(windows);
    let mut blueprint = Blueprint { rotaries: read_rotaries(config, &family)?, ..blueprint };
    for layer in &mut blueprint.layers {
        layer.attention.rotary = Some(usize::from(layer.attention.window.is_some()));
    }
    finish(blueprint, &family, config)
}

fn read_family(config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let norms = NormStyle { offset: 1.0, ..NormStyle::rms(config.positive("rms_norm_eps")?) };
    let family = Family::read_with(config, norms)?;
    Ok(Family { input_bias: bias, output_bias: bias, activation: "hidden_activation", ..family })
}

/// Angles of layers that see every key, and of those that see a window.
fn read_rotaries(config: &JsonConfig, family: &Family) -> Result<Vec<Rotary>, JsonConfigError> {
    let theta = |field, default| Ok(config.optional_positive(field)?.unwrap_or(default));
    let (global, local) = (theta("rope_theta", 1e6)?, theta("rope_local_base_freq", 1e4)?);
    let nested = config.section("rope_parameters")?;
    let section = |name| nested.as_ref().map_or(Ok(None), |nested| nested.section(name));
    let full = match config.section("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
        Some(scaling) => Some(scaling),
        None => section("full_attention")?,
    };
    let heads = (family.dims.head_dim, family.partial);
    let beside = |theta: f32| config.clone().with("rope_theta", theta);
    Ok(vec![
        Rotary::read_section(&beside(global), full.as_ref(), heads)?,
        Rotary::read_section(&beside(local), section("sliding_attention")?.as_ref(), heads)?,
    ])
}

/// The family reads one section of rotary positions, and here are two.
fn without_rope(config: &JsonConfig) -> JsonConfig {
    let plain = config.clone().with("rope_parameters", Value::Null).with("rope_scaling", Value::Null);
    plain.with("rope_theta", 1e6)
}

fn scaled(mut blueprint: Blueprint) -> Blueprint {
    blueprint.embedding.scale = Some((blueprint.dims.hidden as f32).sqrt());
    blueprint
}

/// What the later ones have beyond the family.
fn finish(
    mut blueprint: Blueprint,
    family: &Family,
    config: &JsonConfig,
) -> Result<Blueprint, JsonConfigError> {
    let hidden = family.dims.hidden;
    let cap = config.optional_positive("attn_logit_softcapping")?;
    let scale = config.positive("query_pre_attn_scalar")?.sqrt().recip();
    for (i, layer) in blueprint.layers.iter_mut().enumerate() {
        let norm = |name: &str| Some(family.norm(&format!("layers.{i}.{name}"), hidden));
        // Here the post-attention norm follows attention; in other architectures that name means the norm before the MLP.
        layer.attention_end = norm("post_attention_layernorm");
        layer.mlp_norm = norm("pre_feedforward_layernorm");
        layer.mlp_end = norm("post_feedforward_layernorm");
        layer.attention.scale = Some(scale);
        layer.attention.cap = cap;
    }
    blueprint.logits_cap = config.optional_positive("final_logit_softcapping")?;
    Ok(scaled(blueprint))
}
