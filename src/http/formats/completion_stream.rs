//! One choice while it is generated: events of its job come in, text and tool calls go out.
//!
//! Streamed and complete answers are both made from this, so they cannot differ.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{ScoredToken, Scoring};
use crate::{
    executor::Ticket,
    http::middleware::RequestRecord,
    job::{self, Event, Failure, Finish, MemoryReport, Step, TokenLogprobs},
    text::{AnswerDelta, Call, Detokenizer, Text, ToolCallParser, ToolCallParserOptions},
};

/// How the answer is made from the tokens of its job.
#[derive(Clone, Debug)]
pub(crate) struct AnswerOptions {
    /// The answer ends before any of these strings.
    pub(crate) stop: Vec<String>,
    /// How tool calls are parsed; `None` without tools.
    pub(crate) tool_calls: Option<ToolCallParserOptions>,
    /// Constrained output is decoded without removing anything.
    pub(crate) is_verbatim: bool,
    /// Whether prefill progress is reported.
    pub(crate) wants_progress: bool,
    /// The text of the prompt where it is echoed, until the first text is sent.
    pub(crate) echo: Option<String>,
    /// The first token of the prompt, if its log-probabilities were requested.
    pub(crate) first_scored: Option<u32>,
    /// Whether nothing follows the prompt.
    pub(crate) prompt_only: bool,
    pub(crate) prompt_tokens: usize,
    /// Whether the prompt is counted with this choice: with one of those that have it.
    pub(crate) counts_prompt: bool,
    /// When the request had been read, before its prompt was encoded.
    pub(crate) arrived: Instant,
}

/// A choice that is being generated. Dropping it drops the ticket, which cancels the job.
pub(crate) struct CompletionStream {
    ticket: Ticket,
    decoder: Detokenizer,
    options: AnswerOptions,
    queue_wait: Duration,
    /// When the job got the slot.
    began: Instant,
    completion_tokens: usize,
    state: StreamState,
    is_loading: bool,
    scores: Scores,
    /// Receives the token counts when this is dropped, complete or not.
    pub(crate) record: Option<RequestRecord>,
    /// Parses tool calls; `None` without tools.
    reader: Option<ToolCallParser>,
    /// All text and calls so far.
    content: AnswerDelta,
}

impl Drop for CompletionStream {
    fn drop(&mut self) {
        if let Some(record) = self.record.as_ref().filter(|_| self.completion_tokens > 0) {
            let prompt_tokens = if self.options.counts_prompt { self.options.prompt_tokens } else { 0 };
            record.add_tokens(prompt_tokens, self.completion_tokens);
        }
    }
}

/// Log-probabilities of the tokens so far.
struct Scores {
    text: Arc<Text>,
    scoring: Scoring,
    /// The score of the next token.
    next: Option<TokenLogprobs>,
    all: Vec<ScoredToken>,
    /// How many have been sent with a delta.
    sent: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Generating,
    /// The answer has only its prompt; tokens are dropped.
    PromptOnly,
    /// A stop string is complete, and the job was cancelled.
    Stopped,
}

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
    /// Empty where only calls are added, or at the end.
    pub(crate) text: String,
    /// Tool calls that begin or continue.
    pub(crate) calls: Vec<Call>,
    /// Tokens since the last delta, if log-probabilities were requested. Text that is held back is sent after its tokens.
    pub(crate) scored: Vec<ScoredToken>,
}

