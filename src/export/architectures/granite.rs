//! Granite: Llama with factors of the embedding, of scores, of what each half of a layer adds, and of logits.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::Family,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias, ..Family::read(config)? };
    let scale = config.positive("attention_multiplier")?;
    let mut blueprint = family
        .blueprint("granite", config)?
        .with_residual_factor(config.positive("residual_multiplier")?)
        .with_layers(|_, layer| layer.attention.scale = Some(scale));
    blueprint.embedding.scale = Some(config.positive("embedding_multiplier")?);
    blueprint.logits_scale = Some(config.positive("logits_scaling")?.recip());
    Ok(blueprint)
}
