//! DeepSeek-V2 and V3: multi-head latent attention, and experts beside an MLP for every token.

use super::{
    super::{
        blueprint::{Attention, Blueprint, Latent, Linear, SharedMlp},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
        rope::{self, Partial, Rotary},
        routing::{Groups, Routing},
    },
    experts::{Experts, chosen, groups, shared_width, sigmoid_in_groups, sparse},
    family::{Family, NormStyle, linear},
    fields::check_heads,
    qwen_moe::PARTS,
};
use crate::manifest::{Dims, MAX_DIMENSION};

/// DeepSeek-V2: softmax over all experts, perhaps in groups by their best one.
pub(super) fn read_2(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let config = &config.clone().with("rope_interleave", true);
    read_with("deepseek_v2", config, |experts| {
        let groups = match config.text("topk_method")? {
            Some("group_limited_greedy") => groups(config, (experts, 1))?,
            Some("greedy") | None => Groups::ONE,
            Some(_) => return Err(config.unsupported("topk_method", "greedy, group_limited_greedy")),
        };
        let scale = config.positive("routed_scaling_factor")?;
        let chosen = chosen(config, "num_experts_per_tok", experts)?;
        // As in transformers, `norm_topk_prob` has no effect.
        Ok((Routing { scale, groups, ..Routing::softmax(chosen, false) }, false))
    })
}

/// DeepSeek-V3 and R1: sigmoids, with a correction for the choice, in groups by their two best experts.
pub(super) fn read_3(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    let blueprint =
        read_with("deepseek_v3", config, |experts| Ok((sigmoid_in_groups(config, experts)?, true)))?;
    Ok(Blueprint { prediction_layers: config.count("num_mtp_layers")?, ..blueprint })
}

/// `routing` reads how experts of the given number are chosen, and whether there is a correction.
fn read_with(
    name: &'static str,
    config: &JsonConfig,
    routing: impl Fn(usize) -> Result<(Routing, bool), JsonConfigError>,
) -> Result<Blueprint, JsonConfigError> {
    let heads = Heads::read(config)?;
    let mlp_bias = name == "deepseek_v2" && config.flag("mlp_bias", false)?;
    // Every head has keys of its own, whatever the number of key heads is.
    let whole = config.clone().with("head_dim", heads.all());
    let heads_field = config.size("num_attention_heads")?;
    let family = Family { mlp_bias, ..Family::read(&whole.with("num_key_value_heads", heads_field))? };
    let Dims { layers, hidden, .. } = family.dims;
    let rotary =
        Rotary::read(&config.clone().with("head_dim", heads.rotated), heads.rotated, Partial::Refused)?;
    let rotary = Rotary { interleaved: config.flag("rope_interleave", true)?, ..rotary };
    let [context_length, longest_context] = rotary.context(config.size("max_position_embeddings")?);
    let blueprint = family.without_positions(name, config, context_length)?;
    let mut blueprint = Blueprint { longest_context, rotaries: vec![rotary], ..blueprint };
    let width = config.size("moe_intermediate_size")?;
    let experts = Experts::read(config, "n_routed_experts", [layers, hidden, width])?;
    let (routing, is_corrected) = routing(experts.count)?;
    let shared = shared_width(config, "n_shared_experts", width)?;
    let dense = config.count("first_k_dense_replace")?;
    for (number, layer) in blueprint.layers.iter_mut().enumerate() {
        layer.attention = heads.attention(config, &format!("layers.{number}.self_attn"), family.dims)?;
        if number < dense {
            continue;
        }
        let scope = format!("layers.{number}.mlp");
        let router = linear(&scope, "gate", [experts.count, hidden], false);
        let mut mlp = sparse(router, routing, experts.named(&format!("{scope}.experts"), PARTS));
        mlp.correction = is_corrected
            .then(|| Param::vector(format!("{scope}.gate.e_score_correction_bias"), experts.count));
        if let Some(shared) = shared {
            let unbiased = Family { mlp_bias: false, ..family };
            let shared = unbiased.mlp(config, &format!("{scope}.shared_experts"), shared)?;
            mlp = mlp.with_shared(SharedMlp { mlp: shared, gate: None });
        }
        mlp.into_layer(layer);
    }
    Ok(blueprint)
}

