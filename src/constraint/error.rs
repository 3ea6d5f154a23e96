//! Why a constraint is rejected.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// Why a constraint is rejected. Always the client's error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ConstraintError {
    /// Its text is too long.
    #[error("is {found} bytes long, at most {max}; make it shorter")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Maximum bytes.
        max: usize,
    },
    /// Its brackets nest too deeply.
    #[error(
        "nests {found} levels deep, at most {max}; move inner parts to named definitions and refer to them"
    )]
    TooDeep {
        /// Levels found.
        found: usize,
        /// Maximum nesting.
        max: usize,
    },
    /// A keyword that cannot be enforced.
    #[error(
        "has {keyword:?} at {place}, a keyword of JSON Schema that cannot be enforced; leave it out, or check the answer for it"
    )]
    Keyword {
        /// The keyword.
        keyword: String,
        /// The schema that contains it, from the root: `#/properties/name`.
        place: String,
    },
    /// A keyword that asks for too much.
    #[error("has {keyword:?} at {place}, which {reason}")]
    Cap {
        /// The keyword.
        keyword: String,
        /// The schema that contains it, from the root: `#/properties/name`.
        place: String,
        /// Why it is too much, and the way out.
        reason: String,
    },
    /// It does not compile.
    #[error("cannot be used: {message}; correct it")]
    Invalid {
        /// The error, with its position.
        message: String,
    },
    /// It takes too long to compile.
    #[error("takes more than {} s to prepare; make it simpler", limit.as_secs())]
    TooSlow {
        /// Longest time.
        limit: Duration,
    },
    /// It needs too much memory, or recurses too deeply.
    #[error("takes more than {limit} of memory to prepare; make it simpler")]
    TooLarge {
        /// Maximum memory.
        limit: Bytes,
    },
}

impl ConstraintError {
    /// Whether a limit of time or memory was exceeded, and the constraint itself may be valid.
    #[must_use]
    pub const fn is_limit(&self) -> bool {
        matches!(self, Self::TooSlow { .. } | Self::TooLarge { .. })
    }
}

pub(super) fn invalid(message: &str) -> ConstraintError {
    ConstraintError::Invalid { message: message.to_owned() }
}
