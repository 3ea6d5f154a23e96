//! Falcon: multi-query or grouped-query attention; in most files, attention and MLP read the same input.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    adjust::Fused,
    family::{Family, NormStyle},
    fields::require_flag,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    // With ALiBi, transformers rounds its biases to bfloat16 at every position, which eka does not reproduce.
    require_flag(config, "alibi", false)?;
    let config = &with_fields(config)?;
    let is_new = config.flag("new_decoder_architecture", false)?;
    let is_shared = config.flag("multi_query", true)?;
    let bias = config.flag("bias", false)?;
    let norms = NormStyle::layer(config.positive("layer_norm_epsilon")?);
    let family = Family {
        input_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        is_gated: false,
        activation: "activation",
        ..Family::read_with(config, norms)?
    };
    let order = if is_shared && !is_new { Fused::Stacked } else { Fused::ByKeyHead };
    let blueprint = family.blueprint("falcon", config)?.with_fused_qkv("query_key_value", order);
    let norms = config.optional_size("num_ln_in_parallel_attn")?.unwrap_or(2);
    let (blueprint, names) = match (is_new, config.flag("parallel_attn", true)?) {
        (true, true) if norms == 2 => {
            let names = [("input_layernorm", "ln_attn"), ("post_attention_layernorm", "ln_mlp")];
            (blueprint.in_parallel(true), names.to_vec())
        }
        (_, true) => (blueprint.in_parallel(false), Vec::new()),
        (false, false) => (blueprint, Vec::new()),
        (true, false) => {
            return Err(config.unsupported("parallel_attn", "true with new_decoder_architecture"));
        }
    };
    Ok(blueprint.renamed(&names).renamed(&[
        ("layers", "h"),
        ("self_attn", "self_attention"),
        ("o_proj", "dense"),
        ("up_proj", "dense_h_to_4h"),
        ("down_proj", "dense_4h_to_h"),
        ("norm", "ln_f"),
        ("embed_tokens", "word_embeddings"),
    ]))
}

/// Older files call some fields differently, and the number of key heads depends on others.
fn with_fields(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let renamed = [
        ("n_embed", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
        ("n_head_kv", "num_kv_heads"),
    ]
    .iter()
    .fold(config.clone(), |config, (old, new)| config.renamed(old, new));
    let inner = match renamed.optional_size("ffn_hidden_size")? {
        Some(inner) => inner,
        None => renamed.size("hidden_size")?.saturating_mul(4),
    };
    let kv_heads =
        match (renamed.flag("new_decoder_architecture", false)?, renamed.flag("multi_query", true)?) {
            (true, _) => renamed.optional_size("num_kv_heads")?,
            (false, true) => Some(1),
            (false, false) => None,
        };
    Ok(renamed.with("intermediate_size", inner).with("num_kv_heads", kv_heads))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_number_of_key_heads_has_an_older_name() {
        let json = r#"{"n_embed": 64, "n_head": 8, "n_head_kv": 2, "num_kv_heads": null, "new_decoder_architecture": true}"#;
        let config = JsonConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap();
        let config = with_fields(&config).unwrap();
        assert_eq!(config.size("num_kv_heads").unwrap(), 2);
        assert_eq!(
            (config.size("hidden_size").unwrap(), config.size("intermediate_size").unwrap()),
            (64, 256)
        );
    }
}
