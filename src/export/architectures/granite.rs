//! Granite and HyperCLOVA X: Llama with factors of the embedding, of scores, of what each half of a layer adds, and of logits.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        routing::{Routing, Scores},
    },
    experts::{Experts, GateUp, StackedNames, chosen, sparse},
    family::{Family, NormStyle, linear},
    llama::with_biases,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let blueprint = read_factors("granite", config)?;
    let residual = config.positive("residual_multiplier")?;
    let logits_scale = Some(config.positive("logits_scaling")?.recip());
    Ok(Blueprint { logits_scale, ..blueprint.with_residual_factor(residual) })
}

/// Granite with experts, which are stored in two tensors.
pub(super) fn read_moe(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let mut blueprint = read_factors("granitemoe", config)?;
    let dims = blueprint.dims;
    let experts = Experts::read(config, "num_local_experts", [dims.layers, dims.hidden, dims.intermediate])?;
    let chosen = chosen(config, "num_experts_per_tok", experts.count)?;
    let routing = Routing { scores: Scores::SoftmaxOfChosen, ..Routing::softmax(chosen, false) };
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        let scope = format!("layers.{number}.block_sparse_moe");
        let router = linear(&format!("{scope}.router"), "layer", [experts.count, dims.hidden], false);
        let mut mlp = sparse(router, routing, experts.stacked(&scope, &STACKED));
        mlp.router_in_memory = Some("block_sparse_moe.router");
        mlp.into_layer(layer);
    }
    let residual = config.positive("residual_multiplier")?;
    let logits_scale = Some(config.positive("logits_scaling")?.recip());
    Ok(Blueprint { logits_scale, ..blueprint.with_residual_factor(residual) })
}

const STACKED: StackedNames = StackedNames {
    gate_up: "input_linear",
    down: "output_linear",
    end: ".weight",
    order: GateUp::Halves,
    is_transposed: false,
    has_biases: false,
};

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
