//! The text model of Llama 4: rotary positions in most layers, with norms of queries and keys after the rotation, and experts that read
//! their token times its weight.
//!
//! Rotating layers see chunks of the context, and the others scale queries by their position. Both begin after as many
//! positions as a chunk has, which are the longest context here.

use super::{
    super::{
        blueprint::{Blueprint, HeadNorms, SharedMlp},
        json_config::{JsonConfig, JsonConfigError},
        routing::{Routing, Scores},
    },
    experts::{Experts, GateUp, StackedNames, chosen, sparse},
    family::{Family, NormStyle, linear},
};

const STACKED: StackedNames = StackedNames {
    gate_up: "gate_up_proj",
    down: "down_proj",
    end: "",
    order: GateUp::Halves,
    is_transposed: true,
    has_biases: false,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let width = config.size("intermediate_size")?;
    // Layers without experts have a width of their own.
    let whole = config.clone().with("intermediate_size", config.size("intermediate_size_mlp")?);
    let bias = config.flag("attention_bias", false)?;
    let family = Family { input_bias: bias, output_bias: bias, interleaved: true, ..Family::read(&whole)? };
    let (layers, hidden) = (family.dims.layers, family.dims.hidden);
    let experts = Experts::read(config, "num_local_experts", [layers, hidden, width])?;
    let routing = Routing {
        scores: Scores::Sigmoid,
        scales_input: true,
        ..Routing::softmax(chosen(config, "num_experts_per_tok", experts.count)?, false)
    };
    let norms = NormStyle { has_weights: false, ..family.norms };
    let has_norms = config.flag("use_qk_norm", true)?;
    let blueprint = family.blueprint("llama4_text", config)?.renamed(&[("mlp", "feed_forward")]);
    let rotates = rotating_layers(config, layers)?;
    let sparse_layers = sparse_layers(config, layers)?;
    let mut blueprint = blueprint.with_rotary(|layer| rotates[layer].then_some(0));
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        let attention = &mut layer.attention;
        if rotates[number] && has_norms {
            let norm =
                |name: &str| norms.norm(&format!("layers.{number}.self_attn.{name}"), family.dims.head_dim);
            attention.head_norms = Some(HeadNorms::Each([norm("q_norm"), norm("k_norm")]));
            attention.rotates_first = true;
        }
        if !sparse_layers[number] {
            continue;
        }
        let scope = format!("layers.{number}.feed_forward");
        let router = linear(&scope, "router", [experts.count, hidden], false);
        let mlp = family.mlp(config, &format!("{scope}.shared_expert"), width)?;
        sparse(router, routing, experts.stacked(&format!("{scope}.experts"), &STACKED))
            .with_shared(SharedMlp { mlp, gate: None })
            .into_layer(layer);
    }
    let longest = longest_context(config)?;
    blueprint.longest_context = blueprint.longest_context.min(longest);
    blueprint.context_length = blueprint.context_length.min(longest);
    Ok(blueprint)
}

/// Positions before the first that layers treat in another way.
fn longest_context(config: &JsonConfig) -> Result<usize, JsonConfigError> {
    let chunk = config.optional_size("attention_chunk_size")?.unwrap_or(usize::MAX);
    if !config.flag("attn_temperature_tuning", true)? {
        return Ok(chunk);
    }
    let first_scaled = config.optional_size("floor_scale")?.unwrap_or(8192);
    Ok(chunk.min(first_scaled - 1).max(1))
}

/// Whether each layer rotates: all but every few.
fn rotating_layers(config: &JsonConfig, layers: usize) -> Result<Vec<bool>, JsonConfigError> {
    const LIST: &str = "no_rope_layers";
    let stated = config.ids(LIST)?;
    if !stated.is_empty() && stated.len() != layers {
        return Err(config.wrong(LIST, format!("{layers} of them, one for each layer")));
    }
    let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    Ok((0..layers)
        .map(|layer| stated.get(layer).map_or(!(layer + 1).is_multiple_of(interval), |rotates| *rotates != 0))
        .collect())
}

/// Whether each layer has experts: those of a list, or every few.
fn sparse_layers(config: &JsonConfig, layers: usize) -> Result<Vec<bool>, JsonConfigError> {
    const LIST: &str = "moe_layers";
    if config.get(LIST).is_some() {
        let stated = config.ids(LIST)?;
        return Ok((0..layers).map(|layer| stated.iter().any(|one| *one as usize == layer)).collect());
    }
    let step = config.optional_size("interleave_moe_layer_step")?.unwrap_or(1);
    Ok((0..layers).map(|layer| (layer + 1).is_multiple_of(step)).collect())
}
