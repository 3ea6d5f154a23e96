//! Answers whose text must have a form: a JSON schema, a grammar, a regular expression.
//!
//! ```text
//! sandbox: request ─► check ─► 400, or a job that carries the constraint as text
//! worker:  job ─► Guides::begin ─► Guide ─► which tokens may follow, before each is picked
//! ```
//!
//! Both processes compile the same text, with the same limits, by [llguidance]. The sandbox, a child process of the parent,
//! does so to refuse what cannot be done while that is still a 400, over an alphabet of single bytes: a few hundred bytes of
//! schema can ask for exponential time and memory, and a process can be killed. Only what has passed there reaches a worker,
//! which compiles it over the bytes of the model's tokens
//! ([`text::Vocabulary`](crate::text::Vocabulary)), for it is the worker that picks. So the engine below sees ids as ever,
//! and this module, between `text` and `engine`, is the only one that knows both.
//!
//! A guide works on a thread of its own. What may follow a token is known as soon as the token is, and is worked out
//! while the device reads it.
//!
//! [llguidance]: https://github.com/guidance-ai/llguidance

mod bounds;
mod caps;
mod error;
pub mod fuzzing;
mod grammar;
mod guide;
mod schema;
mod schema_walk;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use self::{
    error::ConstraintError,
    grammar::{check, check_size},
    guide::{Allowed, Choice, Guide, Guides},
    schema::embedded,
};
