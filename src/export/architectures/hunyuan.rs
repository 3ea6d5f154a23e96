//! Hunyuan (dense) and nanochat: norms of query and key heads follow the rotation.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope::{self, Scaling},
    },
    family::{Family, HeadNormWidth, NormStyle},
    llama::with_biases,
};

/// Hunyuan: weighted norms, and a base of rotary positions that `alpha` stretches for every length.
pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    Ok(read_as("hunyuan_v1_dense", config)?.0)
}

/// The same, called `name`; also gives the family.
pub(super) fn read_as(
    name: &'static str,
    config: &JsonConfig,
) -> Result<(Blueprint, Family), JsonConfigError> {
    let (config, alpha) = without_alpha(config)?;
    // The MLP has no biases.
    let family = Family { mlp_bias: false, ..with_biases(Family::read(&config)?, &config)? };
    let family = Family { head_norms: Some(HeadNormWidth::Each), ..family };
    let mut blueprint = family
        .blueprint(name, &config)?
        .with_layers(|_, layer| layer.attention.rotates_first = true)
        .renamed(&[("q_norm", "query_layernorm"), ("k_norm", "key_layernorm")]);
    if let Some(alpha) = alpha {
        blueprint.rotaries.iter_mut().for_each(|rotary| rotary.scaling = Scaling::NtkAlpha { alpha });
    }
    Ok((blueprint, family))
}

/// nanochat: no norm has weights, pairs turn the other way, and logits are capped.
pub(super) fn read_nanochat(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let norms = NormStyle { has_weights: false, ..NormStyle::rms(config.positive("rms_norm_eps")?) };
    let bias = config.flag("attention_bias", false)?;
    // Without weights, a norm before the rotation is the same as one after it.
    let family = Family {
        input_bias: bias,
        output_bias: bias,
        head_norms: Some(HeadNormWidth::Each),
        is_gated: false,
        ..Family::read_with(config, norms)?
    };
    let mut blueprint = family.blueprint("nanochat", config)?;
    if blueprint.rotaries.iter().any(|rotary| rotary.angles().factor != 1.0) {
        return Err(config.unsupported("rope_parameters", "a rope_type that does not scale attention"));
    }
    blueprint.rotaries.iter_mut().for_each(|rotary| rotary.is_reversed = true);
    blueprint.embedding.norm = Some(family.norm("embed_norm", family.dims.hidden));
    blueprint.logits_cap = config.optional_positive("final_logit_softcapping")?;
    Ok(blueprint.renamed(&[("up_proj", "fc1"), ("down_proj", "fc2")]))
}

/// The configuration with unscaled rotary positions, and `alpha`, if it has that.
fn without_alpha(config: &JsonConfig) -> Result<(JsonConfig, Option<f32>), JsonConfigError> {
    let Some(section) = rope::section(config)? else { return Ok((config.clone(), None)) };
    let is_dynamic = section.text("rope_type")?.or(section.text("type")?) == Some("dynamic");
    let alpha = section.optional_positive("alpha")?.filter(|_| is_dynamic);
    if alpha.is_none() {
        return Ok((config.clone(), None));
    }
    let theta = match section.optional_positive("rope_theta")? {
        Some(theta) => theta,
        None => config.positive("rope_theta")?,
    };
    let plain = json!({ "rope_type": "default", "rope_theta": theta });
    Ok((config.clone().with("rope_scaling", plain), alpha))
}
