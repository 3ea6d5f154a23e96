//! GPT-NeoX and Pythia, and Persimmon: layer normalisation, fused query, key and value of each head, and rotary positions on
//! a part of it.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        head_layout::STEP,
        json_config::{JsonConfig, JsonConfigError},
    },
    adjust::Fused,
    family::{Family, HeadNormWidth},
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_shares(config)?;
    let bias = config.flag("attention_bias", true)?;
    let family = Family { input_bias: bias, output_bias: bias, ..Family::read_biased(config)? };
    let blueprint = family.blueprint("gpt_neox", config)?;
    let is_parallel = config.flag("use_parallel_residual", true)?;
    let blueprint = if is_parallel { blueprint.in_parallel(true) } else { blueprint };
    Ok(with_names(blueprint).renamed(&[
        ("self_attn", "attention"),
        ("embed_tokens", "embed_in"),
        ("norm", "final_layer_norm"),
    ]))
}

/// Persimmon: norms of query and key heads.
pub(super) fn read_persimmon(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(json!({ "partial_rotary_factor": 0.5 }));
    let has_norms = config.flag("qk_layernorm", true)?;
    let family =
        Family { head_norms: has_norms.then_some(HeadNormWidth::Each), ..Family::read_biased(config)? };
    if has_norms && !family.dims.head_dim.is_multiple_of(STEP) {
        return Err(
            config.unsupported("num_attention_heads", format!("heads of a multiple of {STEP} dimensions"))
        );
    }
    let names = [("q_norm", "q_layernorm"), ("k_norm", "k_layernorm"), ("norm", "final_layernorm")];
    Ok(with_names(family.blueprint("persimmon", config)?).renamed(&names))
}

fn with_names(blueprint: Blueprint) -> Blueprint {
    blueprint.with_fused_qkv("query_key_value", Fused::ByKeyHead).renamed(&[
        ("o_proj", "dense"),
        ("up_proj", "dense_h_to_4h"),
        ("down_proj", "dense_4h_to_h"),
    ])
}

/// Two fields have names of their own here.
fn with_shares(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let share = config.optional_positive("rotary_pct")?.unwrap_or(0.25);
    let config = config.clone().or(json!({ "partial_rotary_factor": share }));
    let theta = config.optional_positive("rotary_emb_base")?;
    Ok(match theta {
        Some(theta) => config.with("rope_theta", theta),
        None => config,
    })
}