/// A complete choice.
pub(crate) struct FinishedChoice {
    /// All text outside tool calls.
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
    /// All tokens, if log-probabilities were requested.
    pub(crate) scored: Vec<ScoredToken>,
    /// How many of them are the prompt's.
    pub(crate) scored_prompt: usize,
    /// The last delta: text held back because it could have become a stop string or a tool call, and unsent log-probabilities.
    pub(crate) rest: Delta,
    pub(crate) reason: FinishReason,
    pub(crate) usage: job::Usage,
    /// See [`AnswerOptions::counts_prompt`].
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
        self.text.len() + calls + (self.scored.len() + scores) * SCORE
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

impl CompletionStream {
    pub(crate) fn new(ticket: Ticket, text: Arc<Text>, mut options: AnswerOptions) -> Self {
        let mut decoder = text.detokenizer(std::mem::take(&mut options.stop));
        if options.is_verbatim {
            decoder = decoder.verbatim();
        }
        let tool_calls = options.tool_calls.take();
        if let Some(tool_calls) = &tool_calls {
            decoder = decoder.with_special(tool_calls.format.marker());
        }
        let mut scoring = Scoring::default();
        let all = options.first_scored.map(|token| scoring.unscored(&text, token)).into_iter().collect();
        Self {
            ticket,
            decoder,
            queue_wait: Duration::ZERO,
            began: options.arrived,
            completion_tokens: 0,
            state: if options.prompt_only { StreamState::PromptOnly } else { StreamState::Generating },
            is_loading: false,
            scores: Scores { text, scoring, next: None, all, sent: 0 },
            record: None,
            reader: tool_calls.map(ToolCallParser::new),
            content: AnswerDelta::default(),
            options,
        }
    }

    /// Whether the last update was that the model is being loaded.
    pub(crate) const fn is_loading(&self) -> bool {
        self.is_loading
    }

