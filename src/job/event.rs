//! What happens to a job, and how it ends.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{failure::Failure, memory::MemoryReport, sampling::TokenLogprobs};

/// What happens while a worker runs a job. The engine emits it, the pipe carries it, and the client's stream shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// A prompt chunk was read. Not sent for the last chunk, which is followed by the first token.
    Progress {
        /// Prompt tokens read so far.
        done: usize,
        /// All prompt tokens.
        total: usize,
        /// Tokens of `done` that came from the prefix cache.
        cached: usize,
    },
    /// Log-probability of a prompt token, or of the token that follows. Only sent if requested. Sent twice if the worker is lost
    /// before the token.
    Logprobs(TokenLogprobs),
    /// The next token of the answer. An end token is not sent.
    Token(u32),
}

/// What happens to a job. The last event is `Done` or `Failed`.
#[expect(clippy::large_enum_variant, reason = "it is moved a few times a token, which costs less than a box")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The job has left the queue.
    Started {
        /// Time from acceptance to here.
        queue_wait: Duration,
    },
    /// Its model is being loaded.
    Loading,
    /// Its model is loaded; only after [`Event::Loading`].
    Loaded,
    /// A step of the worker.
    Step(Step),
    /// The job has ended.
    Done(Finish),
    /// The job has failed. Tokens before this remain valid.
    Failed(Failure),
}

/// How a job ended, and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Why the generation ended.
    pub reason: EndReason,
    /// Token counts.
    pub usage: Usage,
    /// Times, measured by the worker.
    pub timings: Timings,
    /// The worker's memory before, during and after the job.
    pub memory: MemoryReport,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// An end token was picked, or the constraint allows no further token.
    EndToken,
    /// `max_new_tokens` or `max_time` was reached.
    Length,
    /// The job was cancelled; the tokens so far are valid.
    Cancelled,
}

/// Tokens read and written by a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Generated tokens, including an end token.
    pub completion_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
}

/// Time spent in the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the first prompt token to the logits of the last one.
    pub prefill: Duration,
    /// From those to the last token. The first token needs no decode step.
    pub decode: Duration,
    /// How many workers were lost. The two times above then include the interruptions.
    pub resumed: u32,
    /// Tokens drafted by speculative decoding.
    pub drafted: DraftCounts,
    /// The part of them that came from a draft model.
    pub drafted_by_model: DraftCounts,
    /// Time to write a saved prompt to its file.
    pub saving: Duration,
}

/// Tokens that speculative decoding proposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftCounts {
    /// Proposed tokens.
    pub tokens: usize,
    /// Proposed tokens that the model accepted.
    pub accepted: usize,
}

impl DraftCounts {
    /// Counts a draft of `tokens` tokens, of which `accepted` were accepted.
    pub fn add(&mut self, tokens: usize, accepted: usize) {
        self.tokens += tokens;
        self.accepted += accepted;
    }
}
