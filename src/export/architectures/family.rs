//! What the architectures that descend from Llama have in common: rotary positions, grouped-query attention, a gated
//! MLP, and the names of all that.

use serde_json::json;

use super::{
    super::{
        blueprint::{Attention, Blueprint, Embedding, Inner, Layer, Linear, LmHead, Mlp, Norm},
        json_config::{JsonConfig, JsonConfigError},
        param::Param,
        rope::Rotary,
    },
    fields::{SizeNames, Sizes, activation, check_heads},
};
use crate::manifest::Dims;

const NAMES: SizeNames =
    SizeNames { layers: &["num_hidden_layers"], hidden: &["hidden_size"], heads: &["num_attention_heads"] };

/// Settings of the family, and the few things in which its members differ.
pub(super) struct Family {
    pub dims: Dims,
    pub epsilon: f32,
    /// What norms store is added to this.
    pub norm_offset: f32,
    /// Of query, key and value.
    pub input_bias: bool,
    /// Of the attention's output.
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Queries and keys are normalised head by head.
    pub head_norms: bool,
    /// Field of the MLP's nonlinearity.
    pub activation: &'static str,
}

impl Family {
    /// Reads sizes; no biases, no norms of heads, as in Llama.
    pub(super) fn read(config: &JsonConfig) -> Result<Self, JsonConfigError> {
        let sizes = Sizes::read(config, &NAMES)?;
        let heads = sizes.heads;
        let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads, {heads}");
            return Err(config.wrong("num_key_value_heads", expected));
        }
        let (field, head_dim) = match config.optional_size("head_dim")? {
            Some(stated) => ("head_dim", stated),
            None => ("num_attention_heads", sizes.head_dim(config, &NAMES)?),
        };
        check_heads(config, field, (heads, head_dim), 16)?;
        Ok(Self {
            dims: sizes.dims(kv_heads, head_dim, config.size("intermediate_size")?),
            epsilon: config.positive("rms_norm_eps")?,
            norm_offset: 0.0,
            input_bias: false,
            output_bias: false,
            mlp_bias: false,
            head_norms: false,
            activation: "hidden_act",
        })
    }

    /// The blueprint of a model of this family, with one table of rotary positions and every key in sight.
    pub(super) fn blueprint(
        &self,
        architecture: &'static str,
        config: &JsonConfig,
    ) -> Result<Blueprint, JsonConfigError> {
        let Dims { layers, hidden, vocab, head_dim, .. } = self.dims;
        let layers = (0..layers).map(|layer| self.layer(config, layer)).collect::<Result<_, _>>()?;
        let rotary = Rotary::read(config, head_dim)?;
        Ok(Blueprint {
            architecture,
            dims: self.dims,
            context_length: config.size("max_position_embeddings")?.min(rotary.reach()),
            embedding: Embedding {
                table: Param::matrix("embed_tokens.weight", vocab, hidden),
                scale: None,
                positions: None,
                norm: None,
            },
            rotaries: vec![rotary],
            slopes: None,
            layers,
            final_norm: self.norm("norm", hidden),
            head: head(config.flag("tie_word_embeddings", false)?, vocab, hidden),
            logits_cap: None,
        })
    }

    /// A norm of `width` numbers.
    pub(super) fn norm(&self, module: &str, width: usize) -> Norm {
        let weight = Param { offset: self.norm_offset, ..Param::vector(format!("{module}.weight"), width) };
        Norm { weight, bias: None, epsilon: self.epsilon }
    }

    fn layer(&self, config: &JsonConfig, layer: usize) -> Result<Layer, JsonConfigError> {
        let scope = format!("layers.{layer}");
        let norm = |name: &str| self.norm(&format!("{scope}.{name}"), self.dims.hidden);
        Ok(Layer {
            attention_norm: norm("input_layernorm"),
            attention: self.attention(&format!("{scope}.self_attn")),
            attention_end: None,
            mlp_norm: norm("post_attention_layernorm"),
            mlp: self.mlp(config, &format!("{scope}.mlp"))?,
            mlp_end: None,
        })
    }

    fn attention(&self, module: &str) -> Attention {
        let Dims { hidden, heads, kv_heads, head_dim, .. } = self.dims;
        let input = |name, rows| linear(module, name, [rows, hidden], self.input_bias);
        let norm = |name: &str| self.norm(&format!("{module}.{name}"), head_dim);
        Attention {
            query: input("q_proj", heads * head_dim),
            key: input("k_proj", kv_heads * head_dim),
            value: input("v_proj", kv_heads * head_dim),
            output: linear(module, "o_proj", [hidden, heads * head_dim], self.output_bias),
            head_norms: self.head_norms.then(|| ["q_norm", "k_norm"].map(norm)),
            rotary: Some(0),
            window: None,
            scale: None,
            cap: None,
        }
    }

    fn mlp(&self, config: &JsonConfig, module: &str) -> Result<Mlp, JsonConfigError> {
        let Dims { hidden, intermediate, .. } = self.dims;
        let linear = |name, shape| linear(module, name, shape, self.mlp_bias);
        Ok(Mlp {
            inner: Inner::Gated {
                gate: linear("gate_proj", [intermediate, hidden]),
                up: linear("up_proj", [intermediate, hidden]),
            },
            activation: activation(config, self.activation)?,
            down: linear("down_proj", [hidden, intermediate]),
        })
    }
}

impl Blueprint {
    /// The same model, with a window for each layer.
    pub(super) fn with_windows(mut self, windows: Vec<Option<usize>>) -> Self {
        for (layer, window) in self.layers.iter_mut().zip(windows) {
            layer.attention.window = window;
        }
        self
    }
}

/// The same settings, with transformers' defaults for what the family leaves out.
pub(super) fn with_defaults(config: &JsonConfig, activation: &str) -> JsonConfig {
    config.clone().or(json!({ "rms_norm_eps": 1e-6, activation: "silu" }))
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
