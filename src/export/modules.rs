//! The modules that layers are made of.

use super::param::Param;

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

/// The nonlinearity of an MLP.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there are few: one or two for each layer")]
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
    /// xIELU (<https://arxiv.org/abs/2411.13010>): `x / 2 + a · x²` for positive `x`, else `x / 2 + b · (eˣ - 1 - x)`, where `a`
    /// is the softplus of `positive` and `b` that of `negative` plus a half. Both have shape `[1]`.
    Xielu {
        positive: Param,
        negative: Param,
    },
}

impl Activation {
    pub(super) fn params(&self) -> impl Iterator<Item = &Param> {
        let learned = match self {
            Self::Xielu { positive, negative } => Some([positive, negative]),
            _ => None,
        };
        learned.into_iter().flatten()
    }

    pub(super) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let learned = match self {
            Self::Xielu { positive, negative } => Some([positive, negative]),
            _ => None,
        };
        learned.into_iter().flatten()
    }
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
    pub(super) fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}

impl Norm {
    /// The same norm by another tensor.
    pub(super) fn renamed(mut self, weight: String) -> Self {
        self.weight.name = weight;
        self
    }

    pub(super) fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }
}
