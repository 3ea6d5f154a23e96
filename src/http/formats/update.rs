//! What a choice reports while it is generated, and the complete choice.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    logprobs::{PromptLogprobs, ScoredToken},
    token_ids::ReportedIds,
};
use crate::{
    job::{self, MemoryReport},
    text::Call,
};

/// What a choice reports next.
pub(crate) enum Update {
    /// The model is being loaded.
    Loading,
    /// More of the prompt was read; on request only.
    Progress(Progress),
    /// Text or calls to append.
    Delta(Delta),
    /// The choice is complete.
    Finished(Box<FinishedChoice>),
}

/// Prefill progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Tokens read.
    pub(crate) done: usize,
    /// Tokens in all.
    pub(crate) total: usize,
    /// Tokens read that came from the prefix cache.
    pub(crate) cached: usize,
    /// Time since the job got the slot.
    pub(crate) since: Duration,
}

/// What is added to a choice.
#[derive(Debug)]
pub(crate) struct Delta {
    /// Reasoning before the text; often empty.
    pub(crate) reasoning: String,
    /// Empty where only calls or reasoning are added, or at the end.
    pub(crate) text: String,
    /// Tool calls that begin or continue.
    pub(crate) calls: Vec<Call>,
    /// Tokens since the last delta, if log-probabilities were requested. Text that is held back is sent after its tokens.
    pub(crate) scored: Vec<ScoredToken>,
    /// Ids of tokens since the last delta, if they were requested.
    pub(crate) ids: ReportedIds,
    /// Tokens of the prompt and of the choice so far.
    pub(crate) usage: job::Usage,
}

/// A complete choice.
pub(crate) struct FinishedChoice {
    /// The model's reasoning; empty if there is none.
    pub(crate) reasoning: String,
    /// Tokens of the reasoning.
    pub(crate) reasoning_tokens: usize,
    /// All text outside tool calls.
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
    /// All tokens, if log-probabilities were requested.
    pub(crate) scored: Vec<ScoredToken>,
    /// How many of them are the prompt's.
    pub(crate) scored_prompt: usize,
    /// Log-probabilities of the prompt by token id, if they were requested.
    pub(crate) prompt_logprobs: Option<Vec<Option<PromptLogprobs>>>,
    /// Ids of all tokens, if they were requested.
    pub(crate) ids: ReportedIds,
    /// The last delta: text held back because it could have become a stop string or a tool call, and unsent log-probabilities.
    pub(crate) rest: Delta,
    pub(crate) reason: FinishReason,
    /// The stop string that ended it.
    pub(crate) stop_string: Option<String>,
    pub(crate) usage: job::Usage,
    /// See `AnswerOptions::counts_prompt`.
    pub(crate) counts_prompt: bool,
    /// Whether it is counted but not sent, because others are better.
    pub(crate) is_left_out: bool,
    pub(crate) queue_wait: Duration,
    pub(crate) total: Duration,
    /// Tokens that the slot generated; a few more than in `usage` if a stop string ended the answer.
    pub(crate) generated: usize,
    pub(crate) timings: job::Timings,
    pub(crate) memory: MemoryReport,
}

impl FinishedChoice {
    /// Approximate size as JSON, to decide where to serialize it.
    pub(crate) fn json_bytes(&self) -> usize {
        const SCORE: usize = 128;
        let calls: usize = self.calls.iter().map(|call| call.arguments.len()).sum();
        let scores: usize = self.scored.iter().map(ScoredToken::alternatives).sum();
        let of_prompt = self.prompt_logprobs.iter().flatten().flatten().map(PromptLogprobs::len);
        let scores = self.scored.len() + scores + of_prompt.sum::<usize>();
        self.reasoning.len() + self.text.len() + calls + scores * SCORE
    }

    /// Mean log-probability of the answer's tokens; negative infinity without any.
    #[expect(clippy::cast_precision_loss, reason = "token counts")]
    pub(crate) fn mean_logprob(&self) -> f64 {
        // An echoed prompt has scores too.
        let answer = self.scored.len().saturating_sub(self.scored_prompt);
        let scores = self.scored.iter().skip(self.scored_prompt).filter_map(ScoredToken::logprob);
        if answer == 0 { f64::NEG_INFINITY } else { scores.sum::<f64>() / answer as f64 }
    }

    /// Whether text or the last call was cut off. With calls, `stop` means that a stop string or end token cut the last call:
    /// complete calls end with `tool_calls`.
    pub(crate) fn is_truncated(&self) -> bool {
        self.reason == FinishReason::Length || (self.reason == FinishReason::Stop && !self.calls.is_empty())
    }
}

/// Why an answer ended: an end token or stop string (`stop`), the token limit or `max_time_ms` (`length`), or complete tool calls
/// (`tool_calls`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    // If the answer has calls, the last one is truncated; complete calls end with `ToolCalls`.
    Stop,
    Length,
    // All calls have complete arguments.
    ToolCalls,
}

impl FinishReason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

impl Delta {
    /// Whether nothing is added.
    pub(crate) fn is_empty(&self) -> bool {
        let has_text = !(self.reasoning.is_empty() && self.text.is_empty() && self.calls.is_empty());
        !has_text && self.scored.is_empty() && self.ids.is_empty()
    }
}
