//! InternLM 2 and 2.5, whose code comes with the model: Llama with other names, and query, key and value in one tensor.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    adjust::Fused,
    family::Family,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let defaults = json!({ "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rope_theta": 10000, "bias": true, "tie_word_embeddings": false });
    let config = &config.clone().or(defaults);
    let bias = config.flag("bias", true)?;
    let family = Family { input_bias: bias, output_bias: bias, ..Family::read(config)? };
    let blueprint = family.blueprint("internlm2", config)?.with_fused_qkv("wqkv", Fused::ByKeyHead);
    Ok(blueprint.renamed(&[
        ("self_attn", "attention"),
        ("o_proj", "wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("embed_tokens", "tok_embeddings"),
        ("lm_head", "output"),
    ]))
}
