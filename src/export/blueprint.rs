//! A decoder as plain data: its operations and their tensors.
//!
//! An architecture file turns a configuration into a [`Blueprint`]; the emitter turns any blueprint into a graph. The
//! two meet only here, so a new architecture costs one file of names and settings, and a better graph reaches every
//! architecture at once.

use crate::manifest::Dims;

pub(super) use super::{
    feed_forward::{Expert, FeedForward, Inner, Mlp, SharedMlp, SparseMlp},
    modules::{Activation, Linear, Norm, NormKind},
};
use super::{
    param::{Param, Shape},
    rope::{Angles, Rotary, Sinusoid},
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
    /// A second table of tokens, of which every layer reads a part.
    pub per_layer: Option<PerLayerInputs>,
    /// Rotary positions; layers refer to them by their place here.
    pub rotaries: Vec<Rotary>,
    /// ALiBi: how much a head prefers a key to the one before it, one number a head.
    pub slopes: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    /// Layers behind these that a checkpoint may have to predict further tokens, which are not exported.
    pub prediction_layers: usize,
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
    /// Added, one row for each position.
    pub positions: Option<Positions>,
    pub norm: Option<Norm>,
}

/// What is added to the embedding of a token for its position: shape `[context_length, hidden]`.
#[derive(Clone, Debug)]
pub(super) enum Positions {
    Learned(Param),
    /// Sines, then cosines.
    Sinusoidal(Sinusoid),
}

/// Embeddings that every layer reads beside the stream, as in Gemma 3n and 4: the token's row of a table, and a projection of
/// its embedding.
#[derive(Clone, Debug)]
pub(super) struct PerLayerInputs {
    /// `[vocab, layers · size]`.
    pub table: Param,
    /// What rows of the table are multiplied with.
    pub scale: f32,
    /// `[layers · size, hidden]`: of the scaled embedding.
    pub projection: Linear,
    /// Of the `size` numbers of one layer, after the projection.
    pub norm: Norm,
    /// Numbers that one layer reads.
    pub size: usize,
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
    pub mlp: FeedForward,
    pub mlp_end: Option<Norm>,
    pub order: Order,
    /// What the layer does with its part of the [`PerLayerInputs`], after both halves.
    pub per_layer: Option<PerLayer>,
    /// `[1]`: multiplies the stream at the layer's end.
    pub scalar: Option<Param>,
}

impl Layer {
    /// A layer whose halves read one after the other, each through its norm.
    pub(super) fn new((attention_norm, attention): (Norm, Attention), (mlp_norm, mlp): (Norm, Mlp)) -> Self {
        Self {
            attention_norm: Some(attention_norm),
            attention,
            attention_end: None,
            mlp_norm: Some(mlp_norm),
            mlp: FeedForward::Dense(mlp),
            mlp_end: None,
            order: Order::Sequential,
            per_layer: None,
            scalar: None,
        }
    }
}

/// `stream + norm(projection(activation(gate(stream)) · input))`.
#[derive(Clone, Debug)]
pub(super) struct PerLayer {
    pub gate: Linear,
    pub activation: Activation,
    pub projection: Linear,
    pub norm: Norm,
}

/// What the second half of a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The stream with attention added.
    Sequential,
    /// What attention reads: the stream before it. Without a norm, the same normalised stream.
    Parallel,
}

/// Grouped-query attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Of queries and of keys.
    pub head_norms: Option<HeadNorms>,
    /// Whether queries and keys are rotated before their norms instead of after.
    pub rotates_first: bool,
    /// Of values, each head by itself.
    pub value_norm: Option<Norm>,
    /// The earlier layer whose keys and values this one uses: it stores no weights for its own.
    pub shares: Option<usize>,
    /// Dimensions of a head in the checkpoint.
    pub head_dim: usize,
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
    /// `[heads]`: scores that take a share of attention and have no value.
    pub sinks: Option<Param>,
    /// Keys and values come from a narrower row (multi-head latent attention).
    pub latent: Option<Box<Latent>>,
}

/// Multi-head latent attention, in which every head has keys and values of its own: `key` and `value` read the compressed row.
/// A head's dimensions in the checkpoint are first those without positions, then rotated ones.
#[derive(Clone, Debug)]
pub(super) struct Latent {
    /// What `query` reads, if that is compressed too.
    pub query: Option<(Linear, Norm)>,
    /// `[rank, hidden]`, and the norm of its result.
    pub compression: (Linear, Norm),
    /// `[rotated, hidden]`: the rotated dimensions of keys, which all heads share.
    pub rotated_key: Linear,
    /// Rotated dimensions of a head.
    pub rotated: usize,
    /// Dimensions of a value in the checkpoint.
    pub value_dim: usize,
}

impl Latent {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.query.iter().map(|(linear, _)| linear).chain([&self.compression.0, &self.rotated_key])
    }

    fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.query.iter().map(|(_, norm)| norm).chain([&self.compression.1])
    }
}

impl Attention {
    /// Attention of heads of `head_dim` dimensions over every key, without positions.
    pub(super) fn new([query, key, value, output]: [Linear; 4], head_dim: usize) -> Self {
        Self {
            query,
            key,
            value,
            output,
            head_norms: None,
            rotates_first: false,
            value_norm: None,
            shares: None,
            head_dim,
            clip: None,
            rotary: None,
            window: None,
            scale: None,
            cap: None,
            sinks: None,
            latent: None,
        }
    }
}

