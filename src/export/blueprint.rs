//! A decoder as plain data: its operations and their tensors.
//!
//! An architecture file turns a configuration into a [`Blueprint`]; the emitter turns any blueprint into a graph. The
//! two meet only here, so a new architecture costs one file of names and settings, and a better graph reaches every
//! architecture at once.

use crate::manifest::Dims;

use super::{
    param::{Param, Shape},
    rope::Rotary,
};

/// A whole decoder.
#[derive(Clone, Debug)]
pub(super) struct Blueprint {
    /// `model_type` of the configuration.
    pub architecture: &'static str,
    pub dims: Dims,
    pub context_length: usize,
    pub embedding: Embedding,
    /// Rotary positions; layers refer to them by their place here.
    pub rotaries: Vec<Rotary>,
    /// ALiBi: how much a head prefers a key to the one before it, one number a head.
    pub slopes: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub head: LmHead,
    /// Logits `x` become `cap · tanh(x / cap)`.
    pub logits_cap: Option<f32>,
}

/// How token ids become the first hidden state.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    /// `[vocab, hidden]`.
    pub table: Param,
    /// What rows are multiplied with; a head that is tied to the table is not.
    pub scale: Option<f32>,
    /// `[context_length, hidden]`: added, one row for each position.
    pub positions: Option<Param>,
    pub norm: Option<Norm>,
}

/// How logits come from the last hidden state.
#[derive(Clone, Debug)]
pub(super) enum LmHead {
    /// By the embedding's rows. A checkpoint may store this name too, if it holds the same.
    Tied { stored_as: String },
    /// By a separate matrix.
    Separate(Linear),
}

/// One decoder layer: each half reads the residual stream through a norm and adds to it, through another if it has one.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub attention_norm: Norm,
    pub attention: Attention,
    pub attention_end: Option<Norm>,
    pub mlp_norm: Norm,
    pub mlp: Mlp,
    pub mlp_end: Option<Norm>,
}

/// Normalisation of a row.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub weight: Param,
    /// With a bias it is layer normalisation; without one, RMS normalisation.
    pub bias: Option<Param>,
    pub epsilon: f32,
}

/// Grouped-query attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// `[head_dim]` each, over every head of queries and of keys, before the rotation.
    pub head_norms: Option<[Norm; 2]>,
    /// Which of the blueprint's rotary positions.
    pub rotary: Option<usize>,
    /// Keys that a query sees, its own included; all when absent.
    pub window: Option<usize>,
    /// Factor of the scores; `1 / sqrt(head_dim)` when absent.
    pub scale: Option<f32>,
    /// Scores `x` become `cap · tanh(x / cap)`.
    pub cap: Option<f32>,
}

/// The half of a layer that processes each position separately.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub inner: Inner,
    pub activation: Activation,
    pub down: Linear,
}

/// How an MLP widens its input.
#[derive(Clone, Debug)]
pub(super) enum Inner {
    /// `activation(gate(x)) · up(x)`.
    Gated { gate: Linear, up: Linear },
    /// `activation(up(x))`.
    Plain { up: Linear },
}

/// The nonlinearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    /// `x · sigmoid(alpha · x)`; SiLU with an alpha of one.
    Sigmoid {
        alpha: f32,
    },
    /// By the error function.
    Gelu,
    /// By its approximation with the hyperbolic tangent.
    GeluTanh,
    Relu,
}

/// `x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
}

impl Linear {
    fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}

impl Norm {
    fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}

impl Mlp {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (gate, up) = match &self.inner {
            Inner::Gated { gate, up } => (Some(gate), up),
            Inner::Plain { up } => (None, up),
        };
        gate.into_iter().chain([up, &self.down])
    }
}

impl Layer {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Attention { query, key, value, output, .. } = &self.attention;
        [query, key, value, output].into_iter().chain(self.mlp.linears())
    }

    fn norms(&self) -> impl Iterator<Item = &Norm> {
        let ends = self.attention_end.iter().chain(&self.mlp_end);
        let heads = self.attention.head_norms.iter().flatten();
        [&self.attention_norm, &self.mlp_norm].into_iter().chain(ends).chain(heads)
    }
}

impl Embedding {
    /// The tables: of tokens, and of positions if there is one.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Param> {
        [&self.table].into_iter().chain(&self.positions)
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        self.tables().chain(self.norm.iter().flat_map(Norm::params))
    }
}

impl Blueprint {
    /// Every linear layer: what an adapter may change.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let head = match &self.head {
            LmHead::Tied { .. } => None,
            LmHead::Separate(linear) => Some(linear),
        };
        self.layers.iter().flat_map(Layer::linears).chain(head)
    }

    /// Every norm.
    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.layers.iter().flat_map(Layer::norms).chain([&self.final_norm]).chain(&self.embedding.norm)
    }

    /// The same model with `vocab` tokens.
    pub(super) fn with_vocabulary(mut self, vocab: usize) -> Self {
        let shape = Shape::Matrix { rows: vocab, cols: self.dims.hidden };
        self.dims.vocab = vocab;
        self.embedding.table.shape = shape;
        if let LmHead::Separate(head) = &mut self.head {
            head.weight.shape = shape;
        }
        self
    }

    /// The same model with a separate head, under the name that a tied head would have.
    pub(super) fn untied(mut self) -> Self {
        if let LmHead::Tied { stored_as } = &self.head {
            let weight = Param { name: stored_as.clone(), ..self.embedding.table.clone() };
            self.head = LmHead::Separate(Linear { weight, bias: None });
        }
        self
    }

    /// Every tensor that the model is made of, each once.
    pub(super) fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = self.layers.iter().flat_map(Layer::norms).chain([&self.final_norm]);
        self.embedding
            .params()
            .chain(norms.flat_map(Norm::params))
            .chain(self.linears().flat_map(Linear::params))
    }

    /// Limits the context to the first `positions` positions.
    pub(super) fn limit_context(&mut self, positions: usize) {
        self.context_length = self.context_length.min(positions);
        if let Some(table) = &mut self.embedding.positions {
            table.keep_first(positions);
        }
    }

    /// Number of parameters, a tied head counted once.
    pub(super) fn parameters(&self) -> u64 {
        self.params().map(|param| param.shape.elements()).fold(0, u64::saturating_add)
    }
}
