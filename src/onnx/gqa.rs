//! Inputs and outputs of `com.microsoft:GroupQueryAttention`, by index.

use std::ops::Range;

pub(crate) const NAME: &str = "GroupQueryAttention";

/// Packed query, key and value if [`KEY`] and [`VALUE`] are absent.
pub(crate) const QUERY: usize = 0;
pub(crate) const KEY: usize = 1;
pub(crate) const VALUE: usize = 2;
/// `past_key` and `past_value`.
pub(crate) const PAST_KEY_VALUE: Range<usize> = 3..5;
pub(crate) const SEQLENS_K: usize = 5;
pub(crate) const TOTAL_SEQUENCE_LENGTH: usize = 6;
/// `cos_cache` and `sin_cache`, the tables of rotary positions.
pub(crate) const COS_SIN_CACHE: Range<usize> = 7..9;
/// Number of inputs that every version of the operator has. Later versions add position ids, a bias, sinks and scales.
pub(crate) const INPUTS: usize = 9;
/// Added to the attention scores, `[1, heads, new, total]`.
pub(crate) const ATTENTION_BIAS: usize = 10;

/// A score of each query head that takes a share of its attention and has no value, `[heads]`.
pub(crate) const HEAD_SINK: usize = 11;

/// `present_key` and `present_value`; output 0 is the attention.
pub(crate) const PRESENT_KEY_VALUE: Range<usize> = 1..3;
pub(crate) const OUTPUTS: usize = 3;
