//! One choice while it is generated: events of its job come in, text and tool calls go out.
//!
//! Streamed and complete answers are both made from this, so they cannot differ.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    logprobs::{PromptLogprobs, ScoredToken, Scoring},
    token_ids::{ReportedIds, TokenIds},
};
use crate::{
    executor::{Caller, Deadlines, Executor, SubmitError, Terms, Ticket},
    http::{middleware::RequestRecord, request::TokenDetails},
    job::{self, Event, Failure, Finish, Job, MemoryReport, Step, TokenLogprobs},
    text::{AnswerDelta, AnswerParser, AnswerParserOptions, Call, Detokenizer, Text},
};

/// How the answer is made from the tokens of its job.
#[derive(Clone, Debug)]
pub(crate) struct AnswerOptions {
    /// How the text is separated into reasoning, content and tool calls.
    pub(crate) parser: AnswerParserOptions,
    /// The answer has no reasoning, whatever the model writes.
    pub(crate) hides_reasoning: bool,
    /// Most tokens of reasoning.
    pub(crate) budget: Option<usize>,
    /// Constrained output is decoded without removing anything.
    pub(crate) is_verbatim: bool,
    /// Whether prefill progress is reported.
    pub(crate) wants_progress: bool,
    /// The text of the prompt where it is echoed, until the first text is sent.
    pub(crate) echo: Option<String>,
    /// What the answer tells about tokens.
    pub(crate) details: TokenDetails,
    /// The first token of the prompt, if the answer begins with the prompt and its log-probabilities.
    pub(crate) first_scored: Option<u32>,
    /// The ids of the prompt, if the answer has them.
    pub(crate) prompt_ids: Option<Arc<[u32]>>,
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
    ids: TokenIds,
    /// Receives the token counts when this is dropped, complete or not.
    pub(crate) record: Option<RequestRecord>,
    parser: AnswerParser,
    /// All text and calls so far.
    content: AnswerDelta,
    /// Tokens of the reasoning.
    reasoning_tokens: usize,
    /// How to continue after the reasoning has been ended; `None` without a budget, and once it was used.
    resume: Option<Resume>,
    /// The report of the job before, if the reasoning was ended.
    before: Option<Finish>,
    /// Tokens of the answer when the present job began.
    completion_before: usize,
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
    /// Those of the prompt, beginning with its first token, which has none; `None` if they were not requested.
    of_prompt: Option<Vec<Option<PromptLogprobs>>>,
    /// Alternatives to each token of the prompt.
    prompt_top: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Generating,
    /// The answer has only its prompt; tokens are dropped.
    PromptOnly,
    /// A stop string is complete, and the job was cancelled.
    Stopped,
    /// The reasoning has used its budget, and the job was cancelled, to continue after the end of the reasoning.
    EndingReasoning,
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

impl CompletionStream {
    /// `resume` is for answers whose reasoning has a budget.
    pub(crate) fn new(
        ticket: Ticket,
        text: Arc<Text>,
        mut options: AnswerOptions,
        resume: Option<Resume>,
    ) -> Self {
        let mut decoder = text.detokenizer(Vec::new());
        if options.is_verbatim {
            decoder = decoder.verbatim();
        }
        let parser = std::mem::take(&mut options.parser);
        decoder = parser.special_texts().fold(decoder, Detokenizer::with_special);
        let mut scoring = Scoring::new(options.details);
        let all = options.first_scored.map(|token| scoring.unscored(&text, token)).into_iter().collect();
        Self {
            ticket,
            decoder,
            queue_wait: Duration::ZERO,
            began: options.arrived,
            completion_tokens: 0,
            state: if options.prompt_only { StreamState::PromptOnly } else { StreamState::Generating },
            is_loading: false,
            scores: Scores {
                text,
                scoring,
                next: None,
                all,
                sent: 0,
                of_prompt: options.details.prompt_top.map(|_| vec![None]),
                prompt_top: options.details.prompt_top.unwrap_or(0),
            },
            ids: TokenIds::new(options.prompt_ids.take()),
            record: None,
            parser: AnswerParser::new(parser),
            content: AnswerDelta::default(),
            reasoning_tokens: 0,
            resume,
            before: None,
            completion_before: 0,
            options,
        }
    }