/// The sizes of heads.
struct Heads {
    /// Dimensions of queries and keys without positions.
    still: usize,
    rotated: usize,
    value: usize,
    /// What queries are compressed to, if they are.
    query_rank: Option<usize>,
    rank: usize,
}

impl Heads {
    fn read(config: &JsonConfig) -> Result<Self, JsonConfigError> {
        let heads = Self {
            still: config.size("qk_nope_head_dim")?,
            rotated: config.size("qk_rope_head_dim")?,
            value: config.size("v_head_dim")?,
            query_rank: config.optional_size("q_lora_rank")?,
            rank: config.size("kv_lora_rank")?,
        };
        let count = config.size("num_attention_heads")?;
        check_heads(config, "qk_nope_head_dim", (count, heads.all()))?;
        if heads.value > heads.all() {
            return Err(config.unsupported("v_head_dim", "at most the dimensions of queries and keys"));
        }
        if (heads.all() + heads.value).checked_mul(count).is_none_or(|width| width > MAX_DIMENSION) {
            return Err(
                config.wrong("num_attention_heads", format!("heads at most {MAX_DIMENSION} wide together"))
            );
        }
        if [Some(heads.rank), heads.query_rank].into_iter().flatten().any(|rank| !rank.is_multiple_of(2)) {
            return Err(
                config.unsupported("kv_lora_rank", "even ranks, so that two 4-bit weights fill a byte")
            );
        }
        Ok(heads)
    }

    fn all(&self) -> usize {
        self.still + self.rotated
    }

    fn attention(&self, config: &JsonConfig, module: &str, dims: Dims) -> Result<Attention, JsonConfigError> {
        let Self { still, rotated, value, query_rank, rank } = *self;
        let Dims { hidden, heads, .. } = dims;
        let bias = config.flag("attention_bias", false)?;
        let norms = NormStyle::rms(1e-6);
        let query = match query_rank {
            None => linear(module, "q_proj", [heads * self.all(), hidden], false),
            Some(rank) => linear(module, "q_b_proj", [heads * self.all(), rank], false),
        };
        let of_head = |start, width| {
            let lines = Lines::Turns { start, width, of: still + value };
            part(linear(module, "kv_b_proj", [heads * width, rank], false), lines)
        };
        let of_row = |start, width| {
            let lines = Lines::From { start, of: rank + rotated };
            part(linear(module, "kv_a_proj_with_mqa", [width, hidden], bias), lines)
        };
        let latent = Latent {
            query: query_rank.map(|rank| {
                let norm = norms.norm(&format!("{module}.q_a_layernorm"), rank);
                (linear(module, "q_a_proj", [rank, hidden], bias), norm)
            }),
            compression: (of_row(0, rank), norms.norm(&format!("{module}.kv_a_layernorm"), rank)),
            rotated_key: of_row(rank, rotated),
            rotated,
            value_dim: value,
        };
        let output = linear(module, "o_proj", [hidden, heads * value], bias);
        let attention = Attention::new([query, of_head(0, still), of_head(still, value), output], self.all());
        Ok(Attention {
            rotary: Some(0),
            scale: Some(self.scale(config)?),
            latent: Some(Box::new(latent)),
            ..attention
        })
    }

    /// The factor of scores, which YaRN changes.
    fn scale(&self, config: &JsonConfig) -> Result<f32, JsonConfigError> {
        let scale = (self.all() as f32).sqrt().recip();
        let Some(section) = rope::section(config)? else { return Ok(scale) };
        let kind = section.text("rope_type")?.or(section.text("type")?).unwrap_or("default");
        let Some(share) = section.optional_positive("mscale_all_dim")?.filter(|_| kind != "default") else {
            return Ok(scale);
        };
        let factor = section.positive("factor")?;
        let magnitude = if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 };
        Ok(scale * magnitude * magnitude)
    }
}

/// A layer that is some lines of a stored one.
fn part(mut linear: Linear, lines: Lines) -> Linear {
    linear.weight.lines = lines;
    if let Some(bias) = &mut linear.bias {
        bias.lines = lines;
    }
    linear
}
