//! An answer being made: the events of a job on one side, whole characters on the other.
//!
//! Streams and whole documents are both made of this, so that they cannot differ.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::logprobs::{Scored, Scoring};
use crate::{
    executor::Ticket,
    http::middleware::access_log::RequestRecord,
    job::{Event, Failure, Finish, FinishReason, MemoryReport, Score, Timings, Usage},
    text::{Call, CallReader, Detokenizer, Reading, Text, Told},
};

/// An answer that is being generated. Dropping it gives up the job.
pub(crate) struct Answer {
    ticket: Ticket,
    decoder: Detokenizer,
    arrived: Instant,
    queue_wait: Duration,
    /// When it got the slot.
    began: Instant,
    prompt_tokens: usize,
    completion_tokens: usize,
    speech: Speech,
    tells_progress: bool,
    is_loading: bool,
    /// What the next text begins with: the prompt where it is echoed.
    lead: String,
    scores: Scores,
    /// Has what was generated added when this is dropped, complete or not.
    tally: Option<RequestRecord>,
    /// Where tools may be called.
    reader: Option<CallReader>,
    /// What was told of it.
    told: Told,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(tally) = self.tally.as_ref().filter(|_| self.completion_tokens > 0) {
            tally.add_tokens(self.prompt_tokens, self.completion_tokens);
        }
    }
}

/// What the model thought of the tokens so far.
struct Scores {
    text: Arc<Text>,
    scoring: Scoring,
    /// Of the token that comes next.
    next: Option<Score>,
    all: Vec<Scored>,
    /// So many of them have left with a piece of text.
    said: usize,
}

/// How far an answer has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// Tokens come.
    Speaking,
    /// A stop string is complete, and the job was told to end.
    Stopped,
}

/// What comes next of an answer.
pub(crate) enum Piece {
    /// Its model is being loaded.
    Loading,
    /// More of the prompt is read; only where that was asked for.
    Progress(Progress),
    /// Text to append.
    Said(Said),
    /// Nothing follows.
    End(Box<Ending>),
}

/// What is read of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Tokens read.
    pub(crate) done: usize,
    /// Tokens in all.
    pub(crate) total: usize,
    /// Of those read, how many are kept from an earlier request.
    pub(crate) cached: usize,
    /// Time since the job got the slot.
    pub(crate) since: Duration,
}

/// What an answer goes on with.
#[derive(Debug)]
pub(crate) struct Said {
    /// Empty where only calls go on, or at the end of an answer.
    pub(crate) text: String,
    /// Calls of tools that begin or go on.
    pub(crate) calls: Vec<Call>,
    /// The tokens that were told since, where their scores were asked for. Text that is held back leaves after its tokens.
    pub(crate) scored: Vec<Scored>,
}

/// A complete answer.
pub(crate) struct Ending {
    /// All of it, but for its calls.
    pub(crate) text: String,
    /// Tools that it calls.
    pub(crate) calls: Vec<Call>,
    /// All of its tokens, where their scores were asked for.
    pub(crate) scored: Vec<Scored>,
    /// The end of it that no [`Piece::Said`] had, for it could have become a stop string.
    pub(crate) unsaid: Said,
    pub(crate) reason: Reason,
    pub(crate) usage: Usage,
    pub(crate) queue_wait: Duration,
    pub(crate) total: Duration,
    /// Tokens that the slot generated: a few more than `usage` has when a stop string ended the answer.
    pub(crate) generated: usize,
    pub(crate) timings: Timings,
    pub(crate) memory: MemoryReport,
}

impl Ending {
    /// About as many bytes as it has as JSON, for judging what it costs to write it.
    pub(crate) fn json_bytes(&self) -> usize {
        const SCORE: usize = 128;
        let calls: usize = self.calls.iter().map(|call| call.arguments.len()).sum();
        let scores: usize = self.scored.iter().map(Scored::alternatives).sum();
        self.text.len() + calls + (self.scored.len() + scores) * SCORE
    }
}

