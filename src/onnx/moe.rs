//! The nodes of a graph that compute the experts of a sparse MLP.
//!
//! Each is one node of a function that the graph itself defines by plain nodes, so that ONNX Runtime runs it anywhere. eka
//! replaces the node by an operator of its own where it has one; its attributes say everything that the function computes.
//!
//! Inputs are the tokens, `[1, n, hidden]`, the router's logits, `[1, n, experts]`, a correction of scores, `[experts]`, if
//! [`CORRECTION`] is set, biases of gate and up, `[experts, width]`, and of down, `[experts, hidden]`, if [`BIASES`] is set, and then
//! for gate, up and down the weights of all experts: `[experts, rows, columns]`, or codes, scales and perhaps zero points of blocks of
//! columns. The output is `[1, n, hidden]`.

/// The domain of functions that a graph defines.
pub(crate) const DOMAIN: &str = "eka.functions";

/// How the names of the functions start.
pub(crate) const NAME: &str = "MixtureOfExperts";

/// Number of experts.
pub(crate) const EXPERTS: &str = "experts";
/// Size of a token.
pub(crate) const HIDDEN: &str = "hidden";
/// What an expert widens it to.
pub(crate) const WIDTH: &str = "width";
/// Experts of a token.
pub(crate) const CHOSEN: &str = "chosen";
/// One of the values below.
pub(crate) const SCORES: &str = "scores";
/// Softmax over all experts.
pub(crate) const SOFTMAX: usize = 0;
/// Each expert by itself.
pub(crate) const SIGMOID: usize = 1;
/// Softmax over the chosen experts.
pub(crate) const SOFTMAX_OF_CHOSEN: usize = 2;
/// SparseMixer of two experts, with [`TOLERANCE`].
pub(crate) const SPARSE_MIXER: usize = 3;
/// Relative difference of logits that still compete.
pub(crate) const TOLERANCE: &str = "tolerance";
/// Whether the weights of a token are divided by their sum.
pub(crate) const NORMALIZED: &str = "normalized";
/// The least divisor.
pub(crate) const LEAST_SUM: f32 = 1e-20;
/// Multiplies weights.
pub(crate) const SCALE: &str = "scale";
/// Groups of neighbouring experts.
pub(crate) const GROUPS: &str = "groups";
/// Groups that a token's experts come from.
pub(crate) const CHOSEN_GROUPS: &str = "chosen_groups";
/// Experts whose scores are added up to a group's.
pub(crate) const GROUP_BEST: &str = "group_best";
/// Whether weights multiply what experts read.
pub(crate) const SCALES_INPUT: &str = "scales_input";
/// SwiGLU's factor within the sigmoid.
pub(crate) const ALPHA: &str = "alpha";
/// SwiGLU's limit of its inputs; zero without.
pub(crate) const LIMIT: &str = "limit";
/// Added to what SwiGLU's gate multiplies.
pub(crate) const UP_OFFSET: &str = "up_offset";
/// Whether scores are corrected.
pub(crate) const CORRECTION: &str = "correction";
/// Whether there are biases.
pub(crate) const BIASES: &str = "biases";
/// For gate, up and down: bits of a weight, zero for float weights.
pub(crate) const BITS: [&str; 3] = ["gate_bits", "up_bits", "down_bits"];
/// Weights that share a scale.
pub(crate) const BLOCK_SIZE: [&str; 3] = ["gate_block_size", "up_block_size", "down_block_size"];
/// Whether there are zero points.
pub(crate) const ZERO_POINTS: [&str; 3] = ["gate_zero_points", "up_zero_points", "down_zero_points"];
