//! Constrained answers: their text matches a JSON schema, a grammar or a regular expression.
//!
//! ```text
//! sandbox: request ─► check ─► 400, or a job that carries the constraint as text
//! worker:  job ─► Guides::begin ─► Guide ─► which tokens may follow, before each is picked
//! ```
//!
//! Both processes compile the same text with [llguidance], under the same limits. The sandbox, a child process of the
//! parent, compiles it over single bytes, to reject an invalid constraint with a 400: a few hundred bytes of schema can take
//! exponential time and memory, and a process can be killed. Only a constraint that compiles there reaches a worker, which
//! compiles it over the bytes of the model's tokens ([`text::Vocabulary`](crate::text::Vocabulary)), because the worker
//! picks the tokens. The engine below only sees token ids; this module, between `text` and `engine`, is the only one that
//! knows both.
//!
//! A guide works on a separate thread: as soon as a token is known, it computes which tokens may follow, while the device
//! reads that token.
//!
//! [llguidance]: https://github.com/guidance-ai/llguidance

mod after_text;
mod bounds;
mod caps;
mod error;
pub mod fuzzing;
mod grammar;
mod guide;
mod raw_text;
mod schema;
mod schema_walk;
#[cfg(test)]
mod tests;
mod vocabulary;

pub(crate) use self::schema_walk::each_inner as each_inner_schema;
pub use self::{
    after_text::after_text,
    error::ConstraintError,
    grammar::{check, check_size},
    guide::{Allowed, Choice, Guide, Guides},
    raw_text::SCHEMA_SYNTAX,
};