    /// Tokens of the prompt.
    pub(crate) const fn prompt_tokens(&self) -> usize {
        self.options.prompt_tokens
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
            Event::Step(Step::Logprobs(score)) => self.scores.take_of_prompt(&score),
            // Only jobs for embeddings have it.
            Event::Step(Step::Embedding(_)) => {}
            Event::Loaded => self.is_loading = false,
            Event::Step(Step::Progress { .. }) => self.is_loading = false,
            Event::Step(Step::Token(token)) => return Ok(self.take_token(token)),
            Event::Done(finish) if self.state == StreamState::EndingReasoning => {
                return self.continue_after(finish);
            }
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
        let content = self.read(token);
        if self.parser.is_over() {
            self.state = StreamState::Stopped;
            self.ticket.cancel();
        } else if self.exceeds_budget() {
            self.state = StreamState::EndingReasoning;
            self.ticket.cancel();
        }
        (!content.is_empty())
            .then(|| self.delta(content))
            .filter(|delta| !delta.is_empty())
            .map(Update::Delta)
    }

    /// Whether the reasoning must end.
    fn exceeds_budget(&self) -> bool {
        let is_used_up = self.options.budget.is_some_and(|max| self.reasoning_tokens >= max);
        is_used_up && self.resume.is_some() && self.parser.is_reasoning()
    }

    /// The text that a token adds.
    fn read(&mut self, token: u32) -> AnswerDelta {
        if let Some(resume) = &mut self.resume {
            resume.answer.push(token);
        }
        self.ids.push(token);
        let text = self.decoder.push(token).text;
        let content = self.parser.push(&text);
        self.reasoning_tokens += usize::from(self.parser.is_reasoning());
        content
    }

    /// Ends the reasoning with the text that the model was trained on, and submits a job that continues after it.
    fn continue_after(&mut self, finish: Finish) -> Result<Option<Update>, Failure> {
        let Some(resume) = self.resume.take() else { return self.take_finish(finish).map(Some) };
        self.state = StreamState::Generating;
        let end = self.parser.end_of_reasoning().unwrap_or_default();
        let forced = self.scores.text.encode_bare(end).unwrap_or_default();
        let left = resume.job.max_new_tokens.saturating_sub(self.completion_tokens + forced.len());
        if forced.is_empty() || left == 0 {
            return self.take_finish(Finish { reason: job::EndReason::Length, ..finish }).map(Some);
        }
        let mut added = AnswerDelta::default();
        for token in &forced {
            added.append(&self.read(*token));
        }
        self.completion_tokens += forced.len();
        self.ticket = resume.submit(&forced, left, self.options.arrived)?;
        self.before = Some(finish);
        self.completion_before = self.completion_tokens;
        Ok(Some(Update::Delta(self.delta(added))))
    }

    fn take_finish(&mut self, finish: Finish) -> Result<Update, Failure> {
        if self.state == StreamState::Generating {
            // Includes the end token, which had no event.
            self.completion_tokens = self.completion_before + finish.usage.completion_tokens;
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
            StreamState::Generating | StreamState::EndingReasoning => self.decoder.finish(),
            StreamState::PromptOnly | StreamState::Stopped => String::new(),
        };
        let mut rest = self.parser.push(&rest);
        rest.append(&self.parser.finish());
        let rest = self.delta(rest);
        let AnswerDelta { reasoning, content, calls } = std::mem::take(&mut self.content);
        // A call that is not complete must not be executed.
        let is_truncated = self.parser.is_truncated();
        let calls_tools = reason == FinishReason::Stop && !calls.is_empty() && !is_truncated;
        let reason = if calls_tools { FinishReason::ToolCalls } else { reason };
        self.record.iter().for_each(|record| record.completed(reason.as_str()));
        let report = Report::of(self.before.as_ref(), finish);
        FinishedChoice {
            reasoning,
            reasoning_tokens: self.reasoning_tokens,
            stop_string: self.parser.stop_string().map(str::to_owned),
            text: content,
            reason,
            calls,
            scored: std::mem::take(&mut self.scores.all),
            scored_prompt: if self.options.first_scored.is_some() { self.options.prompt_tokens } else { 0 },
            prompt_logprobs: self.scores.of_prompt.take(),
            ids: self.ids.take(),
            rest,
            usage: job::Usage {
                prompt_tokens: self.options.prompt_tokens,
                completion_tokens: self.completion_tokens,
                cached_tokens: report.cached_tokens,
            },
            counts_prompt: self.options.counts_prompt,
            is_left_out: false,
            queue_wait: self.queue_wait,
            total: self.options.arrived.elapsed(),
            generated: report.generated,
            timings: report.timings,
            memory: finish.memory,
        }
    }

