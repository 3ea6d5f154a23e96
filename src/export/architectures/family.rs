//! What most decoders have in common: grouped-query attention, norms before each half of a layer, an MLP, and Llama's names
//! of all that. An architecture reads a family, changes what differs, and renames.

use super::{
    super::{
        blueprint::{
            Attention, Blueprint, Embedding, HeadNorms, Inner, Layer, Linear, LmHead, Mlp, Norm, NormKind,
        },
        json_config::{JsonConfig, JsonConfigError},
        param::{Lines, Param},
        rope::{Partial, Rotary},
    },
    fields::{Sizes, activation, check_heads, named},
};
use crate::manifest::Dims;

/// Settings of the family, and the few things in which its members differ.
pub(super) struct Family {
    pub dims: Dims,
    pub norms: NormStyle,
    /// Of query, key and value.
    pub input_bias: bool,
    /// Of the attention's output.
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Queries and keys are normalised, head by head or whole.
    pub head_norms: Option<HeadNormWidth>,
    /// Field of the MLP's nonlinearity.
    pub activation: &'static str,
    /// Whether the MLP has a gate.
    pub is_gated: bool,
    /// Whether a share of a head's dimensions may be rotated.
    pub partial: Partial,
    /// Whether the two dimensions of a rotated pair are side by side.
    pub interleaved: bool,
}

/// How norms compute and what they store.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormStyle {
    pub kind: NormKind,
    pub biased: bool,
    /// Whether there are weights; without them, they are one.
    pub has_weights: bool,
    /// What norms store is added to this.
    pub offset: f32,
    pub epsilon: f32,
}

/// What norms of queries and keys see at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadNormWidth {
    Each,
    Whole,
}

impl NormStyle {
    pub(super) const fn rms(epsilon: f32) -> Self {
        Self { kind: NormKind::Rms, biased: false, has_weights: true, offset: 0.0, epsilon }
    }

    /// Layer normalisation with biases.
    pub(super) const fn layer(epsilon: f32) -> Self {
        Self { kind: NormKind::Layer, biased: true, ..Self::rms(epsilon) }
    }

    /// A norm of `width` numbers.
    pub(super) fn norm(&self, module: &str, width: usize) -> Norm {
        let part = |part: &str| Param::vector(format!("{module}.{part}"), width);
        let weight = if self.has_weights {
            Param { offset: self.offset, ..part("weight") }
        } else {
            Param { lines: Lines::Nowhere, offset: 1.0, ..part("weight") }
        };
        let bias = self.biased.then(|| part("bias"));
        Norm { kind: self.kind, weight, bias, epsilon: self.epsilon }
    }
}

impl Family {
    /// Reads sizes; RMS norms, a gated MLP, no biases, as in Llama.
    pub(super) fn read(config: &JsonConfig) -> Result<Self, JsonConfigError> {
        Self::read_with(config, NormStyle::rms(config.positive("rms_norm_eps")?))
    }

