//! GPT-2: learned positions, layer norms with biases, and weights stored as `[in, out]`.

use super::{
    super::{
        blueprint::{Attention, Blueprint, Embedding, Inner, Layer, Linear, Mlp, Norm, Positions},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
    },
    family::{NormStyle, head},
    fields::{Sizes, activation, check_heads, named, require_flag},
};
use crate::manifest::Dims;

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "add_cross_attention", false)?;
    let sizes = Sizes::read(config)?;
    let head_dim = sizes.head_dim(config)?;
    check_heads(config, "n_head", (sizes.heads, head_dim))?;
    let intermediate = config.optional_size("n_inner")?.unwrap_or(4 * sizes.hidden);
    let gpt = Gpt {
        config,
        dims: sizes.dims(sizes.heads, head_dim, intermediate),
        norms: NormStyle::layer(config.positive("layer_norm_epsilon")?),
    };
    let Dims { layers, hidden, vocab, .. } = gpt.dims;
    let positions = named(config, &["n_positions", "n_ctx"])?;
    Ok(Blueprint {
        architecture: "gpt2",
        dims: gpt.dims,
        context_length: positions,
        longest_context: positions,
        embedding: Embedding {
            table: Param::matrix("wte.weight", vocab, hidden),
            scale: None,
            positions: Some(Positions::Learned(Param::matrix("wpe.weight", positions, hidden))),
            norm: None,
        },
        per_layer: None,
        rotaries: Vec::new(),
        slopes: None,
        prediction_layers: 0,
        layers: (0..layers).map(|layer| gpt.layer(layer)).collect::<Result<_, _>>()?,
        final_norm: gpt.norm("ln_f"),
        head: head(config.flag("tie_word_embeddings", true)?, vocab, hidden),
        logits_scale: None,
        logits_cap: None,
    })
}

struct Gpt<'a> {
    config: &'a JsonConfig,
    dims: Dims,
    norms: NormStyle,
}

impl Gpt<'_> {
    fn norm(&self, module: &str) -> Norm {
        self.norms.norm(module, self.dims.hidden)
    }

    fn layer(&self, layer: usize) -> Result<Layer, JsonConfigError> {
        let Dims { hidden, intermediate, .. } = self.dims;
        let scope = format!("h.{layer}");
        let whole = |name: &str, rows, cols| conv(&format!("{scope}.{name}"), [rows, cols], Lines::All);
        let part = |part: usize| {
            let lines = Lines::From { start: part * hidden, of: 3 * hidden };
            conv(&format!("{scope}.attn.c_attn"), [hidden, hidden], lines)
        };
        let attention = Attention {
            scale: self.scale(layer)?,
            ..Attention::new(
                [part(0), part(1), part(2), whole("attn.c_proj", hidden, hidden)],
                self.dims.head_dim,
            )
        };
        let mlp = Mlp {
            inner: Inner::Plain { up: whole("mlp.c_fc", intermediate, hidden) },
            activation: activation(self.config, "activation_function")?,
            down: whole("mlp.c_proj", hidden, intermediate),
        };
        let norm = |name: &str| self.norm(&format!("{scope}.{name}"));
        Ok(Layer::new((norm("ln_1"), attention), (norm("ln_2"), mlp)))
    }

    /// Some variants scale scores by the layer's number as well, or not at all.
    fn scale(&self, layer: usize) -> Result<Option<f32>, JsonConfigError> {
        let by_head = if self.config.flag("scale_attn_weights", true)? {
            (self.dims.head_dim as f32).sqrt().recip()
        } else {
            1.0
        };
        let by_layer = if self.config.flag("scale_attn_by_inverse_layer_idx", false)? {
            ((layer + 1) as f32).recip()
        } else {
            1.0
        };
        Ok(Some(by_head * by_layer))
    }
}

/// What GPT-2 calls a convolution: a linear layer that is stored the other way round.
fn conv(module: &str, [rows, cols]: [usize; 2], lines: Lines) -> Linear {
    let weight = Param::matrix(format!("{module}.weight"), rows, cols);
    Linear {
        weight: Param { lines, transposed: true, ..weight },
        bias: Some(Param { lines, ..Param::vector(format!("{module}.bias"), rows) }),
    }
}
