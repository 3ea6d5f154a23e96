//! GPT-J and CodeGen: both halves of a layer read the same normalised stream, and pairs are side by side.

use super::{
    super::{
        blueprint::{Blueprint, Linear},
        json_config::{JsonConfig, JsonConfigError},
        param::Lines,
        rope::Partial,
    },
    family::{Family, NormStyle},
    fields::require_flag,
};

/// Dimensions of a head that are rotated.
const ROTATED: &str = "rotary_dim";

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    Ok(with_names(read_as("gptj", config)?))
}

/// CodeGen: query, value and key in one tensor, in four parts.
pub(super) fn read_codegen(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    const PARTS: usize = 4;
    let blueprint = read_as("codegen", config)?;
    if !blueprint.dims.heads.is_multiple_of(PARTS) {
        return Err(config.unsupported("n_head", "multiples of 4"));
    }
    let width = blueprint.dims.heads * blueprint.dims.head_dim / PARTS;
    let blueprint = blueprint.with_layers(|_, layer| {
        let attention = &mut layer.attention;
        let order: [(&mut Linear, &str); 3] = [
            (&mut attention.query, "q_proj"),
            (&mut attention.value, "v_proj"),
            (&mut attention.key, "k_proj"),
        ];
        for (place, (linear, name)) in order.into_iter().enumerate() {
            linear.weight.name = linear.weight.name.replace(name, "qkv_proj");
            linear.weight.lines = Lines::Turns { start: place * width, width, of: 3 * width };
        }
    });
    Ok(with_names(blueprint))
}

fn read_as(name: &'static str, config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "tie_word_embeddings", false)?;
    let norms = NormStyle::layer(config.positive("layer_norm_epsilon")?);
    let hidden = config.size("n_embd")?;
    let inner = config.optional_size("n_inner")?.unwrap_or(4 * hidden);
    let config = config.clone().with("intermediate_size", inner).with("rope_theta", 10_000);
    let positions = config.size("n_positions")?;
    let config = config.with("max_position_embeddings", positions);
    let family = Family {
        mlp_bias: true,
        is_gated: false,
        activation: "activation_function",
        partial: Partial::Supported,
        interleaved: true,
        ..Family::read_with(&config, norms)?
    };
    let mut blueprint = family.blueprint(name, &config)?.in_parallel(false).with_head_bias();
    if let Some(dims) = config.optional_size(ROTATED)? {
        if dims > family.dims.head_dim || !dims.is_multiple_of(2) {
            let expected =
                format!("an even number of at most {}, the dimensions of a head", family.dims.head_dim);
            return Err(config.wrong(ROTATED, expected));
        }
        blueprint.rotaries.iter_mut().for_each(|rotary| rotary.dims = dims);
    }
    Ok(blueprint)
}

fn with_names(blueprint: Blueprint) -> Blueprint {
    blueprint.renamed(&[
        ("layers", "h"),
        ("self_attn", "attn"),
        ("o_proj", "out_proj"),
        ("up_proj", "fc_in"),
        ("down_proj", "fc_out"),
        ("input_layernorm", "ln_1"),
        ("norm", "ln_f"),
        ("embed_tokens", "wte"),
    ])
}
