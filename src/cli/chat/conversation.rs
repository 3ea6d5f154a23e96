//! The turns of a chat, as far as they fit the model's context.

use crate::text::{Message, Text, TextError};

/// A prompt and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turn {
    asked: String,
    answered: String,
}

/// The turns so far.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    /// The system message.
    pub(super) system: Option<String>,
    turns: Vec<Turn>,
}

/// The next prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextPrompt {
    /// Token ids.
    pub(super) prompt: Vec<u32>,
    /// Number of old turns that were dropped.
    pub(super) left_out: usize,
}

impl Conversation {
    /// An empty conversation.
    pub(super) const fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// Encodes the conversation followed by `asked` in at most `max` tokens, dropping the oldest turns for good until it fits.
    /// A single prompt may be longer.
    ///
    /// # Errors
    /// When the model's template rejects the messages, or the tokenizer fails.
    pub(super) fn next(&self, text: &Text, asked: &str, max: usize) -> Result<NextPrompt, TextError> {
        let mut left_out = 0;
        loop {
            let prompt = text.encode_chat(&self.messages(asked, left_out).into())?;
            if prompt.len() <= max || left_out == self.turns.len() {
                return Ok(NextPrompt { prompt, left_out });
            }
            left_out += 1;
        }
    }

    fn messages(&self, asked: &str, left_out: usize) -> Vec<Message> {
        let mut messages: Vec<_> = self.system.iter().map(|system| Message::new("system", system)).collect();
        for Turn { asked, answered } in &self.turns[left_out..] {
            messages.extend([Message::new("user", asked), Message::new("assistant", answered)]);
        }
        messages.push(Message::new("user", asked));
        messages
    }

    /// Removes the first turns.
    pub(super) fn leave_out(&mut self, turns: usize) {
        self.turns.drain(..turns);
    }

    /// Adds a turn.
    pub(super) fn keep(&mut self, asked: String, answered: String) {
        self.turns.push(Turn { asked, answered });
    }

    /// Removes all turns, but not the system message. Returns their number.
    pub(super) fn clear(&mut self) -> usize {
        self.turns.drain(..).count()
    }

    /// The number of turns.
    pub(super) const fn len(&self) -> usize {
        self.turns.len()
    }
}
