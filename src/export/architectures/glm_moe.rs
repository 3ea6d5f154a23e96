//! GLM-4.5, ERNIE 4.5 and Hunyuan with experts: dense first layers, and an MLP for every token beside the experts.

use serde_json::{Value, json};

use super::{
    super::{
        blueprint::{Blueprint, SharedMlp},
        json_config::{JsonConfig, JsonConfigError},
        param::Param,
        rope::Partial,
        routing::Routing,
    },
    experts::{Experts, chosen, shared_width, sigmoid_in_groups, sparse},
    family::{Family, HeadNormWidth, linear},
    hunyuan,
    qwen_moe::PARTS,
};

/// GLM-4.5: routing as in DeepSeek-V3, and rotary positions on half of each head.
pub(super) fn read_glm4(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().or(json!({ "partial_rotary_factor": 0.5 }));
    let head_norms = config.flag("use_qk_norm", false)?.then_some(HeadNormWidth::Each);
    let family = Family {
        input_bias: config.flag("attention_bias", false)?,
        partial: Partial::Supported,
        head_norms,
        ..Family::read(config)?
    };
    let (layers, hidden) = (family.dims.layers, family.dims.hidden);
    let width = config.size("moe_intermediate_size")?;
    let experts = Experts::read(config, "n_routed_experts", [layers, hidden, width])?;
    let routing = sigmoid_in_groups(config, experts.count)?;
    let shared = shared_width(config, "n_shared_experts", width)?;
    let mut blueprint = family.blueprint("glm4_moe", config)?;
    blueprint.prediction_layers = config.count("num_mtp_layers")?;
    let dense = config.count("first_k_dense_replace")?;
    for (number, layer) in blueprint.layers.iter_mut().enumerate().skip(dense) {
        let scope = format!("layers.{number}.mlp");
        let router = linear(&scope, "gate", [experts.count, hidden], false);
        let mut mlp = sparse(router, routing, experts.named(&format!("{scope}.experts"), PARTS));
        let correction = Param::vector(format!("{scope}.gate.e_score_correction_bias"), experts.count);
        mlp.correction = Some(correction);
        if let Some(shared) = shared {
            let shared = family.mlp(config, &format!("{scope}.shared_experts"), shared)?;
            mlp = mlp.with_shared(SharedMlp { mlp: shared, gate: None });
        }
        mlp.into_layer(layer);
    }
    Ok(blueprint)
}

/// ERNIE 4.5: experts in layers of a range, with a correction for the choice.
pub(super) fn read_ernie4_5(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let bias = config.flag("use_bias", false)?;
    let family = Family::read(config)?;
    let family = Family { input_bias: bias, output_bias: bias, mlp_bias: bias, interleaved: true, ..family };
    let (layers, hidden) = (family.dims.layers, family.dims.hidden);
    let width = config.size("moe_intermediate_size")?;
    let experts = Experts::read(config, "moe_num_experts", [layers, hidden, width])?;
    let routing = Routing::softmax(chosen(config, "moe_k", experts.count)?, true);
    let shared = shared_width(config, "moe_num_shared_experts", width)?;
    let mut blueprint = family.blueprint("ernie4_5_moe", config)?;
    let first = config.count("moe_layer_start_index")?;
    // -1 for the last layer.
    let last = config.get("moe_layer_end_index").and_then(Value::as_u64);
    let last = last.and_then(|last| usize::try_from(last).ok()).unwrap_or(usize::MAX);
    let interval = config.optional_size("moe_layer_interval")?.unwrap_or(1);
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        if number < first || number > last || !(number + 1).is_multiple_of(interval) {
            continue;
        }
        let scope = format!("layers.{number}.mlp");
        let router = linear(&scope, "gate", [experts.count, hidden], false);
        let mut mlp = sparse(router, routing, experts.named(&format!("{scope}.experts"), PARTS));
        let name = format!("{scope}.moe_statics.e_score_correction_bias");
        mlp.correction = Some(Param::matrix(name, 1, experts.count));
        if let Some(shared) = shared {
            let shared = family.mlp(config, &format!("{scope}.shared_experts"), shared)?;
            mlp = mlp.with_shared(SharedMlp { mlp: shared, gate: None });
        }
        mlp.into_layer(layer);
    }
    Ok(blueprint)
}

/// Hunyuan: every layer has experts, and all of them as many.
pub(super) fn read_hunyuan(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_one_number(config, &["num_experts", "moe_topk"])?;
    let (mut blueprint, family) = hunyuan::read_as("hunyuan_v1_moe", config)?;
    let dims = family.dims;
    let experts = Experts::read(config, "num_experts", [dims.layers, dims.hidden, dims.intermediate])?;
    let routing = Routing::softmax(chosen(config, "moe_topk", experts.count)?, true);
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        let scope = format!("layers.{number}.mlp");
        let router = linear(&format!("{scope}.gate"), "wg", [experts.count, dims.hidden], false);
        let mlp = sparse(router, routing, experts.named(&format!("{scope}.experts"), PARTS));
        let shared = family.mlp(config, &format!("{scope}.shared_mlp"), dims.intermediate)?;
        mlp.with_shared(SharedMlp { mlp: shared, gate: None }).into_layer(layer);
    }
    Ok(blueprint)
}

/// The configuration with one number for all layers in each of `fields`, which may have a list of equal ones.
fn with_one_number(config: &JsonConfig, fields: &[&str]) -> Result<JsonConfig, JsonConfigError> {
    let mut config = config.clone();
    for field in fields {
        let Some(Value::Array(numbers)) = config.get(field) else { continue };
        let first = numbers.first().cloned().unwrap_or(Value::Null);
        if numbers.iter().any(|number| *number != first) {
            return Err(config.unsupported(field, "the same number for all layers"));
        }
        config = config.with(field, first);
    }
    Ok(config)
}
