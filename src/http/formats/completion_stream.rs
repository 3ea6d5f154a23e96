//! One choice while it is generated: events of its job come in, text and tool calls go out.
//!
//! Streamed and complete answers are both made from this, so they cannot differ.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    logprobs::{PromptLogprobs, ScoredToken, Scoring},
    token_ids::TokenIds,
    update::{Delta, FinishReason, FinishedChoice, Progress, Update},
};
use crate::{
    executor::{Caller, Deadlines, Executor, SubmitError, Terms, Ticket},
    http::{middleware::RequestRecord, request::TokenDetails},
    job::{self, Event, Failure, Finish, Job, MemoryReport, Step, TokenLogprobs},
    text::{AnswerDelta, AnswerParser, AnswerParserOptions, Detokenizer, Text},
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
