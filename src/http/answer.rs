//! An answer being made: the events of a job on one side, whole characters on the other.
//!
//! Streams and whole documents are both made of this, so that they cannot differ.

use std::time::{Duration, Instant};

use super::count::Tally;
use crate::{
    executor::Ticket,
    job::{Event, Failure, Finish, FinishReason, MemoryReport, Timings, Usage},
    text::Decoder,
};

/// An answer that is being generated. Dropping it gives up the job.
pub(super) struct Answer {
    ticket: Ticket,
    decoder: Decoder,
    arrived: Instant,
    queue_wait: Duration,
    prompt_tokens: usize,
    completion_tokens: usize,
    text: String,
    progress: Progress,
    is_loading: bool,
    /// Has what was generated added when this is dropped, complete or not.
    tally: Option<Tally>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(tally) = self.tally.as_ref().filter(|_| self.completion_tokens > 0) {
            tally.add_tokens(self.prompt_tokens, self.completion_tokens);
        }
    }
}

/// How far an answer has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Tokens come.
    Speaking,
    /// A stop string is complete, and the job was told to end.
    Stopped,
}

/// What comes next of an answer.
pub(super) enum Piece {
    /// Its model is being loaded.
    Loading,
    /// Text to append; never empty.
    Text(String),
    /// Nothing follows.
    End(Box<Ending>),
}

/// A complete answer.
pub(super) struct Ending {
    /// All of it.
    pub(super) text: String,
    /// The end of it that no [`Piece::Text`] had, for it could have become a stop string.
    pub(super) unsaid: String,
    pub(super) reason: Reason,
    pub(super) usage: Usage,
    pub(super) queue_wait: Duration,
    pub(super) total: Duration,
    /// Tokens that the slot generated: a few more than `usage` has when a stop string ended the answer.
    pub(super) generated: usize,
    pub(super) timings: Timings,
    pub(super) memory: MemoryReport,
}

/// Why an answer is complete, in the words of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// An end token or a stop string.
    Stop,
    /// The number of tokens asked for.
    Length,
}

impl Reason {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Answer {
    /// `arrived`: when the request had been read, before its prompt was encoded.
    pub(super) fn new(ticket: Ticket, decoder: Decoder, prompt_tokens: usize, arrived: Instant) -> Self {
        Self {
            ticket,
            decoder,
            arrived,
            queue_wait: Duration::ZERO,
            prompt_tokens,
            completion_tokens: 0,
            text: String::new(),
            progress: Progress::Speaking,
            is_loading: false,
            tally: None,
        }
    }

    /// What is generated counts for this request.
    pub(super) fn count_for(self, tally: Option<Tally>) -> Self {
        let mut counted = self;
        counted.tally = tally;
        counted
    }

    /// Whether its model was being loaded when something was last heard.
    pub(super) const fn is_loading(&self) -> bool {
        self.is_loading
    }

    /// The next text, or the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Piece, Failure> {
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
            Event::Started { queue_wait } => self.queue_wait = queue_wait,
            Event::Loading => {
                self.is_loading = true;
                return Ok(Some(Piece::Loading));
            }
            Event::Progress { .. } => self.is_loading = false,
            Event::Token(token) => return Ok(self.take_token(token)),
            Event::Done(finish) => return self.take_finish(finish).map(Some),
            // The answer was complete; how its job ended no longer matters.
            Event::Failed(_) if self.progress == Progress::Stopped => return Ok(Some(self.stopped())),
            Event::Failed(failure) => return Err(failure),
        }
        Ok(None)
    }

    fn take_token(&mut self, token: u32) -> Option<Piece> {
        if self.progress == Progress::Stopped {
            return None;
        }
        self.is_loading = false;
        self.completion_tokens += 1;
        let chunk = self.decoder.push(token);
        if chunk.stopped {
            self.progress = Progress::Stopped;
            self.ticket.cancel();
        }
        self.say(chunk.text)
    }

    fn take_finish(&mut self, finish: Finish) -> Result<Piece, Failure> {
        if self.progress == Progress::Speaking {
            // With the token that ended it, which had no event.
            self.completion_tokens = finish.usage.completion_tokens;
        }
        let reason = match finish.reason {
            _ if self.progress == Progress::Stopped => Reason::Stop,
            FinishReason::EndToken => Reason::Stop,
            FinishReason::Length => Reason::Length,
            // Nobody but this answer cancels its job, unless everything ends.
            FinishReason::Cancelled => return Err(Failure::ShuttingDown),
        };
        Ok(Piece::End(Box::new(self.end(
            reason,
            finish.usage.completion_tokens,
            finish.timings,
            finish.memory,
        ))))
    }

    fn stopped(&mut self) -> Piece {
        let generated = self.completion_tokens;
        Piece::End(Box::new(self.end(Reason::Stop, generated, Timings::default(), MemoryReport::default())))
    }

    fn end(&mut self, reason: Reason, generated: usize, timings: Timings, memory: MemoryReport) -> Ending {
        let unsaid = match self.progress {
            Progress::Speaking => self.decoder.finish(),
            Progress::Stopped => String::new(),
        };
        self.text.push_str(&unsaid);
        Ending {
            text: std::mem::take(&mut self.text),
            unsaid,
            reason,
            usage: Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.completion_tokens },
            queue_wait: self.queue_wait,
            total: self.arrived.elapsed(),
            generated,
            timings,
            memory,
        }
    }

    fn say(&mut self, text: String) -> Option<Piece> {
        self.text.push_str(&text);
        (!text.is_empty()).then_some(Piece::Text(text))
    }
}
