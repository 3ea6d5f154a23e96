//! Turns a job into tokens.
//!
//! ```text
//! Job ─► generate ──► Forward (a Timeline: model + cache) ──► logits ──► Sampler ─► token ─► emit
//!           ▲                                                                        │
//!           └──────── Drafter: proposes tokens that are verified in the same pass ◄──┘
//! ```
//!
//! [`generate_together`] does the same for several jobs, whose sequences are computed in one pass a step.
//!
//! [`generate`] knows neither sessions nor pipes: it gets a model that can be fed tokens and a callback, so tests run it with a
//! script instead of a model. The callback also controls the loop: after each prefill chunk and each token it returns
//! `ControlFlow::Break` to stop.

mod branches;
mod cache_growth;
mod dry;
mod embedding;
mod error;
mod forward;
mod generate;
mod logprobs;
mod pinned_prefixes;
mod prefix_cache;
mod prefix_reuse;
mod restriction;
mod sampler;
mod sequence;
mod speculation;
mod summary;
mod thread_tuning;
mod timeline;
mod together;

pub use crate::job::Step;
pub use error::EngineError;
pub use forward::{Forward, ForwardBranches};
pub use generate::generate;
pub use sampler::Sampler;
pub use speculation::Speculation;
pub use summary::GenerationSummary;
pub use timeline::{Timeline, TimelineOptions};
pub use together::{SequenceEvent, generate_together};
