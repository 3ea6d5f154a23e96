//! Speculative decoding: several tokens in one pass, where drafts of them are good.
//!
//! A decode step reads every weight for one token. A pass of a few tokens also reads them once, and on most machines takes little
//! longer. So tokens that are likely to come are drafted and fed together with the next token, and the logits tell how many of
//! them were right ([Leviathan, Kalman and Matias: Fast Inference from Transformers via Speculative
//! Decoding](https://arxiv.org/abs/2211.17192), 2023). There are two sources of drafts:
//!
//! - [Prompt lookup](https://github.com/apoorvumang/prompt-lookup-decoding): where the sequence repeats an earlier part (an edited
//!   paragraph, a quoted field, code), the draft is what followed then. It costs nothing.
//! - A draft model: a smaller model with the same tokens, which drafts its most probable ones. It follows the sequence on a
//!   timeline of its own and rewinds wrong drafts.
//!
//! Each pass uses the source that is expected to be faster.
//!
//! # The answer does not change
//! At each position the job's own sampler picks from the model's logits with the random number of that step. If it picks the
//! drafted token, the logits of the next position are known already; if not, the rest of the draft is rewound. So the text is the
//! same for greedy and sampled answers, with penalties and constraints. (The paper accepts a draft with a probability that keeps
//! the distribution of answers. Here each single answer is kept, so that a seed gives the same answer with and without drafts, and
//! a job continues with the same words on another worker. This is why drafts are the most probable tokens and not sampled ones.)
//! What can differ are the last bits of the logits, which with some kernels depend on the number of tokens in a pass, as they do
//! between a prompt that is read at once and one that is read in chunks.
//!
//! # When tokens are drafted
//! Only when it is expected to pay, judging from the pass times of both models on this machine and the recent hit rate of drafts.
//! For prompt lookup (`CostModel`) the hit rate is free to learn, because every token confirms or refutes a draft, whether it was
//! fed or not. A draft model is tried within a time budget (`DraftBudget`).
//!
//! A draft model that fails ends drafting but not the answer, unless the device is lost, which the answer needs too.

mod cost_model;
mod draft_budget;
mod draft_model;
mod drafter;
mod learned;
mod limits;
mod prompt_lookup;
#[cfg(test)]
mod tests;

pub(super) use drafter::{Draft, DraftSource, Drafter};
pub use learned::Speculation;
pub(super) use limits::DraftLimits;
