//! Qwen 2 and 3 with experts, and OLMoE.

use serde_json::Value;

use super::{
    super::{
        blueprint::{Blueprint, SharedMlp, SparseMlp},
        json_config::{JsonConfig, JsonConfigError},
        routing::Routing,
    },
    experts::{Experts, chosen, sparse},
    family::{Family, HeadNormWidth, linear},
    fields::{one_window, windows},
};

/// The modules of an expert.
pub(super) const PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Qwen 1.5 and 2 with experts: one more MLP for every token, behind a gate.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &without_unused_window(config)?;
    let family = Family { input_bias: config.flag("qkv_bias", true)?, ..Family::read(config)? };
    let experts = read_experts(config, "num_experts", &family, config.size("moe_intermediate_size")?)?;
    let full = config.count("max_window_layers")?;
    let windows = windows(config, family.dims.layers, |layer| layer.is_multiple_of(2) && layer < full)?;
    let mut blueprint = family.blueprint("qwen2_moe", config)?.with_windows(windows);
    let (hidden, width) = (family.dims.hidden, config.size("shared_expert_intermediate_size")?);
    for number in sparse_layers(config, family.dims.layers)? {
        let layer = &mut blueprint.layers[number];
        let scope = format!("layers.{number}.mlp");
        let mlp = family.mlp(config, &format!("{scope}.shared_expert"), width)?;
        let gate = Some(linear(&scope, "shared_expert_gate", [1, hidden], false));
        experts.mlp(&scope).with_shared(SharedMlp { mlp, gate }).into_layer(layer);
    }
    Ok(blueprint)
}

/// Qwen 3 with experts: norms of query and key heads.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &without_unused_window(config)?;
    let bias = config.flag("attention_bias", false)?;
    let head_norms = Some(HeadNormWidth::Each);
    let family = Family { input_bias: bias, output_bias: bias, head_norms, ..Family::read(config)? };
    let experts = read_experts(config, "num_local_experts", &family, config.size("moe_intermediate_size")?)?;
    let windows = one_window(config, family.dims.layers)?;
    let mut blueprint = family.blueprint("qwen3_moe", config)?.with_windows(windows);
    for number in sparse_layers(config, family.dims.layers)? {
        let layer = &mut blueprint.layers[number];
        experts.mlp(&format!("layers.{number}.mlp")).into_layer(layer);
    }
    Ok(blueprint)
}

/// OLMoE: norms of all queries and of all keys.
pub(super) fn read_olmoe(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    if config.get("clip_qkv").is_some() {
        return Err(config.unsupported("clip_qkv", "null"));
    }
    let bias = config.flag("attention_bias", false)?;
    let head_norms = Some(HeadNormWidth::Whole);
    let family = Family { input_bias: bias, output_bias: bias, head_norms, ..Family::read(config)? };
    let experts = read_experts(config, "num_experts", &family, family.dims.intermediate)?;
    let mut blueprint = family.blueprint("olmoe", config)?;
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        experts.mlp(&format!("layers.{number}.mlp")).into_layer(layer);
    }
    Ok(blueprint)
}

/// Experts and how they are chosen.
struct Mixture {
    experts: Experts,
    routing: Routing,
}

impl Mixture {
    fn mlp(&self, scope: &str) -> SparseMlp {
        let Experts { count, hidden, .. } = self.experts;
        let router = linear(scope, "gate", [count, hidden], false);
        sparse(router, self.routing, self.experts.named(&format!("{scope}.experts"), PARTS))
    }
}

fn read_experts(
    config: &JsonConfig,
    field: &str,
    family: &Family,
    width: usize,
) -> Result<Mixture, JsonConfigError> {
    let experts = Experts::read(config, field, [family.dims.layers, family.dims.hidden, width])?;
    let chosen = chosen(config, "num_experts_per_tok", experts.count)?;
    Ok(Mixture { experts, routing: Routing::softmax(chosen, config.flag("norm_topk_prob", false)?) })
}

/// Layers that have experts: all but those that `mlp_only_layers` names, or every few.
fn sparse_layers(config: &JsonConfig, layers: usize) -> Result<Vec<usize>, JsonConfigError> {
    let dense = config.ids("mlp_only_layers")?;
    let step = config.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let is_dense = |layer: usize| dense.iter().any(|dense| *dense as usize == layer);
    Ok((0..layers).filter(|layer| (layer + 1).is_multiple_of(step) && !is_dense(*layer)).collect())
}

/// Without the flag the size has no effect.
fn without_unused_window(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let is_used = config.flag("use_sliding_window", false)?;
    Ok(if is_used { config.clone() } else { config.clone().with("sliding_window", Value::Null) })
}