/// Why an answer is complete, in the words of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// An end token or a stop string; where there are calls, the last one is cut.
    Stop,
    /// The number of tokens asked for.
    Length,
    /// It is complete, and calls tools with whole arguments.
    ToolCalls,
}

impl Reason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

impl Ending {
    /// Whether its last part ended before it was complete.
    pub(crate) fn is_cut(&self) -> bool {
        self.reason == Reason::Length || (self.reason == Reason::Stop && !self.calls.is_empty())
    }
}

impl Answer {
    /// `arrived`: when the request had been read, before its prompt was encoded.
    pub(crate) fn new(
        ticket: Ticket,
        text: Arc<Text>,
        decoder: Detokenizer,
        prompt_tokens: usize,
        arrived: Instant,
    ) -> Self {
        let scores = Scores { text, scoring: Scoring::default(), next: None, all: Vec::new(), said: 0 };
        Self {
            ticket,
            decoder,
            arrived,
            queue_wait: Duration::ZERO,
            began: arrived,
            prompt_tokens,
            completion_tokens: 0,
            speech: Speech::Speaking,
            tells_progress: false,
            is_loading: false,
            tally: None,
            lead: String::new(),
            scores,
            reader: None,
            told: Told::default(),
        }
    }

    /// What is generated counts for this request.
    pub(crate) fn count_for(&mut self, tally: Option<RequestRecord>) {
        self.tally = tally;
    }

    /// Whether its model was being loaded when something was last heard.
    pub(crate) const fn is_loading(&self) -> bool {
        self.is_loading
    }

    /// Lets it call tools.
    pub(crate) fn with_calls(mut self, reading: Reading) -> Self {
        self.reader = Some(CallReader::new(reading));
        self
    }

    /// Lets it say what is read of the prompt.
    pub(crate) fn with_progress(mut self) -> Self {
        self.tells_progress = true;
        self
    }

    /// Lets the answer begin with its prompt: the text, and the first token where the others' scores were asked for.
    pub(crate) fn echo(mut self, prompt: String, first_scored: Option<u32>) -> Self {
        self.lead = prompt;
        let Scores { text, scoring, all, .. } = &mut self.scores;
        all.extend(first_scored.map(|token| scoring.unscored(text, token)));
        self
    }