    fn delta(&mut self, mut fresh: AnswerDelta) -> Delta {
        if self.options.hides_reasoning {
            fresh.reasoning.clear();
        }
        if let Some(prompt) = self.options.echo.take() {
            fresh.content.insert_str(0, &prompt);
        }
        self.content.append(&fresh);
        Delta {
            reasoning: fresh.reasoning,
            text: fresh.content,
            calls: fresh.calls,
            scored: self.scores.unsent(),
            ids: self.ids.unsent(),
            usage: job::Usage {
                prompt_tokens: self.options.prompt_tokens,
                completion_tokens: self.completion_tokens,
                cached_tokens: 0,
            },
        }
    }
}

/// What is needed to continue an answer as another job.
pub(crate) struct Resume {
    executor: Executor,
    caller: Caller,
    job: Job,
    terms: Terms,
    /// The tokens so far.
    answer: Vec<u32>,
}

impl Resume {
    /// For an answer of `job`.
    pub(crate) fn new(executor: &Executor, caller: &Caller, job: Job, terms: Terms) -> Self {
        let (executor, caller) = (executor.clone(), caller.clone());
        Self { executor, caller, job, terms, answer: Vec::new() }
    }

    /// Submits a job for at most `max_new` tokens after the answer so far and `forced`. The prompt is in the prefix
    /// cache, so only the end of the answer is computed again.
    fn submit(self, forced: &[u32], max_new: usize, arrived: Instant) -> Result<Ticket, Failure> {
        let Self { executor, caller, job, terms, answer } = self;
        let id = executor.new_id();
        let prompt = [job.prompt.as_slice(), &answer, forced].concat();
        let total = terms.deadlines.total.saturating_sub(arrived.elapsed());
        // It waited once.
        let deadlines = Deadlines { queue: total, total };
        let job = Job { id, prompt, max_new_tokens: max_new, ..job };
        executor.submit_for(caller, job, Terms { deadlines, ..terms }).map_err(|error| match error {
            SubmitError::Stopped => Failure::ShuttingDown,
            SubmitError::Busy { .. } => Failure::QueueTimeout { waited: arrived.elapsed() },
        })
    }
}

/// The reports of the jobs of one answer together.
struct Report {
    timings: job::Timings,
    generated: usize,
    cached_tokens: usize,
}

impl Report {
    fn of(before: Option<&Finish>, last: &Finish) -> Self {
        let (mut timings, mut generated) = (last.timings, last.usage.completion_tokens);
        let cached_tokens = before.unwrap_or(last).usage.cached_tokens;
        if let Some(before) = before {
            generated += before.usage.completion_tokens;
            timings.prefill += before.timings.prefill;
            timings.decode += before.timings.decode;
            timings.resumed += before.timings.resumed;
        }
        Self { timings, generated, cached_tokens }
    }
}

impl Delta {
    /// Whether nothing is added.
    pub(crate) fn is_empty(&self) -> bool {
        let has_text = !(self.reasoning.is_empty() && self.text.is_empty() && self.calls.is_empty());
        !has_text && self.scored.is_empty() && self.ids.is_empty()
    }
}

impl Scores {
    fn take(&mut self, score: &TokenLogprobs) {
        self.all.push(self.scoring.scored(&self.text, score));
    }

    /// Takes the score of the next token of the prompt. A worker that resumes the job repeats earlier ones, which are dropped.
    /// Position 0 is there from the beginning: the first token has no log-probability.
    fn take_of_prompt(&mut self, score: &TokenLogprobs) {
        if let Some(of_prompt) = &mut self.of_prompt
            && score.position == of_prompt.len()
        {
            of_prompt.push(Some(PromptLogprobs::new(&self.text, score, self.prompt_top)));
        }
        if score.position == self.all.len() {
            self.take(score);
        }
    }

    /// Scores that no delta had.
    fn unsent(&mut self) -> Vec<ScoredToken> {
        let from = std::mem::replace(&mut self.sent, self.all.len());
        self.all[from..].to_vec()
    }
}
