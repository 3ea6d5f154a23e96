//! Gemma 2 and the text model of Gemma 3: four norms a layer that store how much they differ from one, an embedding that
//! is scaled, and windows in most layers.

use serde_json::{Value, json};

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::Rotary,
    },
    family::Family,
    fields::windows,
};

/// Gemma 2: caps on scores and logits; every other layer has a window, the first one included.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(defaults()).or(json!({
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "max_position_embeddings": 8192,
    }));
    let family = read_family(config)?;
    let windows = windows(config, family.dims.layers, |layer| layer.is_multiple_of(2))?;
    let blueprint = family.blueprint("gemma2", config)?.with_windows(windows);
    finish(blueprint, &family, config)
}

/// Gemma 3: norms of query and key heads; layers with a window turn by other angles than those without.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    // The configurations of published multimodal models leave out these defaults, sizes included.
    let config = &config.clone().or(defaults()).or(json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "max_position_embeddings": 131_072,
    }));
    if config.flag("use_bidirectional_attention", false)? {
        return Err(config.unsupported("use_bidirectional_attention", "false"));
    }
    let family = Family { head_norms: true, ..read_family(config)? };
    let every = config.optional_size("sliding_window_pattern")?;
    let every = every.or(config.optional_size("_sliding_window_pattern")?).unwrap_or(6);
    let windows = windows(config, family.dims.layers, |layer| !(layer + 1).is_multiple_of(every))?;
    let blueprint = family.blueprint("gemma3_text", &without_rope(config))?.with_windows(windows);
    let mut blueprint = Blueprint { rotaries: read_rotaries(config, family.dims.head_dim)?, ..blueprint };
    for layer in &mut blueprint.layers {
        layer.attention.rotary = Some(usize::from(layer.attention.window.is_some()));
    }
    finish(blueprint, &family, config)
}

fn defaults() -> Value {
    json!({
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096, "tie_word_embeddings": true,
    })
}

fn read_family(config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let family = Family::read(config)?;
    Ok(Family {
        norm_offset: 1.0,
        input_bias: bias,
        output_bias: bias,
        activation: "hidden_activation",
        ..family
    })
}

/// Angles of layers that see every key, and of those that see a window.
fn read_rotaries(config: &JsonConfig, head_dim: usize) -> Result<Vec<Rotary>, JsonConfigError> {
    let theta = |field, default| Ok(config.optional_positive(field)?.unwrap_or(default));
    let (global, local) = (theta("rope_theta", 1e6)?, theta("rope_local_base_freq", 1e4)?);
    let (full, sliding) = match config.section("rope_parameters")? {
        Some(nested) => (nested.section("full_attention")?, nested.section("sliding_attention")?),
        None => (config.section("rope_scaling")?, None),
    };
    Ok(vec![
        Rotary::read_section(config, full.as_ref(), global, head_dim)?,
        Rotary::read_section(config, sliding.as_ref(), local, head_dim)?,
    ])
}

/// The family reads one section of rotary positions, and here are two.
fn without_rope(config: &JsonConfig) -> JsonConfig {
    config.clone().with("rope_parameters", Value::Null).with("rope_scaling", Value::Null)
}

/// What both have beyond the family.
fn finish(
    mut blueprint: Blueprint,
    family: &Family,
    config: &JsonConfig,
) -> Result<Blueprint, JsonConfigError> {
    let hidden = family.dims.hidden;
    let cap = config.optional_positive("attn_logit_softcapping")?;
    let scale = config.positive("query_pre_attn_scalar")?.sqrt().recip();
    for (i, layer) in blueprint.layers.iter_mut().enumerate() {
        let norm = |name: &str| family.norm(&format!("layers.{i}.{name}"), hidden);
        // Here the post-attention norm follows attention; in other architectures that name means the norm before the MLP.
        layer.attention_end = Some(norm("post_attention_layernorm"));
        layer.mlp_norm = norm("pre_feedforward_layernorm");
        layer.mlp_end = Some(norm("post_feedforward_layernorm"));
        layer.attention.scale = Some(scale);
        layer.attention.cap = cap;
    }
    blueprint.embedding.scale = Some((hidden as f32).sqrt());
    blueprint.logits_cap = config.optional_positive("final_logit_softcapping")?;
    Ok(blueprint)
}
