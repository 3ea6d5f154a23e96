//! OPT and BioGPT, whose learned positions begin with the third row of their table, and XGLM, whose sines do the same.

use super::{
    super::{
        blueprint::{Blueprint, Positions},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
        rope::Sinusoid,
    },
    family::{Family, NormStyle},
    fields::require_flag,
};

/// Rows of the table of positions that no position has.
const UNUSED_ROWS: usize = 2;

/// The epsilon of PyTorch's layer normalisation.
const EPSILON: f32 = 1e-5;

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "do_layer_norm_before", true)?;
    require_flag(config, "_remove_final_layer_norm", false)?;
    let bias = config.flag("enable_bias", true)?;
    let has_weights = config.flag("layer_norm_elementwise_affine", true)?;
    let norms = NormStyle { biased: has_weights, has_weights, ..NormStyle::layer(EPSILON) };
    let family = read_family(config, (norms, bias), "activation_function")?;
    if config.optional_size("word_embed_proj_dim")?.is_some_and(|size| size != family.dims.hidden) {
        return Err(config.unsupported("word_embed_proj_dim", "the value of hidden_size"));
    }
    let blueprint = with_positions(family, "opt", config)?;
    Ok(with_names(blueprint).renamed(&[("norm", "final_layer_norm")]))
}

pub(super) fn read_biogpt(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = read_family(config, (NormStyle::layer(EPSILON), true), "hidden_act")?;
    let mut blueprint = with_positions(family, "biogpt", config)?;
    if config.flag("scale_embedding", true)? {
        blueprint.embedding.scale = Some((blueprint.dims.hidden as f32).sqrt());
    }
    Ok(with_names(blueprint).renamed(&[("norm", "layer_norm")]))
}

/// XGLM: sines and cosines of positions.
pub(super) fn read_xglm(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "add_cross_attention", false)?;
    // The row of this number in the table of positions is zero, and the first position has the row after the unused ones.
    if config.optional_size("pad_token_id").is_ok_and(|pad| pad.is_some_and(|pad| pad >= UNUSED_ROWS)) {
        return Err(config.unsupported("pad_token_id", "0 and 1"));
    }
    let config = &config.clone().renamed("attention_heads", "num_attention_heads");
    let family = read_family(config, (NormStyle::layer(EPSILON), true), "activation_function")?;
    let positions = config.size("max_position_embeddings")?;
    let mut blueprint = family.without_positions("xglm", config, positions)?;
    let sinusoid = Sinusoid { dims: family.dims.hidden, start: UNUSED_ROWS };
    blueprint.embedding.positions = Some(Positions::Sinusoidal(sinusoid));
    if config.flag("scale_embedding", true)? {
        blueprint.embedding.scale = Some((family.dims.hidden as f32).sqrt());
    }
    Ok(with_names(blueprint).renamed(&[("norm", "layer_norm")]))
}

fn read_family(
    config: &JsonConfig,
    (norms, bias): (NormStyle, bool),
    activation: &'static str,
) -> Result<Family, JsonConfigError> {
    let family = Family::read_with(config, norms)?;
    Ok(Family { input_bias: bias, output_bias: bias, mlp_bias: bias, is_gated: false, activation, ..family })
}

fn with_positions(
    family: Family,
    name: &'static str,
    config: &JsonConfig,
) -> Result<Blueprint, JsonConfigError> {
    let positions = config.size("max_position_embeddings")?;
    let mut blueprint = family.without_positions(name, config, positions)?;
    let lines = Lines::From { start: UNUSED_ROWS, of: positions + UNUSED_ROWS };
    let table = Param::matrix("embed_positions.weight", positions, blueprint.dims.hidden);
    blueprint.embedding.positions = Some(Positions::Learned(Param { lines, ..table }));
    Ok(blueprint)
}

fn with_names(blueprint: Blueprint) -> Blueprint {
    blueprint.renamed(&[
        ("o_proj", "out_proj"),
        ("mlp.up_proj", "fc1"),
        ("mlp.down_proj", "fc2"),
        ("input_layernorm", "self_attn_layer_norm"),
        ("post_attention_layernorm", "final_layer_norm"),
    ])
}
