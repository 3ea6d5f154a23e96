//! What mixtures of experts have in common: how many experts there are, and how their tensors are called.

use super::{
    super::{
        blueprint::{Expert, FeedForward, Layer, Linear, SharedMlp, SparseMlp},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param, Stacked},
        routing::{Groups, Routing, Scores, SwiGlu},
    },
    family::linear,
};
use crate::manifest::MAX_DIMENSION;

/// Experts of all layers together, at most; published models have up to 24,000.
const MAX_EXPERTS: usize = 1 << 16;

/// Experts of a layer.
#[derive(Clone, Copy)]
pub(super) struct Experts {
    pub count: usize,
    pub hidden: usize,
    /// What each widens its input to.
    pub width: usize,
}

impl Experts {
    /// `field` has their number, `width` their width.
    pub(super) fn read(
        config: &JsonConfig,
        field: &str,
        [layers, hidden, width]: [usize; 3],
    ) -> Result<Self, JsonConfigError> {
        let count = config.size(field)?;
        if count.checked_mul(layers).is_none_or(|all| all > MAX_EXPERTS) {
            return Err(config.wrong(field, format!("at most {MAX_EXPERTS} in all layers together")));
        }
        if !width.is_multiple_of(2) {
            let supported = "even widths of experts, so that two 4-bit weights fill a byte";
            return Err(config.unsupported(field, supported));
        }
        match config.text("hidden_act")? {
            Some("silu" | "swish") => Ok(Self { count, hidden, width }),
            _ => Err(config.unsupported("hidden_act", "silu in a mixture of experts")),
        }
    }

    /// Experts whose tensors have names of their own: `module` and number, and the modules of gate, up and down.
    pub(super) fn named(&self, module: &str, parts: [&str; 3]) -> Vec<Expert> {
        let Self { count, hidden, width } = *self;
        let shapes = [[width, hidden], [width, hidden], [hidden, width]];
        let expert = |number: usize| {
            let scope = format!("{module}.{number}");
            let [gate, up, down] =
                std::array::from_fn(|part| linear(&scope, parts[part], shapes[part], false));
            Expert { gate, up, down }
        };
        (0..count).map(expert).collect()
    }

    /// The same experts, which are stored in two tensors for all of them: gate and up, and down.
    pub(super) fn stacked(&self, module: &str, storage: &StackedNames) -> Vec<Expert> {
        let Self { count, width, .. } = *self;
        let mut experts = self.named(module, ["gate_proj", "up_proj", "down_proj"]);
        let half = |number: usize| match storage.order {
            GateUp::Halves => Lines::From { start: number * width, of: 2 * width },
            GateUp::Turns => Lines::Turns { start: number, width: 1, of: 2 },
        };
        for (number, Expert { gate, up, down }) in experts.iter_mut().enumerate() {
            let parts = [
                (gate, storage.gate_up, half(0)),
                (up, storage.gate_up, half(1)),
                (down, storage.down, Lines::All),
            ];
            for (linear, name, lines) in parts {
                if storage.has_biases {
                    let rows = linear.weight.shape.rows();
                    linear.bias = Some(Param::vector(format!("{}.bias", linear.weight.module()), rows));
                }
                let stacked = |end: &str| {
                    let name = format!("{module}.{name}{end}");
                    Some(Stacked { name, expert: number, experts: count })
                };
                linear.weight.stacked = stacked(storage.end);
                linear.weight.transposed = storage.is_transposed;
                linear.weight.lines = lines;
                if let Some(bias) = &mut linear.bias {
                    bias.stacked = stacked("_bias");
                    bias.lines = lines;
                }
            }
        }
        experts
    }
}

/// How tensors of all experts are called and laid out.
pub(super) struct StackedNames {
    pub gate_up: &'static str,
    pub down: &'static str,
    /// The end of weights' names.
    pub end: &'static str,
    pub order: GateUp,
    /// Stored as `[experts, in, out]`.
    pub is_transposed: bool,
    pub has_biases: bool,
}

/// How gate and up lie in one tensor.
#[derive(Clone, Copy)]
pub(super) enum GateUp {
    /// All of the gate, then all of the rest.
    Halves,
    /// Row by row.
    Turns,
}

/// Experts behind a router, without anything shared.
pub(super) fn sparse(router: Linear, routing: Routing, experts: Vec<Expert>) -> SparseMlp {
    SparseMlp {
        router,
        router_in_memory: None,
        routing,
        correction: None,
        experts,
        activation: SwiGlu::SILU,
        shared: None,
    }
}

impl SparseMlp {
    pub(super) fn with_shared(self, shared: SharedMlp) -> Self {
        Self { shared: Some(shared), ..self }
    }

    pub(super) fn into_layer(self, layer: &mut Layer) {
        layer.mlp = FeedForward::Sparse(Box::new(self));
    }
}

/// The width of an MLP that is as wide as the number of experts in `field` together; none for zero.
pub(super) fn shared_width(
    config: &JsonConfig,
    field: &str,
    width: usize,
) -> Result<Option<usize>, JsonConfigError> {
    let count = config.count(field)?;
    match width.checked_mul(count).filter(|all| *all <= MAX_DIMENSION) {
        Some(0) => Ok(None),
        Some(all) => Ok(Some(all)),
        None => Err(config.wrong(field, format!("experts that are at most {MAX_DIMENSION} wide together"))),
    }
}

/// The number of experts of a token, in `field`.
pub(super) fn chosen(config: &JsonConfig, field: &str, experts: usize) -> Result<usize, JsonConfigError> {
    let chosen = config.size(field)?;
    if chosen > experts {
        return Err(config.wrong(field, format!("at most the number of experts, {experts}")));
    }
    Ok(chosen)
}

/// The routing of DeepSeek-V3: sigmoids, with a correction for the choice, and groups by their two best experts.
pub(super) fn sigmoid_in_groups(config: &JsonConfig, experts: usize) -> Result<Routing, JsonConfigError> {
    Ok(Routing {
        scores: Scores::Sigmoid,
        is_normalized: config.flag("norm_topk_prob", true)?,
        scale: config.positive("routed_scaling_factor")?,
        groups: groups(config, (experts, 2))?,
        ..Routing::softmax(chosen(config, "num_experts_per_tok", experts)?, true)
    })
}

/// The groups of experts, each scored by its `best` experts.
pub(super) fn groups(
    config: &JsonConfig,
    (experts, best): (usize, usize),
) -> Result<Groups, JsonConfigError> {
    const COUNT: &str = "n_group";
    const CHOSEN: &str = "topk_group";
    let count = config.optional_size(COUNT)?.unwrap_or(1);
    if count == 1 {
        return Ok(Groups::ONE);
    }
    if !experts.is_multiple_of(count) || experts / count < best {
        let expected =
            format!("a divisor of the number of experts, {experts}, with at least {best} in a group");
        return Err(config.wrong(COUNT, expected));
    }
    let chosen = config.size(CHOSEN)?;
    if chosen > count || chosen * (experts / count) < config.size("num_experts_per_tok")? {
        let expected = format!("at most {COUNT}, with room for the experts of a token");
        return Err(config.wrong(CHOSEN, expected));
    }
    Ok(Groups { count, chosen, best })
}