    /// The same with other norms.
    pub(super) fn read_with(config: &JsonConfig, norms: NormStyle) -> Result<Self, JsonConfigError> {
        const KV_HEADS: [&str; 2] = ["num_key_value_heads", "num_kv_heads"];
        let sizes = Sizes::read(config)?;
        let heads = sizes.heads;
        let kv_heads = if KV_HEADS.iter().any(|field| config.get(field).is_some()) {
            named(config, &KV_HEADS)?
        } else {
            heads
        };
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(config.wrong("num_key_value_heads", expected));
        }
        let (field, head_dim) = match config.optional_size("head_dim")? {
            Some(stated) => ("head_dim", stated),
            None => ("num_attention_heads", sizes.head_dim(config)?),
        };
        check_heads(config, field, (heads, head_dim))?;
        let intermediate = named(config, &["intermediate_size", "ffn_dim", "ffn_hidden_size"])?;
        Ok(Self {
            dims: sizes.dims(kv_heads, head_dim, intermediate),
            norms,
            input_bias: false,
            output_bias: false,
            mlp_bias: false,
            head_norms: None,
            activation: "hidden_act",
            is_gated: true,
            partial: Partial::Refused,
            interleaved: false,
        })
    }

    /// Layer normalisation, biases everywhere, an MLP without a gate, and rotary positions on a share of each head.
    pub(super) fn read_biased(config: &JsonConfig) -> Result<Self, JsonConfigError> {
        let norms = NormStyle::layer(config.positive("layer_norm_eps")?);
        Ok(Self {
            input_bias: true,
            output_bias: true,
            mlp_bias: true,
            is_gated: false,
            partial: Partial::Supported,
            ..Self::read_with(config, norms)?
        })
    }

    /// The blueprint of a model of this family, with one table of rotary positions and every key in sight.
    pub(super) fn blueprint(
        &self,
        architecture: &'static str,
        config: &JsonConfig,
    ) -> Result<Blueprint, JsonConfigError> {
        let rotary = self.rotary(config)?;
        let [context_length, longest_context] = rotary.context(config.size("max_position_embeddings")?);
        let blueprint = self.without_positions(architecture, config, context_length)?;
        Ok(Blueprint { longest_context, rotaries: vec![rotary], ..blueprint }.with_rotary(|_| Some(0)))
    }

    /// The rotary positions of the configuration.
    pub(super) fn rotary(&self, config: &JsonConfig) -> Result<Rotary, JsonConfigError> {
        let rotary = Rotary::read(config, self.dims.head_dim, self.partial)?;
        Ok(Rotary { interleaved: self.interleaved, ..rotary })
    }

    /// The blueprint of a model whose attention does not know positions.
    pub(super) fn without_positions(
        &self,
        architecture: &'static str,
        config: &JsonConfig,
        context_length: usize,
    ) -> Result<Blueprint, JsonConfigError> {
        let Dims { layers, hidden, vocab, .. } = self.dims;
        let layers = (0..layers).map(|layer| self.layer(config, layer)).collect::<Result<_, _>>()?;
        Ok(Blueprint {
            architecture,
            dims: self.dims,
            context_length,
            longest_context: context_length,
            embedding: Embedding {
                table: Param::matrix("embed_tokens.weight", vocab, hidden),
                scale: None,
                positions: None,
                norm: None,
            },
            per_layer: None,
            rotaries: Vec::new(),
            slopes: None,
            prediction_layers: 0,
            layers,
            final_norm: self.norm("norm", hidden),
            head: head(config.flag("tie_word_embeddings", false)?, vocab, hidden),
            logits_scale: None,
            logits_cap: None,
        })
    }

    /// A norm of `width` numbers.
    pub(super) fn norm(&self, module: &str, width: usize) -> Norm {
        self.norms.norm(module, width)
    }

    /// Layer number `layer`, as in Llama.
    pub(super) fn layer(&self, config: &JsonConfig, layer: usize) -> Result<Layer, JsonConfigError> {
        let scope = format!("layers.{layer}");
        let norm = |name: &str| self.norm(&format!("{scope}.{name}"), self.dims.hidden);
        let attention = self.attention(&format!("{scope}.self_attn"));
        let mlp = self.mlp(config, &format!("{scope}.mlp"), self.dims.intermediate)?;
        Ok(Layer::new((norm("input_layernorm"), attention), (norm("post_attention_layernorm"), mlp)))
    }

    fn attention(&self, module: &str) -> Attention {
        let Dims { hidden, heads, kv_heads, head_dim, .. } = self.dims;
        let input = |name, rows| linear(module, name, [rows, hidden], self.input_bias);
        let norm = |name: &str, width| self.norm(&format!("{module}.{name}"), width);
        let head_norms = self.head_norms.map(|width| match width {
            HeadNormWidth::Each => HeadNorms::Each([norm("q_norm", head_dim), norm("k_norm", head_dim)]),
            HeadNormWidth::Whole => {
                HeadNorms::Whole([norm("q_norm", heads * head_dim), norm("k_norm", kv_heads * head_dim)])
            }
        });
        let linears = [
            input("q_proj", heads * head_dim),
            input("k_proj", kv_heads * head_dim),
            input("v_proj", kv_heads * head_dim),
            linear(module, "o_proj", [hidden, heads * head_dim], self.output_bias),
        ];
        Attention { head_norms, ..Attention::new(linears, head_dim) }
    }

    /// An MLP that is `intermediate` wide.
    pub(super) fn mlp(
        &self,
        config: &JsonConfig,
        module: &str,
        intermediate: usize,
    ) -> Result<Mlp, JsonConfigError> {
        let hidden = self.dims.hidden;
        let linear = |name, shape| linear(module, name, shape, self.mlp_bias);
        let up = linear("up_proj", [intermediate, hidden]);
        Ok(Mlp {
            inner: if self.is_gated {
                Inner::Gated { gate: linear("gate_proj", [intermediate, hidden]), up }
            } else {
                Inner::Plain { up }
            },
            activation: activation(config, self.activation)?,
            down: linear("down_proj", [hidden, intermediate]),
        })
    }
}

pub(super) fn head(tied: bool, vocab: usize, hidden: usize) -> LmHead {
    let weight = "lm_head.weight".to_owned();
    if tied {
        return LmHead::Tied { stored_as: weight };
    }
    LmHead::Separate(Linear { weight: Param::matrix(weight, vocab, hidden), bias: None })
}

pub(super) fn linear(module: &str, name: &str, [rows, cols]: [usize; 2], biased: bool) -> Linear {
    let bias = biased.then(|| Param::vector(format!("{module}.{name}.bias"), rows));
    Linear { weight: Param::matrix(format!("{module}.{name}.weight"), rows, cols), bias }
}
