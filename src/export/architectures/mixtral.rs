//! Mixtral and Phi-3.5-MoE: experts under the names of Mixtral.

use super::{
    super::{
        blueprint::Blueprint,
        json_config::{JsonConfig, JsonConfigError},
        rope,
        routing::{Routing, Scores},
    },
    experts::{Experts, chosen, sparse},
    family::{Family, NormStyle, linear},
    fields::one_window,
};

const PARTS: [&str; 3] = ["w1", "w3", "w2"];

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let family = Family::read(config)?;
    let routing = |chosen| Ok(Routing::softmax(chosen, true));
    with_experts(("mixtral", "mlp.gate"), config, &family, routing)
}

/// Phi-3.5-MoE: layer normalisation, biases, and SparseMixer.
pub(super) fn read_phimoe(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &with_attention_factor(config)?;
    let bias = config.flag("attention_bias", false)?;
    let norms = NormStyle::layer(config.positive("rms_norm_eps")?);
    let family = Family { input_bias: bias, output_bias: bias, ..Family::read_with(config, norms)? };
    let routing = |chosen| {
        if chosen != 2 {
            return Err(config.unsupported("num_experts_per_tok", "2"));
        }
        let jitter = config.optional_positive("router_jitter_noise")?.unwrap_or(0.0);
        let scores = Scores::SparseMixer { tolerance: 2.0 * jitter };
        Ok(Routing { scores, ..Routing::softmax(chosen, false) })
    };
    let blueprint = with_experts(("phimoe", "mlp.router"), config, &family, routing)?;
    Ok(if config.flag("lm_head_bias", false)? { blueprint.with_head_bias() } else { blueprint })
}

fn with_experts(
    (name, router_in_memory): (&'static str, &'static str),
    config: &JsonConfig,
    family: &Family,
    routing: impl FnOnce(usize) -> Result<Routing, JsonConfigError>,
) -> Result<Blueprint, JsonConfigError> {
    let dims = family.dims;
    let experts = Experts::read(config, "num_local_experts", [dims.layers, dims.hidden, dims.intermediate])?;
    let routing = routing(chosen(config, "num_experts_per_tok", experts.count)?)?;
    let windows = one_window(config, dims.layers)?;
    let mut blueprint = family.blueprint(name, config)?.with_windows(windows);
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        let scope = format!("layers.{number}.block_sparse_moe");
        let router = linear(&scope, "gate", [experts.count, dims.hidden], false);
        let mut mlp = sparse(router, routing, experts.named(&format!("{scope}.experts"), PARTS));
        mlp.router_in_memory = Some(router_in_memory);
        mlp.into_layer(layer);
    }
    Ok(blueprint)
}

/// The configuration with `long_mscale` as the factor of rotary positions, where that is `short_mscale` too.
fn with_attention_factor(config: &JsonConfig) -> Result<JsonConfig, JsonConfigError> {
    let Some(section) = rope::section(config)? else { return Ok(config.clone()) };
    let (short, long) =
        (section.optional_positive("short_mscale")?, section.optional_positive("long_mscale")?);
    if short != long {
        return Err(section.unsupported("short_mscale", "the value of long_mscale"));
    }
    let Some(factor) = long else { return Ok(config.clone()) };
    let mut fields = serde_json::Map::new();
    for (name, value) in section.fields() {
        fields.insert(name.into(), value.clone());
    }
    fields.insert("attention_factor".into(), factor.into());
    let field = if config.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    Ok(config.clone().with(field, serde_json::Value::Object(fields)))
}
