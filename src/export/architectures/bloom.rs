//! BLOOM: ALiBi instead of positions, a norm after the embedding, and query, key and value that take turns head by head.

use super::{
    super::{
        blueprint::{Activation, Attention, Blueprint, Embedding, Inner, Layer, Linear, Mlp, Norm},
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
    },
    family::{NormStyle, head, linear},
    fields::{Sizes, check_heads, require_flag},
};
use crate::manifest::Dims;

/// What published checkpoints were trained on. ALiBi sets no limit, and neither does the configuration.
const CONTEXT_LENGTH: usize = 2048;

pub(super) fn read(config: &JsonConfig) -> Result<Blueprint, JsonConfigError> {
    require_flag(config, "apply_residual_connection_post_layernorm", false)?;
    let config = &config.clone().renamed("n_embed", "hidden_size");
    let sizes = Sizes::read(config)?;
    let head_dim = sizes.head_dim(config)?;
    check_heads(config, "n_head", (sizes.heads, head_dim))?;
    let bloom = Bloom {
        dims: sizes.dims(sizes.heads, head_dim, 4 * sizes.hidden),
        norms: NormStyle::layer(config.positive("layer_norm_epsilon")?),
    };
    let Dims { layers, hidden, heads, vocab, .. } = bloom.dims;
    let stated = config.optional_size("seq_length")?.or(config.optional_size("max_position_embeddings")?);
    let context_length = stated.unwrap_or(CONTEXT_LENGTH);
    Ok(Blueprint {
        architecture: "bloom",
        dims: bloom.dims,
        context_length,
        longest_context: context_length,
        embedding: Embedding {
            table: Param::matrix("word_embeddings.weight", vocab, hidden),
            scale: None,
            positions: None,
            norm: Some(bloom.norm("word_embeddings_layernorm")),
        },
        per_layer: None,
        rotaries: Vec::new(),
        prediction_layers: 0,
        slopes: Some(slopes(heads)),
        layers: (0..layers).map(|layer| bloom.layer(&format!("h.{layer}"))).collect(),
        final_norm: bloom.norm("ln_f"),
        head: head(config.flag("tie_word_embeddings", true)?, vocab, hidden),
        logits_scale: None,
        logits_cap: None,
    })
}

struct Bloom {
    dims: Dims,
    norms: NormStyle,
}

impl Bloom {
    fn norm(&self, module: &str) -> Norm {
        self.norms.norm(module, self.dims.hidden)
    }

    fn layer(&self, scope: &str) -> Layer {
        let Dims { hidden, intermediate, .. } = self.dims;
        let linear = |name, shape| linear(scope, name, shape, true);
        let [query, key, value] = [0, 1, 2].map(|part| self.part(scope, part));
        let output = linear("self_attention.dense", [hidden, hidden]);
        let mlp = Mlp {
            inner: Inner::Plain { up: linear("mlp.dense_h_to_4h", [intermediate, hidden]) },
            activation: Activation::GeluTanh,
            down: linear("mlp.dense_4h_to_h", [hidden, intermediate]),
        };
        let norm = |name: &str| self.norm(&format!("{scope}.{name}"));
        let attention = Attention::new([query, key, value, output], self.dims.head_dim);
        Layer::new((norm("input_layernorm"), attention), (norm("post_attention_layernorm"), mlp))
    }

    /// Query, key or value: each head's three follow each other.
    fn part(&self, scope: &str, part: usize) -> Linear {
        let Dims { hidden, head_dim, .. } = self.dims;
        let lines = Lines::Turns { start: part * head_dim, width: head_dim, of: 3 * head_dim };
        let name = |kind: &str| format!("{scope}.self_attention.query_key_value.{kind}");
        Linear {
            weight: Param { lines, ..Param::matrix(name("weight"), hidden, hidden) },
            bias: Some(Param { lines, ..Param::vector(name("bias"), hidden) }),
        }
    }
}

/// ALiBi (<https://arxiv.org/abs/2108.12409>): powers of a root of 1/256 for a power of two heads; others are taken from
/// between those.
fn slopes(heads: usize) -> Vec<f32> {
    let whole = 1usize << heads.ilog2();
    let base = |heads: usize| 2f32.powf(-8.0 / heads as f32);
    let power = |base: f32, exponent: usize| base.powf(exponent as f32);
    let first = (1..=whole).map(|exponent| power(base(whole), exponent));
    let rest = (1..).step_by(2).take(heads - whole).map(|exponent| power(base(2 * whole), exponent));
    first.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_a_power_of_two_are_a_geometric_series() {
        let expected: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
        assert_eq!(slopes(8), expected);
        assert_eq!(slopes(1), [1.0 / 256.0]);
    }

    #[test]
    fn further_slopes_lie_between() {
        let twelve = slopes(12);
        assert_eq!(twelve[..8], slopes(8));
        let between: Vec<f32> = slopes(16).into_iter().step_by(2).take(4).collect();
        assert_eq!(twelve[8..], between);
    }
}
