//! Fields that the configurations of several architectures share.

use crate::{
    export::{
        blueprint::Activation,
        json_config::{JsonConfig, JsonConfigError},
    },
    manifest::{Dims, MAX_DIMENSION, MAX_LAYERS},
};

/// Names of the fields that hold sizes, which differ between architectures.
pub(super) struct SizeNames {
    pub(super) layers: &'static [&'static str],
    pub(super) hidden: &'static [&'static str],
    pub(super) heads: &'static [&'static str],
}

/// Sizes that every architecture has.
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) vocab: usize,
}

impl Sizes {
    pub(super) fn read(config: &JsonConfig, names: &SizeNames) -> Result<Self, JsonConfigError> {
        let layers = named(config, names.layers)?;
        if layers > MAX_LAYERS {
            return Err(config.wrong(present(config, names.layers), format!("at most {MAX_LAYERS}")));
        }
        let hidden = named(config, names.hidden)?;
        if !hidden.is_multiple_of(2) {
            let supported = "even sizes, so that two 4-bit weights fill a byte";
            return Err(config.unsupported(present(config, names.hidden), supported));
        }
        let heads = named(config, names.heads)?;
        Ok(Self { layers, hidden, heads, vocab: config.size("vocab_size")? })
    }

    /// Dimensions of a head, if the configuration has no field for them.
    pub(super) fn head_dim(&self, config: &JsonConfig, names: &SizeNames) -> Result<usize, JsonConfigError> {
        let Self { hidden, heads, .. } = self;
        if hidden.is_multiple_of(*heads) {
            return Ok(hidden / heads);
        }
        let expected = format!("a divisor of {}, {hidden}", present(config, names.hidden));
        Err(config.wrong(present(config, names.heads), expected))
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

/// Checks the width of all heads together, and that ONNX Runtime's attention can be used with it.
pub(super) fn check_heads(
    config: &JsonConfig,
    field: &str,
    (heads, head_dim): (usize, usize),
    step: usize,
) -> Result<(), JsonConfigError> {
    if !head_dim.is_multiple_of(step) {
        let supported =
            format!("heads of a multiple of {step} dimensions, as ONNX Runtime's attention needs");
        return Err(config.unsupported(field, supported));
    }
    // Three times, because query, key and value are stacked into one matrix.
    if head_dim.checked_mul(heads).and_then(|n| n.checked_mul(3)).is_none_or(|n| n > MAX_DIMENSION) {
        return Err(
            config.wrong(field, format!("heads that are together at most {} wide", MAX_DIMENSION / 3))
        );
    }
    Ok(())
}

/// The nonlinearity in `field`, by the names that transformers gives them.
pub(super) fn activation(config: &JsonConfig, field: &str) -> Result<Activation, JsonConfigError> {
    Ok(match config.text(field)? {
        Some("silu" | "swish") => Activation::Sigmoid { alpha: 1.0 },
        Some("quick_gelu") => Activation::Sigmoid { alpha: 1.702 },
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate") => Activation::GeluTanh,
        Some("relu") => Activation::Relu,
        Some(_) => {
            return Err(
                config.unsupported(field, "silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu")
            );
        }
        None => return Err(config.missing(field, "the name of an activation")),
    })
}

/// The layers with sliding-window attention, and the size of the window. They are named by `layer_types`, or else by
/// `is_sliding` of each layer's number.
pub(super) fn windows(
    config: &JsonConfig,
    layers: usize,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, JsonConfigError> {
    const TYPES: &str = "layer_types";
    let Some(window) = config.optional_size("sliding_window")? else { return Ok(vec![None; layers]) };
    let Some(types) = config.texts(TYPES)? else {
        return Ok((0..layers).map(|layer| is_sliding(layer).then_some(window)).collect());
    };
    if types.len() != layers {
        return Err(config.wrong(TYPES, format!("{layers} of them, one for each layer")));
    }
    let sees = |name: &str| match name {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(Some(window)),
        _ => Err(config.unsupported(TYPES, "full_attention, sliding_attention")),
    };
    types.into_iter().map(sees).collect()
}
