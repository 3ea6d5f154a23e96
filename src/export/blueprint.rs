//! A decoder as plain data: what is computed, from which tensors.
//!
//! An architecture file turns a configuration into a [`Blueprint`]; the emitter turns any blueprint into a graph. The
//! two meet only here, so a new architecture costs one file of names and settings, and a better graph reaches every
//! architecture at once.

use std::fmt;

use crate::manifest::Dims;

use super::rope::Rotary;

/// A whole decoder.
#[derive(Clone, Debug)]
pub(super) struct Blueprint {
    /// `model_type` of the configuration.
    pub architecture: &'static str,
    pub dims: Dims,
    pub context_length: usize,
    pub rotary: Rotary,
    /// `[vocab, hidden]`.
    pub embedding: Param,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub head: Head,
}

/// How logits come from the last hidden state.
#[derive(Clone, Debug)]
pub(super) enum Head {
    /// By the embedding's rows. A checkpoint may store this name too, if it holds the same.
    Tied { stored_as: String },
    /// By rows of its own.
    Own(Linear),
}

/// One decoder layer: each half reads the residual stream through a norm and adds to it.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub attention_norm: Norm,
    pub attention: Attention,
    pub mlp_norm: Norm,
    pub mlp: Mlp,
}

/// Root-mean-square normalisation.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    /// `[hidden]`.
    pub weight: Param,
    pub epsilon: f32,
}

/// Grouped-query attention with rotary positions.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
}

/// `down(silu(gate(x)) · up(x))`.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// `x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// `[out, in]`, as checkpoints store it.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Param {
    /// Its name, without the prefixes that differ between checkpoints.
    pub name: String,
    pub shape: Shape,
}

/// The shape of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Vector(usize),
    Matrix { rows: usize, cols: usize },
}

impl Shape {
    /// A vector counts as one row.
    pub(super) const fn rows(self) -> usize {
        match self {
            Self::Vector(_) => 1,
            Self::Matrix { rows, .. } => rows,
        }
    }

    pub(super) const fn cols(self) -> usize {
        match self {
            Self::Vector(n) => n,
            Self::Matrix { cols, .. } => cols,
        }
    }

    /// Both factors are below 2^25, so this cannot overflow.
    pub(super) const fn elements(self) -> u64 {
        self.rows() as u64 * self.cols() as u64
    }

    pub(super) fn is(self, dims: &[usize]) -> bool {
        match self {
            Self::Vector(n) => *dims == [n],
            Self::Matrix { rows, cols } => *dims == [rows, cols],
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vector(n) => write!(f, "[{n}]"),
            Self::Matrix { rows, cols } => write!(f, "[{rows}, {cols}]"),
        }
    }
}

impl Param {
    pub(super) fn vector(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), shape: Shape::Vector(len) }
    }

    pub(super) fn matrix(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        Self { name: name.into(), shape: Shape::Matrix { rows, cols } }
    }
}

impl Linear {
    /// The module's name, as adapters call it: its weight's without `.weight`.
    pub(super) fn module(&self) -> &str {
        self.weight.name.strip_suffix(".weight").unwrap_or(&self.weight.name)
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}

impl Layer {
    fn linears(&self) -> [&Linear; 7] {
        let Attention { query, key, value, output } = &self.attention;
        let Mlp { gate, up, down } = &self.mlp;
        [query, key, value, output, gate, up, down]
    }
}

impl Blueprint {
    /// Every linear layer: what an adapter may change.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let head = match &self.head {
            Head::Tied { .. } => None,
            Head::Own(linear) => Some(linear),
        };
        self.layers.iter().flat_map(Layer::linears).chain(head)
    }

    /// Every tensor that the model is made of, each once.
    pub(super) fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = self.layers.iter().flat_map(|layer| [&layer.attention_norm, &layer.mlp_norm]);
        let norms = norms.chain([&self.final_norm]).map(|norm| &norm.weight);
        [&self.embedding].into_iter().chain(norms).chain(self.linears().flat_map(Linear::params))
    }

    /// Number of parameters, a tied head counted once.
    pub(super) fn parameters(&self) -> u64 {
        self.params().map(|param| param.shape.elements()).fold(0, u64::saturating_add)
    }
}
