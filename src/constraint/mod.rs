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
pub mod fuzzing;
mod grammar;
mod guide;
mod schema;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::{
    grammar::{check, check_size},
    guide::{Allowed, Choice, Guide, Guides},
    schema::embedded,
};
use crate::units::Bytes;

/// Why a constraint is refused. Always the client's error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ConstraintError {
    /// Its text is too long.
    #[error("is {found} bytes long, at most {most}; make it shorter")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Most bytes.
        most: usize,
    },
    /// Its brackets are too deep.
    #[error("nests {found} levels deep, at most {most}; name the inner parts and refer to them")]
    TooDeep {
        /// Levels found.
        found: usize,
        /// Most levels.
        most: usize,
    },
    /// A keyword that cannot be enforced.
    #[error(
        "has {keyword:?} at {place}, a keyword of JSON Schema that cannot be enforced; leave it out, or check the answer for it"
    )]
    Keyword {
        /// The keyword.
        keyword: String,
        /// The schema that it stands in, from the root: `#/properties/name`.
        place: String,
    },
    /// A keyword that asks for too much.
    #[error("has {keyword:?} at {place}, which {reason}")]
    Cap {
        /// The keyword.
        keyword: String,
        /// The schema that it stands in, from the root: `#/properties/name`.
        place: String,
        /// Why it is too much, and the way out.
        reason: String,
    },
    /// It does not compile.
    #[error("cannot be used: {message}; correct it")]
    Invalid {
        /// Where and why.
        message: String,
    },
    /// It compiles for too long.
    #[error("takes more than {} s to prepare; make it simpler", limit.as_secs())]
    TooSlow {
        /// Longest time.
        limit: Duration,
    },
    /// It needs too much memory, or recurses too deeply.
    #[error("takes more than {limit} of memory to prepare; make it simpler")]
    TooLarge {
        /// Most memory.
        limit: Bytes,
    },
}

impl ConstraintError {
    /// Whether it was refused for its time or memory, and not for what it says.
    #[must_use]
    pub const fn is_limit(&self) -> bool {
        matches!(self, Self::TooSlow { .. } | Self::TooLarge { .. })
    }
}
