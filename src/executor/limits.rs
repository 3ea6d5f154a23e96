//! Limits of the queue and of its jobs.

use std::{num::NonZeroUsize, time::Duration};

use crate::{job::Priority, units::Tokens};

/// Limits of the queue. A running job is not in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of waiting jobs.
    pub max_jobs: NonZeroUsize,
    /// Maximum number of prompt tokens of all waiting jobs. A larger prompt is accepted when no other job waits.
    pub max_prompt_tokens: Tokens,
}

/// Time limits of a job, counted from its acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Until it runs.
    pub queue: Duration,
    /// Until it has ended.
    pub total: Duration,
}

/// How a job waits and runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its time limits.
    pub deadlines: Deadlines,
    /// Its priority.
    pub priority: Priority,
    /// Time in the slot, without loading its model, after which the job ends with
    /// [`EndReason::Length`](crate::job::EndReason::Length) and the tokens so far.
    pub max_time: Option<Duration>,
    /// Whether the client limited the number of tokens. Otherwise the limit says nothing about the length of the answer.
    pub is_limited: bool,
}

impl From<Deadlines> for Terms {
    fn from(deadlines: Deadlines) -> Self {
        Self { deadlines, priority: Priority::default(), max_time: None, is_limited: true }
    }
}

/// Why a job was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error(
        "the queue is full: {jobs} of {max_jobs} jobs wait, with {prompt_tokens} of prompt (limit {max_prompt_tokens}); \
         retry in about {} s",
        retry_after.as_secs_f64().ceil()
    )]
    Busy {
        /// Waiting jobs.
        jobs: usize,
        /// The limit on them.
        max_jobs: NonZeroUsize,
        /// Their prompt tokens.
        prompt_tokens: Tokens,
        /// The limit on them.
        max_prompt_tokens: Tokens,
        /// When all of them are expected to be done.
        retry_after: Duration,
    },
    /// The executor is draining.
    #[error("the server is shutting down and accepts no new requests")]
    Stopped,
}
