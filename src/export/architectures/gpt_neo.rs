//! GPT-Neo and StarCoder 1 (GPT-BigCode): GPT-2 with other linear layers.

use super::{
    super::{
        blueprint::{Blueprint, Positions},
        json_config::{JsonConfig, JsonConfigError},
        param::Param,
    },
    adjust::Fused,
    family::{Family, NormStyle},
    fields::require_flag,
};

/// GPT-Neo: scores are not scaled, and some layers have a window.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let hidden = config.size("hidden_size")?;
    let inner = config.optional_size("intermediate_size")?.unwrap_or(4 * hidden);
    let config = &config.clone().with("intermediate_size", inner);
    let positions = config.size("max_position_embeddings")?;
    let family = Family { output_bias: true, ..read_family(config)? };
    let is_local = local_layers(config, family.dims.layers)?;
    let window = config.size("window_size")?;
    let blueprint = family.without_positions("gpt_neo", config, positions)?.with_layers(|number, layer| {
        layer.attention.scale = Some(1.0);
        layer.attention.window = is_local[number].then_some(window);
    });
    Ok(with_names(with_positions(blueprint, positions))
        .renamed(&[("attn", "attn.attention"), ("c_attn_proj", "out_proj")]))
}

/// GPT-BigCode: one key head for all query heads, as a rule.
pub(super) fn read_bigcode(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let hidden = config.size("n_embd")?;
    let inner = config.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let is_shared = config.flag("multi_query", true)?;
    require_flag(config, "add_cross_attention", false)?;
    let config = &config.clone().with("intermediate_size", inner);
    let config = &if is_shared { config.clone().with("num_key_value_heads", 1) } else { config.clone() };
    let positions = config.size("n_positions")?;
    let family = Family { input_bias: true, output_bias: true, ..read_family(config)? };
    let scale = if config.flag("scale_attn_weights", true)? { None } else { Some(1.0) };
    let order = if is_shared { Fused::Stacked } else { Fused::ByKeyHead };
    let blueprint = family
        .without_positions("gpt_bigcode", config, positions)?
        .with_layers(|_, layer| layer.attention.scale = scale)
        .with_fused_qkv("c_attn", order);
    Ok(with_names(with_positions(blueprint, positions)).renamed(&[("c_attn_proj", "c_proj")]))
}

fn read_family(config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let norms = NormStyle::layer(config.positive("layer_norm_epsilon")?);
    let family = Family::read_with(config, norms)?;
    Ok(Family { mlp_bias: true, is_gated: false, activation: "activation_function", ..family })
}

fn with_positions(mut blueprint: Blueprint, positions: usize) -> Blueprint {
    let table = Param::matrix("wpe.weight", positions, blueprint.dims.hidden);
    blueprint.embedding.positions = Some(Positions::Learned(table));
    blueprint
}

/// The two call the attention's output differently.
fn with_names(blueprint: Blueprint) -> Blueprint {
    blueprint.renamed(&[
        ("layers", "h"),
        ("self_attn", "attn"),
        ("o_proj", "c_attn_proj"),
        ("up_proj", "c_fc"),
        ("down_proj", "c_proj"),
        ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"),
        ("norm", "ln_f"),
        ("embed_tokens", "wte"),
    ])
}

/// `attention_types` lists kinds of layers, and how often the list is repeated.
fn local_layers(config: &JsonConfig, layers: usize) -> Result<Vec<bool>, JsonConfigError> {
    const FIELD: &str = "attention_types";
    let Some(groups) = config.get(FIELD) else {
        return Ok((0..layers).map(|layer| !layer.is_multiple_of(2)).collect());
    };
    let wrong =
        || config.wrong(FIELD, format!("groups of global and local and a count, {layers} layers together"));
    let mut local = Vec::new();
    for group in groups.as_array().ok_or_else(wrong)? {
        let (kinds, count) = (group[0].as_array().ok_or_else(wrong)?, group[1].as_u64().ok_or_else(wrong)?);
        if kinds.is_empty() || count > layers as u64 {
            return Err(wrong());
        }
        for _ in 0..count {
            if local.len() > layers {
                return Err(wrong());
            }
            for kind in kinds {
                local.push(match kind.as_str() {
                    Some("global") => false,
                    Some("local") => true,
                    _ => return Err(wrong()),
                });
            }
        }
    }
    if local.len() == layers { Ok(local) } else { Err(wrong()) }
}
