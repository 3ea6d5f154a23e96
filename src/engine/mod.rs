//! Turns a job into tokens.
//!
//! ```text
//! Job ─► generate ──► Forward (a Timeline: model + cache) ──► logits ──► Sampler ─► token ─► emit
//!           ▲                                                                        │
//!           └──────── Drafter: proposes tokens that are verified in the same pass ◄──┘
//! ```
//!
//! [`generate`] knows neither sessions nor pipes: it gets a model that can be fed tokens and a callback, so tests run it with a
//! script instead of a model. The callback also controls the loop: after each prefill chunk and each token it returns
//! `ControlFlow::Break` to stop.

mod dry;
mod error;
mod forward;
mod generate;
mod logprobs;
mod pinned_prefixes;
mod prefix_cache;
mod sampler;
mod speculation;
mod thread_tuning;
mod timeline;

pub use crate::job::Step;
pub use error::EngineError;
pub use forward::Forward;
pub use generate::{GenerationSummary, generate};
pub use sampler::Sampler;
pub use speculation::Speculation;
pub use timeline::{Timeline, TimelineOptions};
