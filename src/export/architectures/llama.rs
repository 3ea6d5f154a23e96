//! Llama 2, 3 and 3.x, and the many that took its shape.

use serde_json::{Value, json};

use super::{
    super::{
        blueprint::{Activation, Blueprint},
        json_config::{JsonConfig, JsonConfigError},
        param::Param,
    },
    family::{Family, HeadNormWidth, NormStyle},
    fields::windows,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    with_biases(Family::read(config)?, config)?.blueprint("llama", config)
}

/// The family with the biases that `attention_bias` and `mlp_bias` name.
pub(super) fn with_biases(family: Family, config: &JsonConfig) -> Result<Family, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    Ok(Family { input_bias: bias, output_bias: bias, mlp_bias, ..family })
}

/// CWM: windows in three of four layers.
pub(super) fn read_cwm(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_rope(
        config,
        json!({
            "rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }),
    );
    let family = with_biases(Family::read(config)?, config)?;
    let windows = windows(config, family.dims.layers, |layer| !layer.is_multiple_of(4))?;
    Ok(family.blueprint("cwm", config)?.with_windows(windows))
}

/// Jais 2: layer normalisation, and an MLP without a gate.
pub(super) fn read_jais2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let norms = NormStyle::layer(config.positive("layer_norm_eps")?);
    let family = with_biases(Family::read_with(config, norms)?, config)?;
    Family { is_gated: false, ..family }.blueprint("jais2", config)
}

/// Apertus: norms of query and key heads, and an MLP without a gate whose nonlinearity has trained parameters.
pub(super) fn read_apertus(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_rope(
        config,
        json!({
            "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }),
    );
    let is_xielu = config.text("hidden_act")? == Some("xielu");
    // The family knows nonlinearities without parameters only.
    let known = if is_xielu { config.clone().with("hidden_act", "relu2") } else { config.clone() };
    let family = with_biases(Family::read(config)?, config)?;
    let family = Family { is_gated: false, head_norms: Some(HeadNormWidth::Each), ..family };
    let blueprint = family.blueprint("apertus", &known)?.with_layers(|number, layer| {
        if let Some(mlp) = layer.mlp.dense_mut().filter(|_| is_xielu) {
            let learned = |name: &str| Param::vector(format!("layers.{number}.mlp.act_fn.{name}"), 1);
            mlp.activation = Activation::Xielu { positive: learned("alpha_p"), negative: learned("alpha_n") };
        }
    });
    Ok(blueprint.renamed(&[
        ("input_layernorm", "attention_layernorm"),
        ("post_attention_layernorm", "feedforward_layernorm"),
    ]))
}

/// The configuration with the rotary positions that its class has by default.
fn with_rope(config: &JsonConfig, default: Value) -> JsonConfig {
    let is_stated = ["rope_parameters", "rope_scaling"].iter().any(|field| config.get(field).is_some());
    if is_stated { config.clone() } else { config.clone().with("rope_parameters", default) }
}

/// Arcee: an MLP without a gate.
pub(super) fn read_arcee(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    Family { is_gated: false, ..with_biases(Family::read(config)?, config)? }.blueprint("arcee", config)
}

/// Seed-OSS: biases of query, key and value, and separately of the output.
pub(super) fn read_seed_oss(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family {
        input_bias: config.flag("attention_bias", true)?,
        output_bias: config.flag("attention_out_bias", false)?,
        mlp_bias: config.flag("mlp_bias", false)?,
        ..Family::read(config)?
    };
    family.blueprint("seed_oss", config)
}

/// Helium: pairs side by side, and no bias of the output.
pub(super) fn read_helium(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family {
        input_bias: config.flag("attention_bias", false)?,
        mlp_bias: config.flag("mlp_bias", false)?,
        interleaved: true,
        ..Family::read(config)?
    };
    family.blueprint("helium", config)
}

/// ERNIE 4.5: pairs side by side.
pub(super) fn read_ernie4_5(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("use_bias", false)?;
    let family = Family::read(config)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias: bias, interleaved: true, ..family };
    family.blueprint("ernie4_5", config)
}
