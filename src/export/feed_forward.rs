//! The half of a layer that processes each position separately: an MLP, or a mixture of experts.

use super::{
    modules::{Activation, Linear},
    param::Param,
    routing::{Routing, SwiGlu},
};

/// The half of a layer that processes each position separately.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one in a layer, and nearly all layers are dense")]
pub(super) enum FeedForward {
    /// The same weights for every token.
    Dense(Mlp),
    /// A mixture of experts, of which each token has a few.
    Sparse(Box<SparseMlp>),
}

/// The sum of the experts that a router chooses for a token, each with a weight, and of what all tokens share.
#[derive(Clone, Debug)]
pub(super) struct SparseMlp {
    /// `[experts, hidden]`.
    pub router: Linear,
    /// What transformers calls the router within its layer, if not as the checkpoint does.
    pub router_in_memory: Option<&'static str>,
    pub routing: Routing,
    /// `[experts]`: added to scores for the choice only.
    pub correction: Option<Param>,
    pub experts: Vec<Expert>,
    pub activation: SwiGlu,
    pub shared: Option<SharedMlp>,
}

/// `down(activation(gate(x), up(x)))`.
#[derive(Clone, Debug)]
pub(super) struct Expert {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// An MLP for every token beside the experts, times the sigmoid of `gate` where there is one.
#[derive(Clone, Debug)]
pub(super) struct SharedMlp {
    pub mlp: Mlp,
    /// `[1, hidden]`.
    pub gate: Option<Linear>,
}

/// An MLP: widens, applies a nonlinearity, and narrows.
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

impl Mlp {
    /// What widens the input.
    pub(super) fn inner_linears(&self) -> impl Iterator<Item = &Linear> {
        let (gate, up) = match &self.inner {
            Inner::Gated { gate, up } => (Some(gate), up),
            Inner::Plain { up } => (None, up),
        };
        gate.into_iter().chain([up])
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.inner_linears().chain([&self.down])
    }

    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let (gate, up) = match &mut self.inner {
            Inner::Gated { gate, up } => (Some(gate), up),
            Inner::Plain { up } => (None, up),
        };
        gate.into_iter().chain([up, &mut self.down])
    }
}

impl SparseMlp {
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let experts = self.experts.iter().flat_map(|Expert { gate, up, down }| [gate, up, down]);
        let shared = self.shared.iter().flat_map(|shared| shared.mlp.linears().chain(&shared.gate));
        [&self.router].into_iter().chain(experts).chain(shared)
    }

    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let experts = self.experts.iter_mut().flat_map(|Expert { gate, up, down }| [gate, up, down]);
        let shared =
            self.shared.iter_mut().flat_map(|shared| shared.mlp.linears_mut().chain(&mut shared.gate));
        [&mut self.router].into_iter().chain(experts).chain(shared)
    }

    /// Layers that choose among others: a rounding of theirs can change the choice.
    pub(super) fn gates(&self) -> impl Iterator<Item = &Linear> {
        [&self.router].into_iter().chain(self.shared.iter().flat_map(|shared| &shared.gate))
    }
}

impl FeedForward {
    /// The MLP that every token passes through, if there is one: not experts.
    pub(super) fn dense_mut(&mut self) -> Option<&mut Mlp> {
        match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Sparse(sparse) => sparse.shared.as_mut().map(|shared| &mut shared.mlp),
        }
    }

    /// As [`dense_mut`](Self::dense_mut).
    pub(super) fn dense(&self) -> Option<&Mlp> {
        match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Sparse(sparse) => sparse.shared.as_ref().map(|shared| &shared.mlp),
        }
    }

    /// The experts, if there are any.
    pub(super) fn sparse(&self) -> Option<&SparseMlp> {
        match self {
            Self::Dense(_) => None,
            Self::Sparse(sparse) => Some(sparse),
        }
    }

    /// The layers whose sum it is.
    pub(super) fn outputs_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Dense(mlp) => vec![&mut mlp.down],
            Self::Sparse(sparse) => {
                let experts = sparse.experts.iter_mut().map(|expert| &mut expert.down);
                experts.chain(sparse.shared.iter_mut().map(|shared| &mut shared.mlp.down)).collect()
            }
        }
    }

    pub(super) fn linears(&self) -> Box<dyn Iterator<Item = &Linear> + '_> {
        match self {
            Self::Dense(mlp) => Box::new(mlp.linears()),
            Self::Sparse(sparse) => Box::new(sparse.linears()),
        }
    }

    pub(super) fn linears_mut(&mut self) -> Box<dyn Iterator<Item = &mut Linear> + '_> {
        match self {
            Self::Dense(mlp) => Box::new(mlp.linears_mut()),
            Self::Sparse(sparse) => Box::new(sparse.linears_mut()),
        }
    }

    /// Numbers that are neither matrices nor biases.
    pub(super) fn scalars(&self) -> Vec<&Param> {
        match self {
            Self::Dense(mlp) => mlp.activation.params().collect(),
            Self::Sparse(sparse) => {
                let shared = sparse.shared.iter().flat_map(|shared| shared.mlp.activation.params());
                shared.chain(&sparse.correction).collect()
            }
        }
    }

    pub(super) fn scalars_mut(&mut self) -> Vec<&mut Param> {
        match self {
            Self::Dense(mlp) => mlp.activation.params_mut().collect(),
            Self::Sparse(sparse) => {
                let shared = sparse.shared.iter_mut().flat_map(|shared| shared.mlp.activation.params_mut());
                shared.chain(&mut sparse.correction).collect()
            }
        }
    }
}