    /// The next text, or the end. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Piece, Failure> {
        loop {
            // The sender is dropped without a last word only when the executor's runtime ends.
            let event = self.ticket.next().await.ok_or(Failure::ShuttingDown)?;
            if let Some(piece) = self.take(event)? {
                return Ok(piece);
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<Option<Piece>, Failure> {
        match event {
            Event::Started { queue_wait } => {
                (self.queue_wait, self.began) = (queue_wait, Instant::now());
            }
            Event::Loading => {
                self.is_loading = true;
                return Ok(Some(Piece::Loading));
            }
            Event::Progress { done, total, cached } if self.tells_progress => {
                self.is_loading = false;
                let since = self.began.elapsed();
                return Ok(Some(Piece::Progress(Progress { done, total, cached, since })));
            }
            Event::Score(score) if score.position >= self.prompt_tokens => self.scores.next = Some(score),
            // A worker that took over says those of the prompt again.
            Event::Score(score) if score.position == self.scores.all.len() => self.scores.take(&score),
            Event::Score(_) => {}
            Event::Loaded => self.is_loading = false,
            Event::Progress { .. } => self.is_loading = false,
            Event::Token(token) => return Ok(self.take_token(token)),
            Event::Done(finish) => return self.take_finish(finish).map(Some),
            // The answer was complete; how its job ended no longer matters.
            Event::Failed(_) if self.speech == Speech::Stopped => return Ok(Some(self.stopped())),
            Event::Failed(failure) => return Err(failure),
        }
        Ok(None)
    }

    fn take_token(&mut self, token: u32) -> Option<Piece> {
        if self.speech == Speech::Stopped {
            return None;
        }
        self.is_loading = false;
        self.completion_tokens += 1;
        if let Some(score) = self.scores.next.take() {
            self.scores.take(&score);
        }
        let chunk = self.decoder.push(token);
        let told = self.read(chunk.text);
        if chunk.stopped || self.reader.as_ref().is_some_and(CallReader::is_over) {
            self.speech = Speech::Stopped;
            self.ticket.cancel();
        }
        (!told.is_empty()).then(|| Piece::Said(self.said(told)))
    }

    fn take_finish(&mut self, finish: Finish) -> Result<Piece, Failure> {
        if self.speech == Speech::Speaking {
            // With the token that ended it, which had no event.
            self.completion_tokens = finish.usage.completion_tokens;
        }
        let reason = match finish.reason {
            _ if self.speech == Speech::Stopped => Reason::Stop,
            FinishReason::EndToken => Reason::Stop,
            FinishReason::Length => Reason::Length,
            // Nobody but this answer cancels its job, unless everything ends.
            FinishReason::Cancelled => return Err(Failure::ShuttingDown),
        };
        Ok(Piece::End(Box::new(self.end(reason, &finish))))
    }

    fn stopped(&mut self) -> Piece {
        let finish = Finish {
            reason: FinishReason::Cancelled,
            usage: Usage { completion_tokens: self.completion_tokens, ..Usage::default() },
            timings: Timings::default(),
            memory: MemoryReport::default(),
        };
        Piece::End(Box::new(self.end(Reason::Stop, &finish)))
    }

    /// `finish`: what its job says. A job that was stopped for a stop string has generated more.
    fn end(&mut self, reason: Reason, finish: &Finish) -> Ending {
        let rest = match self.speech {
            Speech::Speaking => self.decoder.finish(),
            Speech::Stopped => String::new(),
        };
        let mut rest = self.read(rest);
        if let Some(reader) = &mut self.reader {
            rest.append(&reader.finish());
        }
        let unsaid = self.said(rest);
        let Told { content, calls } = std::mem::take(&mut self.told);
        // A call that a stop string cut is not to be carried out.
        let is_cut = self.reader.as_ref().is_some_and(CallReader::is_cut);
        let calls_tools = reason == Reason::Stop && !calls.is_empty() && !is_cut;
        let reason = if calls_tools { Reason::ToolCalls } else { reason };
        self.tally.iter().for_each(|tally| tally.completed(reason.as_str()));
        Ending {
            text: content,
            reason,
            calls,
            scored: std::mem::take(&mut self.scores.all),
            unsaid,
            usage: Usage {
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                cached_tokens: finish.usage.cached_tokens,
            },
            queue_wait: self.queue_wait,
            total: self.arrived.elapsed(),
            generated: finish.usage.completion_tokens,
            timings: finish.timings,
            memory: finish.memory,
        }
    }

    /// Takes the calls out of a text.
    fn read(&mut self, fresh: String) -> Told {
        match &mut self.reader {
            Some(reader) if !fresh.is_empty() => reader.push(&fresh),
            _ => Told { content: fresh, calls: Vec::new() },
        }
    }

    fn said(&mut self, mut fresh: Told) -> Said {
        if !self.lead.is_empty() {
            fresh.content.insert_str(0, &std::mem::take(&mut self.lead));
        }
        self.told.append(&fresh);
        Said { text: fresh.content, calls: fresh.calls, scored: self.scores.unsaid() }
    }
}

impl Said {
    /// Whether it adds nothing.
    pub(crate) const fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty() && self.scored.is_empty()
    }
}

impl Scores {
    fn take(&mut self, score: &Score) {
        self.all.push(self.scoring.scored(&self.text, score));
    }

    /// Those that no piece had.
    fn unsaid(&mut self) -> Vec<Scored> {
        let from = std::mem::replace(&mut self.said, self.all.len());
        self.all[from..].to_vec()
    }
}
