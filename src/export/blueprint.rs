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
    /// Positions of an export unless another number is asked for.
    pub context_length: usize,
    /// The most that can be asked for.
    pub longest_context: usize,
    pub embedding: Embedding,
    /// Rotary positions; layers refer to them by their place here.
    pub rotaries: Vec<Rotary>,
    /// ALiBi: how much a head prefers a key to the one before it, one number a head.
    pub slopes: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub head: LmHead,
    /// Multiplies logits.
    pub logits_scale: Option<f32>,
    /// Logits `x` become `cap · tanh(x / cap)`, after the scale.
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
#[expect(clippy::large_enum_variant, reason = "there are few: one or two for each layer")]
pub(super) enum LmHead {
    /// By the embedding's rows. A checkpoint may store this name too, if it holds the same.
    Tied { stored_as: String },
    /// By a separate matrix.
    Separate(Linear),
}

/// One decoder layer: each half reads the residual stream and adds to it, through a norm where it has one.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub attention_norm: Option<Norm>,
    pub attention: Attention,
    pub attention_end: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub mlp: Mlp,
    pub mlp_end: Option<Norm>,
    pub order: Order,
}

/// What the second half of a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The stream with attention added.
    Sequential,
    /// What attention reads: the stream before it. Without a norm, the same normalised stream.
    Parallel,
}

/// Normalisation of a row.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    pub weight: Param,
    /// Only in layer normalisation.
    pub bias: Option<Param>,
    pub epsilon: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormKind {
    /// By the root of the mean square.
    Rms,
    /// By mean and variance.
    Layer,
}

/// Grouped-query attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Of queries and of keys, before the rotation.
    pub head_norms: Option<HeadNorms>,
    /// Queries, keys and values are clamped to this size.
    pub clip: Option<f32>,
    /// Which of the blueprint's rotary positions.
    pub rotary: Option<usize>,
    /// Keys that a query sees, its own included; all when absent.
    pub window: Option<usize>,
    /// Factor of the scores; `1 / sqrt(head_dim)` when absent.
    pub scale: Option<f32>,
    /// Scores `x` become `cap · tanh(x / cap)`.
    pub cap: Option<f32>,
}

/// Norms of queries and keys.
#[derive(Clone, Debug)]
pub(super) enum HeadNorms {
    /// `[head_dim]`: each head by itself.
    Each([Norm; 2]),
    /// `[heads · head_dim]`: all heads together.
    Whole([Norm; 2]),
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
#[expect(clippy::large_enum_variant, reason = "there are few: one or two for each layer")]
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
    ReluSquared,
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
    /// The same norm by another tensor.
    pub(super) fn renamed(mut self, weight: String) -> Self {
        self.weight.name = weight;
        self
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}

impl HeadNorms {
    fn each(&self) -> &[Norm; 2] {
        let (Self::Each(norms) | Self::Whole(norms)) = self;
        norms
    }

    pub(super) fn each_mut(&mut self) -> &mut [Norm; 2] {
        let (Self::Each(norms) | Self::Whole(norms)) = self;
        norms
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
        let heads = self.attention.head_norms.iter().flat_map(HeadNorms::each);
        self.attention_norm.iter().chain(&self.mlp_norm).chain(ends).chain(heads)
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
            if let Some(bias) = &mut head.bias {
                bias.shape = Shape::Vector(vocab);
            }
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

    /// Calls `change` with every tensor.
    pub(super) fn each_param(&mut self, mut change: impl FnMut(&mut Param)) {
        let Embedding { table, positions, norm, .. } = &mut self.embedding;
        [table].into_iter().chain(positions).for_each(&mut change);
        let mut norms: Vec<&mut Norm> = norm.iter_mut().chain([&mut self.final_norm]).collect();
        let mut linears: Vec<&mut Linear> = Vec::new();
        for layer in &mut self.layers {
            let Attention { query, key, value, output, head_norms, .. } = &mut layer.attention;
            linears.extend([query, key, value, output, &mut layer.mlp.down]);
            match &mut layer.mlp.inner {
                Inner::Gated { gate, up } => linears.extend([gate, up]),
                Inner::Plain { up } => linears.push(up),
            }
            let ends = [
                &mut layer.attention_norm,
                &mut layer.attention_end,
                &mut layer.mlp_norm,
                &mut layer.mlp_end,
            ];
            norms.extend(
                ends.into_iter().flatten().chain(head_norms.iter_mut().flat_map(HeadNorms::each_mut)),
            );
        }
        if let LmHead::Separate(head) = &mut self.head {
            linears.push(head);
        }
        norms
            .into_iter()
            .flat_map(|norm| [&mut norm.weight].into_iter().chain(&mut norm.bias))
            .for_each(&mut change);
        linears
            .into_iter()
            .flat_map(|linear| [&mut linear.weight].into_iter().chain(&mut linear.bias))
            .for_each(change);
    }

    /// Sets the context to the first `positions` positions, of which there are at most `longest_context`.
    pub(super) fn set_context(&mut self, positions: usize) {
        self.context_length = positions;
        self.rotaries.iter_mut().for_each(|rotary| rotary.for_context(positions));
        if let Some(table) = &mut self.embedding.positions {
            table.keep_first(positions);
        }
    }

    /// Number of parameters, a tied head counted once.
    pub(super) fn parameters(&self) -> u64 {
        self.params().map(Param::stored_elements).fold(0, u64::saturating_add)
    }
}
