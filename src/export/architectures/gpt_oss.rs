//! gpt-oss: sinks of attention, windows in every other layer, and experts with biases and a clamped SwiGLU.

use serde_json::json;

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        param::Param,
        routing::{Routing, Scores, SwiGlu},
    },
    experts::{Experts, GateUp, StackedNames, chosen, sparse},
    family::{Family, linear},
    fields::windows,
};

const STACKED: StackedNames = StackedNames {
    gate_up: "gate_up_proj",
    down: "down_proj",
    end: "",
    order: GateUp::Turns,
    is_transposed: true,
    has_biases: true,
};

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let yarn = json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096,
    });
    let has_rope = ["rope_parameters", "rope_scaling"].iter().any(|field| config.get(field).is_some());
    let config = &if has_rope { config.clone() } else { config.clone().with("rope_parameters", yarn) };
    let bias = config.flag("attention_bias", true)?;
    let family = Family { input_bias: bias, output_bias: bias, ..Family::read(config)? };
    let dims = family.dims;
    let experts = Experts::read(config, "num_local_experts", [dims.layers, dims.hidden, dims.intermediate])?;
    let chosen = chosen(config, "num_experts_per_tok", experts.count)?;
    let routing = Routing { scores: Scores::SoftmaxOfChosen, ..Routing::softmax(chosen, false) };
    let activation = SwiGlu {
        alpha: config.positive("swiglu_alpha")?,
        limit: Some(config.positive("swiglu_limit")?),
        up_offset: 1.0,
    };
    let windows = windows(config, dims.layers, |layer| layer.is_multiple_of(2))?;
    let mut blueprint = family.blueprint("gpt_oss", config)?.with_windows(windows);
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        let sinks = Param::vector(format!("layers.{number}.self_attn.sinks"), dims.heads);
        layer.attention.sinks = Some(sinks);
        let scope = format!("layers.{number}.mlp");
        let router = linear(&scope, "router", [experts.count, dims.hidden], true);
        let mut mlp = sparse(router, routing, experts.stacked(&format!("{scope}.experts"), &STACKED));
        mlp.activation = activation;
        mlp.into_layer(layer);
    }
    Ok(blueprint)
}