/// Norms of queries and keys.
#[derive(Clone, Debug)]
pub(super) enum HeadNorms {
    /// `[head_dim]`: each head by itself.
    Each([Norm; 2]),
    /// `[heads · head_dim]`: all heads together.
    Whole([Norm; 2]),
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

impl Layer {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Attention { query, key, value, output, .. } = &self.attention;
        let per_layer = self.per_layer.iter().flat_map(|parts| [&parts.gate, &parts.projection]);
        let latent = self.attention.latent.iter().flat_map(|latent| latent.linears());
        [query, key, value, output].into_iter().chain(latent).chain(self.mlp.linears()).chain(per_layer)
    }

    /// Numbers that are neither matrices, biases nor norms.
    fn scalars(&self) -> impl Iterator<Item = &Param> {
        self.mlp.scalars().into_iter().chain(&self.attention.sinks).chain(&self.scalar)
    }

    fn norms(&self) -> impl Iterator<Item = &Norm> {
        let ends = self.attention_end.iter().chain(&self.mlp_end);
        let heads = self.attention.head_norms.iter().flat_map(HeadNorms::each);
        let heads =
            heads.chain(&self.attention.value_norm).chain(self.per_layer.iter().map(|parts| &parts.norm));
        let latent = self.attention.latent.iter().flat_map(|latent| latent.norms());
        self.attention_norm.iter().chain(&self.mlp_norm).chain(ends).chain(heads).chain(latent)
    }
}

impl Embedding {
    /// The tables: of tokens, and of positions if there is one.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Param> {
        let positions = match &self.positions {
            Some(Positions::Learned(table)) => Some(table),
            Some(Positions::Sinusoidal(_)) | None => None,
        };
        [&self.table].into_iter().chain(positions)
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
        let per_layer = self.per_layer.iter().map(|inputs| &inputs.projection);
        self.layers.iter().flat_map(Layer::linears).chain(per_layer).chain(head)
    }

    /// Every sparse MLP.
    pub(super) fn sparse_mlps(&self) -> impl Iterator<Item = &SparseMlp> {
        self.layers.iter().filter_map(|layer| layer.mlp.sparse())
    }

    /// The embedding's tables, and the one of [`PerLayerInputs`].
    pub(super) fn tables(&self) -> impl Iterator<Item = &Param> {
        self.embedding.tables().chain(self.per_layer.iter().map(|inputs| &inputs.table))
    }

    /// What tables of positions hold, by their numbers: rotary ones, then that of the embedding.
    pub(super) fn angles(&self) -> Vec<Angles> {
        let added = match &self.embedding.positions {
            Some(Positions::Sinusoidal(sinusoid)) => Some(sinusoid.angles()),
            Some(Positions::Learned(_)) | None => None,
        };
        self.rotaries.iter().map(Rotary::angles).chain(added).collect()
    }

    /// Every norm.
    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.layer_norms().chain(&self.embedding.norm)
    }

    fn layer_norms(&self) -> impl Iterator<Item = &Norm> {
        let per_layer = self.per_layer.iter().map(|inputs| &inputs.norm);
        self.layers.iter().flat_map(Layer::norms).chain([&self.final_norm]).chain(per_layer)
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
        self.embedding
            .params()
            .chain(self.per_layer.iter().map(|inputs| &inputs.table))
            .chain(self.layer_norms().flat_map(Norm::params))
            .chain(self.layers.iter().flat_map(Layer::scalars))
            .chain(self.linears().flat_map(Linear::params))
    }

    /// Calls `change` with every tensor.
    pub(super) fn each_param(&mut self, mut change: impl FnMut(&mut Param)) {
        let Embedding { table, positions, norm, .. } = &mut self.embedding;
        change(table);
        if let Some(Positions::Learned(table)) = positions {
            change(table);
        }
        let mut norms: Vec<&mut Norm> = norm.iter_mut().chain([&mut self.final_norm]).collect();
        let mut linears: Vec<&mut Linear> = Vec::new();
        if let Some(PerLayerInputs { table, projection, norm, .. }) = &mut self.per_layer {
            change(table);
            linears.push(projection);
            norms.push(norm);
        }
        for layer in &mut self.layers {
            layer.mlp.scalars_mut().into_iter().chain(&mut layer.scalar).for_each(&mut change);
            if let Some(PerLayer { gate, projection, norm, .. }) = &mut layer.per_layer {
                linears.extend([gate, projection]);
                norms.push(norm);
            }
            let Attention { query, key, value, output, head_norms, value_norm, sinks, latent, .. } =
                &mut layer.attention;
            sinks.iter_mut().for_each(&mut change);
            if let Some(latent) = latent {
                let Latent { query, compression: (compression, norm), rotated_key, .. } = &mut **latent;
                linears.extend([compression, rotated_key]);
                norms.push(norm);
                if let Some((linear, norm)) = query {
                    linears.push(linear);
                    norms.push(norm);
                }
            }
            linears.extend([query, key, value, output]);
            linears.extend(layer.mlp.linears_mut());
            norms.extend(value_norm);
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
        if let Some(Positions::Learned(table)) = &mut self.embedding.positions {
            table.keep_first(positions);
        }
    }

    /// Number of parameters, a tied head counted once.
    pub(super) fn parameters(&self) -> u64 {
        self.params().map(Param::stored_elements).fold(0, u64::saturating_add)
    }
}
