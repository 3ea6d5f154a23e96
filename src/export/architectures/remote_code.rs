//! Models whose code comes with them, and that compute what Llama or GLM-4 do under other names.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::Partial,
    },
    adjust::Fused,
    family::Family,
    fields::require_flag,
};

/// InternLM 2 and 2.5: query, key and value in one tensor, by key heads.
pub(super) fn read_internlm2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_defaults(config).or(json!({ "bias": true, "max_position_embeddings": 2048 }));
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

/// EXAONE 3 and 3.5.
pub(super) fn read_exaone(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config
        .clone()
        .renamed("layer_norm_epsilon", "rms_norm_eps")
        .renamed("activation_function", "hidden_act");
    let config = &with_defaults(config).or(json!({ "max_position_embeddings": 2048 }));
    Ok(Family::read(config)?.blueprint("exaone", config)?.renamed(&[
        ("layers", "h"),
        ("self_attn", "attn.attention"),
        ("o_proj", "out_proj"),
        ("gate_proj", "c_fc_0"),
        ("up_proj", "c_fc_1"),
        ("down_proj", "c_proj"),
        ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"),
        ("norm", "ln_f"),
        ("embed_tokens", "wte"),
    ]))
}

/// Baichuan 7B, the first: the larger one has ALiBi, and the second normalises the rows of its head.
pub(super) fn read_baichuan(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    const VOCABULARY: usize = 64_000;
    if config.size("vocab_size")? != VOCABULARY {
        return Err(config.unsupported("vocab_size", format!("{VOCABULARY}, that of the first Baichuan 7B")));
    }
    let config = &with_defaults(config);
    Ok(Family::read(config)?.blueprint("baichuan", config)?.with_fused_qkv("W_pack", Fused::Stacked))
}

/// ChatGLM 2 and 3 and GLM-4 as their own code stores them.
pub(super) fn read_chatglm(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    for (field, required) in [
        ("rmsnorm", true),
        ("post_layer_norm", true),
        ("add_bias_linear", false),
        ("multi_query_attention", true),
    ] {
        require_flag(config, field, required)?;
    }
    require_flag(config, "apply_residual_connection_post_layernorm", false)?;
    let ratio = config.optional_positive("rope_ratio")?.unwrap_or(1.0);
    let vocabulary = config.size("padded_vocab_size")?;
    if ratio != 1.0 && vocabulary == 65_024 {
        // ChatGLM2-6B-32K divides positions by it, ChatGLM3-6B-32K multiplies the base.
        return Err(config.unsupported("rope_ratio", "1 in ChatGLM 2 and 3"));
    }
    let config = [
        ("padded_vocab_size", "vocab_size"),
        ("ffn_hidden_size", "intermediate_size"),
        ("multi_query_group_num", "num_key_value_heads"),
        ("kv_channels", "head_dim"),
        ("layernorm_epsilon", "rms_norm_eps"),
        ("seq_length", "max_position_embeddings"),
    ]
    .iter()
    .fold(config.clone(), |config, (theirs, ours)| config.renamed(theirs, ours));
    let config =
        &with_defaults(&config).with("rope_theta", 10_000.0 * ratio).with("partial_rotary_factor", 0.5);
    let family = Family {
        input_bias: config.flag("add_qkv_bias", false)?,
        partial: Partial::Supported,
        interleaved: true,
        ..Family::read(config)?
    };
    let blueprint = family.blueprint("chatglm", config)?.with_fused_qkv("query_key_value", Fused::Stacked);
    Ok(blueprint.with_fused_gate("dense_h_to_4h").renamed(&[
        ("layers", "encoder.layers"),
        ("self_attn", "self_attention"),
        ("o_proj", "dense"),
        ("down_proj", "dense_4h_to_h"),
        ("norm", "encoder.final_layernorm"),
        ("embed_tokens", "embedding.word_embeddings"),
        ("lm_head", "output_layer"),
    ]))
}

fn with_defaults(config: &JsonConfig) -> JsonConfig {
    config.clone().or(json!({ "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000 }))
}
