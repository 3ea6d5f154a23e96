//! Granite and HyperCLOVA X: Llama with factors of the embedding, of scores, of what each half of a layer adds, and of logits.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
    },
    family::{Family, NormStyle},
    llama::with_biases,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let blueprint = read_factors("granite", config)?;
    let residual = config.positive("residual_multiplier")?;
    let logits_scale = Some(config.positive("logits_scaling")?.recip());
    Ok(Blueprint { logits_scale, ..blueprint.with_residual_factor(residual) })
}

/// HyperCLOVA X: norms after each half too, and logits are multiplied.
pub(super) fn read_hyperclovax(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let blueprint = read_factors("hyperclovax", config)?;
    let residual = config.positive("residual_multiplier")?;
    let blueprint = if config.flag("use_post_norm", true)? {
        let epsilon = config.positive("rms_norm_eps")?;
        let hidden = blueprint.dims.hidden;
        blueprint.with_layers(|number, layer| {
            let end = |name: &str| {
                let mut norm = NormStyle::rms(epsilon).norm(&format!("layers.{number}.{name}"), hidden);
                norm.weight.factor = residual;
                Some(norm)
            };
            layer.attention_end = end("post_norm1");
            layer.mlp_end = end("post_norm2");
        })
    } else {
        blueprint.with_residual_factor(residual)
    };
    Ok(Blueprint { logits_scale: Some(config.positive("logits_scaling")?), ..blueprint })
}

fn read_factors(architecture: &'static str, config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = with_biases(Family::read(config)?, config)?;
    let scale = config.optional_positive("attention_multiplier")?;
    let mut blueprint =
        family.blueprint(architecture, config)?.with_layers(|_, layer| layer.attention.scale = scale);
    blueprint.embedding.scale = Some(config.positive("embedding_multiplier")?);
    Ok(blueprint)
}
