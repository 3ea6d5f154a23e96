//! MPT: ALiBi, and no biases.

use super::{
    super::{
        blueprint::{Blueprint, NormKind},
        json_config::{JsonConfig, JsonConfigError},
    },
    adjust::Fused,
    family::{Family, NormStyle},
    fields::require_flag,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "no_bias", true)?;
    if config.get("logit_scale").is_some() {
        return Err(config.unsupported("logit_scale", "null"));
    }
    let attention = match config.section("attn_config")? {
        Some(attention) => attention,
        None => config.clone(),
    };
    require_flag(&attention, "alibi", true)?;
    require_flag(&attention, "qk_ln", false)?;
    if !matches!(attention.text("attn_type")?, None | Some("multihead_attention")) {
        return Err(attention.unsupported("attn_type", "multihead_attention"));
    }
    let inner = config.size("expansion_ratio")?.saturating_mul(config.size("d_model")?);
    let config = &config.clone().with("intermediate_size", inner).with("activation", "gelu");
    let norms = NormStyle { kind: NormKind::Layer, ..NormStyle::rms(config.positive("layer_norm_epsilon")?) };
    let family = Family { is_gated: false, activation: "activation", ..Family::read_with(config, norms)? };
    let (clip, scale) =
        (attention.optional_positive("clip_qkv")?, attention.optional_positive("softmax_scale")?);
    let mut blueprint = family.without_positions("mpt", config, config.size("max_seq_len")?)?;
    let most = attention.optional_positive("alibi_bias_max")?.unwrap_or(8.0);
    blueprint.slopes = Some(slopes(blueprint.dims.heads, most));
    let blueprint = blueprint.with_fused_qkv("Wqkv", Fused::Stacked).with_layers(|_, layer| {
        layer.attention.clip = clip;
        layer.attention.scale = scale;
    });
    Ok(blueprint.renamed(&[
        ("layers", "blocks"),
        ("self_attn", "attn"),
        ("mlp", "ffn"),
        ("o_proj", "out_proj"),
        ("input_layernorm", "norm_1"),
        ("post_attention_layernorm", "norm_2"),
        ("norm", "norm_f"),
        ("embed_tokens", "wte"),
    ]))
}

/// Powers of two; where the number of heads is not one, every other of the next that is, and then the rest.
fn slopes(heads: usize, most: f32) -> Vec<f32> {
    let whole = heads.next_power_of_two();
    let all: Vec<f32> = (1..=whole).map(|n| 2f32.powf(n as f32 * (most / whole as f32)).recip()).collect();
    if whole == heads {
        return all;
    }
    let [odd, even] = [1, 0].map(|start| all.iter().skip(start).step_by(2));
    odd.chain(even).take(heads).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_are_no_power_of_two_take_every_other_slope_first() {
        let of = |exponents: &[i32]| exponents.iter().map(|n| 2f32.powi(-n)).collect::<Vec<_>>();
        assert_eq!(slopes(4, 8.0), of(&[2, 4, 6, 8]));
        assert_eq!(slopes(3, 8.0), of(&[4, 8, 2]));
    }
}
