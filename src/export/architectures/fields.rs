//! Fields that the configurations of several architectures share.

use crate::{
    export::{
        blueprint::Activation,
        json_config::{JsonConfig, JsonConfigError},
    },
    manifest::{Dims, MAX_DIMENSION, MAX_LAYERS},
};

/// Names of the fields that hold sizes, which differ between architectures.
const LAYERS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
const HIDDEN: [&str; 3] = ["hidden_size", "n_embd", "d_model"];
const HEADS: [&str; 4] = ["num_attention_heads", "n_head", "n_heads", "num_heads"];

/// Sizes that every architecture has.
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) vocab: usize,
}

impl Sizes {
    pub(super) fn read(config: &JsonConfig) -> Result<Self, JsonConfigError> {
        let layers = named(config, &LAYERS)?;
        if layers > MAX_LAYERS {
            return Err(config.wrong(present(config, &LAYERS), format!("at most {MAX_LAYERS}")));
        }
        let hidden = named(config, &HIDDEN)?;
        if !hidden.is_multiple_of(2) {
            let supported = "even sizes, so that two 4-bit weights fill a byte";
            return Err(config.unsupported(present(config, &HIDDEN), supported));
        }
        let heads = named(config, &HEADS)?;
        Ok(Self { layers, hidden, heads, vocab: config.size("vocab_size")? })
    }

    /// Dimensions of a head, if the configuration has no field for them.
    pub(super) fn head_dim(&self, config: &JsonConfig) -> Result<usize, JsonConfigError> {
        let Self { hidden, heads, .. } = self;
        if hidden.is_multiple_of(*heads) {
            return Ok(hidden / heads);
        }
        let expected = format!("a divisor of {}, {hidden}", present(config, &HIDDEN));
        Err(config.wrong(present(config, &HEADS), expected))
    }

    pub(super) fn dims(&self, kv_heads: usize, head_dim: usize, intermediate: usize) -> Dims {
        let Self { layers, hidden, heads, vocab } = *self;
        Dims { layers, hidden, heads, kv_heads, head_dim, intermediate, vocab }
    }
}

/// The first of `names` that is there.
fn present(config: &JsonConfig, names: &[&'static str]) -> &'static str {
    names.iter().find(|name| config.get(name).is_some()).or(names.first()).copied().unwrap_or_default()
}

pub(super) fn named(config: &JsonConfig, names: &[&'static str]) -> Result<usize, JsonConfigError> {
    config.size(present(config, names))
}

/// Checks the width of all heads together.
pub(super) fn check_heads(
    config: &JsonConfig,
    field: &str,
    (heads, head_dim): (usize, usize),
) -> Result<(), JsonConfigError> {
    // Three times, because query, key and value are stacked into one matrix; padding adds less than a head's size or 16.
    let padded = head_dim.next_multiple_of(16);
    if padded.checked_mul(heads).and_then(|n| n.checked_mul(3)).is_none_or(|n| n > MAX_DIMENSION) {
        return Err(
            config.wrong(field, format!("heads that are together at most {} wide", MAX_DIMENSION / 3))
        );
    }
    Ok(())
}

/// Refuses a `field` that changes the model in a way that eka does not compute.
pub(super) fn require_flag(config: &JsonConfig, field: &str, required: bool) -> Result<(), JsonConfigError> {
    if config.flag(field, required)? == required {
        return Ok(());
    }
    Err(config.unsupported(field, required.to_string()))
}

/// The nonlinearity in `field`, by the names that transformers gives them.
pub(super) fn activation(config: &JsonConfig, field: &str) -> Result<Activation, JsonConfigError> {
    Ok(match config.text(field)? {
        Some("silu" | "swish") => Activation::Sigmoid { alpha: 1.0 },
        Some("quick_gelu") => Activation::Sigmoid { alpha: 1.702 },
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate") => Activation::GeluTanh,
        Some("relu") => Activation::Relu,
        Some("relu2") => Activation::ReluSquared,
        Some(_) => {
            return Err(
                config.unsupported(field, "silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2")
            );
        }
        None => return Err(config.missing(field, "the name of an activation")),
    })
}

/// Whether each layer has sliding-window attention, by `layer_types`, or else by `is_sliding` of each layer's number.
pub(super) fn sliding_layers(
    config: &JsonConfig,
    layers: usize,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, JsonConfigError> {
    const TYPES: &str = "layer_types";
    let Some(types) = config.texts(TYPES)? else { return Ok((0..layers).map(is_sliding).collect()) };
    if types.len() != layers {
        return Err(config.wrong(TYPES, format!("{layers} of them, one for each layer")));
    }
    let slides = |name: &str| match name {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(config.unsupported(TYPES, "full_attention, sliding_attention")),
    };
    types.into_iter().map(slides).collect()
}

/// The window of each layer; layers without sliding-window attention see every key.
pub(super) fn windows(
    config: &JsonConfig,
    layers: usize,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, JsonConfigError> {
    let Some(window) = config.optional_size("sliding_window")? else { return Ok(vec![None; layers]) };
    Ok(sliding_layers(config, layers, is_sliding)?
        .into_iter()
        .map(|slides| slides.then_some(window))
        .collect())
}

/// The same window in every layer, whatever `layer_types` says: some classes of transformers do not read it.
pub(super) fn one_window(config: &JsonConfig, layers: usize) -> Result<Vec<Option<usize>>, JsonConfigError> {
    Ok(vec![config.optional_size("sliding_window")?; layers])
}
