//! What a job allows a drafter to do.

use crate::job::CacheSalt;

/// Limits of one job's drafts.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct DraftLimits<'a> {
    /// Maximum number of tokens whose logits one pass returns; 1 turns drafting off.
    pub(in crate::engine) rows: usize,
    /// Number of token ids of the main model.
    pub(in crate::engine) vocabulary: usize,
    /// Whether the draft model may use its prefix cache.
    pub(in crate::engine) may_be_kept: bool,
    /// The cache salt of the job; the draft model uses only cache entries of the same salt.
    pub(in crate::engine) salt: CacheSalt,
    /// Tokens that end the answer. Nothing is drafted after them.
    pub(in crate::engine) ends: &'a [u32],
}
