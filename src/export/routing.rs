//! How the tokens of a sparse MLP choose their experts.

/// How experts are scored by the router's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scores {
    /// Softmax over all experts.
    Softmax,
    /// Each expert by itself.
    Sigmoid,
    /// Softmax over the chosen experts.
    SoftmaxOfChosen,
    /// SparseMixer (<https://arxiv.org/abs/2409.12136>) of two experts: each is weighed against those whose logits are within
    /// `tolerance` of it, relative to their size.
    SparseMixer { tolerance: f32 },
}

/// The settings of a router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Routing {
    /// Experts of a token.
    pub chosen: usize,
    pub scores: Scores,
    /// Whether the weights of a token's experts are divided by their sum.
    pub is_normalized: bool,
    /// Multiplies weights.
    pub scale: f32,
    /// Experts come from a few groups of neighbours only.
    pub groups: Groups,
    /// Whether weights multiply what experts read instead of what they give.
    pub scales_input: bool,
}

/// Groups of experts, and how a few of them are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    pub count: usize,
    pub chosen: usize,
    /// The score of a group is the sum of this many of its best experts.
    pub best: usize,
}

impl Groups {
    /// All experts are in one group.
    pub(super) const ONE: Self = Self { count: 1, chosen: 1, best: 1 };
}

impl Routing {
    /// Softmax over all experts; `is_normalized`: whether the weights of the chosen ones add up to one.
    pub(super) const fn softmax(chosen: usize, is_normalized: bool) -> Self {
        let scores = Scores::Softmax;
        Self { chosen, scores, is_normalized, scale: 1.0, groups: Groups::ONE, scales_input: false }
    }
}

/// What experts compute between their products: `(up + up_offset) · gate · sigmoid(alpha · gate)`, over clamped inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SwiGlu {
    pub alpha: f32,
    /// The gate is at most this, and the rest within it.
    pub limit: Option<f32>,
    pub up_offset: f32,
}

impl SwiGlu {
    /// With SiLU, and nothing clamped.
    pub(super) const SILU: Self = Self { alpha: 1.0, limit: None, up_offset: 0.0 };
}