    /// The next update. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Update, Failure> {
        loop {
            // The sender is dropped before the last event only when the executor's runtime ends.
            let event = self.ticket.next().await.ok_or(Failure::ShuttingDown)?;
            if let Some(update) = self.take(event)? {
                return Ok(update);
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<Option<Update>, Failure> {
        match event {
            Event::Started { queue_wait } => {
                (self.queue_wait, self.began) = (queue_wait, Instant::now());
            }
            Event::Loading => {
                self.is_loading = true;
                return Ok(Some(Update::Loading));
            }
            Event::Step(Step::Progress { done, total, cached }) if self.options.wants_progress => {
                self.is_loading = false;
                let since = self.began.elapsed();
                return Ok(Some(Update::Progress(Progress { done, total, cached, since })));
            }
            Event::Step(Step::Logprobs(score)) if score.position >= self.options.prompt_tokens => {
                self.scores.next = Some(score)
            }
            // The next prompt token. A worker that resumes the job repeats earlier ones, which the arm below drops. Position 0 is
            // there from `echo`: the first token has no log-probability.
            Event::Step(Step::Logprobs(score)) if score.position == self.scores.all.len() => {
                self.scores.take(&score)
            }
            Event::Step(Step::Logprobs(_)) => {}
            Event::Loaded => self.is_loading = false,
            Event::Step(Step::Progress { .. }) => self.is_loading = false,
            Event::Step(Step::Token(token)) => return Ok(self.take_token(token)),
            Event::Done(finish) => return self.take_finish(finish).map(Some),
            // The answer was complete; how its job ended no longer matters.
            Event::Failed(_) if self.state == StreamState::Stopped => return Ok(Some(self.stopped())),
            Event::Failed(failure) => return Err(failure),
        }
        Ok(None)
    }

    fn take_token(&mut self, token: u32) -> Option<Update> {
        if self.state != StreamState::Generating {
            return None;
        }
        self.is_loading = false;
        self.completion_tokens += 1;
        if let Some(score) = self.scores.next.take() {
            self.scores.take(&score);
        }
        let chunk = self.decoder.push(token);
        let content = self.read(chunk.text);
        if chunk.stopped || self.reader.as_ref().is_some_and(ToolCallParser::is_over) {
            self.state = StreamState::Stopped;
            self.ticket.cancel();
        }
        (!content.is_empty()).then(|| Update::Delta(self.delta(content)))
    }

    fn take_finish(&mut self, finish: Finish) -> Result<Update, Failure> {
        if self.state == StreamState::Generating {
            // Includes the end token, which had no event.
            self.completion_tokens = finish.usage.completion_tokens;
        }
        let reason = match finish.reason {
            _ if self.state == StreamState::Stopped => FinishReason::Stop,
            job::EndReason::EndToken if self.state == StreamState::Generating => FinishReason::Stop,
            job::EndReason::EndToken => FinishReason::Length,
            job::EndReason::Length => FinishReason::Length,
            // Only this stream cancels its job, unless the server shuts down.
            job::EndReason::Cancelled => return Err(Failure::ShuttingDown),
        };
        Ok(Update::Finished(Box::new(self.end(reason, &finish))))
    }

    /// The end of a choice whose text was complete before its job failed.
    fn stopped(&mut self) -> Update {
        let finish = Finish {
            reason: job::EndReason::Cancelled,
            usage: job::Usage { completion_tokens: self.completion_tokens, ..job::Usage::default() },
            timings: job::Timings::default(),
            memory: MemoryReport::default(),
        };
        Update::Finished(Box::new(self.end(FinishReason::Stop, &finish)))
    }

    /// `finish` is the report of the job, which has generated a few more tokens if a stop string ended the answer.
    fn end(&mut self, reason: FinishReason, finish: &Finish) -> FinishedChoice {
        let rest = match self.state {
            StreamState::Generating => self.decoder.finish(),
            StreamState::PromptOnly | StreamState::Stopped => String::new(),
        };
        let mut rest = self.read(rest);
        if let Some(reader) = &mut self.reader {
            rest.append(&reader.finish());
        }
        let rest = self.delta(rest);
        let AnswerDelta { content, calls } = std::mem::take(&mut self.content);
        // A call that a stop string truncated must not be executed.
        let is_truncated = self.reader.as_ref().is_some_and(ToolCallParser::is_truncated);
        let calls_tools = reason == FinishReason::Stop && !calls.is_empty() && !is_truncated;
        let reason = if calls_tools { FinishReason::ToolCalls } else { reason };
        self.record.iter().for_each(|record| record.completed(reason.as_str()));
        FinishedChoice {
            text: content,
            reason,
            calls,
            scored: std::mem::take(&mut self.scores.all),
            scored_prompt: if self.options.first_scored.is_some() { self.options.prompt_tokens } else { 0 },
            rest,
            usage: job::Usage {
                prompt_tokens: self.options.prompt_tokens,
                completion_tokens: self.completion_tokens,
                cached_tokens: finish.usage.cached_tokens,
            },
            counts_prompt: self.options.counts_prompt,
            is_left_out: false,
            queue_wait: self.queue_wait,
            total: self.options.arrived.elapsed(),
            generated: finish.usage.completion_tokens,
            timings: finish.timings,
            memory: finish.memory,
        }
    }

    /// Separates tool calls from text.
    fn read(&mut self, fresh: String) -> AnswerDelta {
        match &mut self.reader {
            Some(reader) if !fresh.is_empty() => reader.push(&fresh),
            _ => AnswerDelta { content: fresh, calls: Vec::new() },
        }
    }

    fn delta(&mut self, mut fresh: AnswerDelta) -> Delta {
        if let Some(prompt) = self.options.echo.take() {
            fresh.content.insert_str(0, &prompt);
        }
        self.content.append(&fresh);
        Delta { text: fresh.content, calls: fresh.calls, scored: self.scores.unsent() }
    }
}

impl Delta {
    /// Whether nothing is added.
    pub(crate) const fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty() && self.scored.is_empty()
    }
}

impl Scores {
    fn take(&mut self, score: &TokenLogprobs) {
        self.all.push(self.scoring.scored(&self.text, score));
    }

    /// Scores that no delta had.
    fn unsent(&mut self) -> Vec<ScoredToken> {
        let from = std::mem::replace(&mut self.sent, self.all.len());
        self.all[from..].to_vec()
    }
}
