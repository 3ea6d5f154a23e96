//! What was said so far, as far as it fits the model's context.

use crate::text::{Message, Text, TextError};

/// A prompt and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Turn {
    asked: String,
    answered: String,
}

/// A conversation.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    /// What is said before all else.
    pub(super) system: Option<String>,
    turns: Vec<Turn>,
}

/// What the model reads next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextPrompt {
    /// Token ids.
    pub(super) prompt: Vec<u32>,
    /// Turns that are no longer in it.
    pub(super) left_out: usize,
}

impl Conversation {
    /// Nothing said yet but the system message.
    pub(super) const fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// The conversation with `asked` at its end, in `most` tokens. The oldest turns leave for good until it fits; a single
    /// prompt may be longer.
    ///
    /// # Errors
    /// When the model's template refuses the messages, or the tokenizer fails.
    pub(super) fn next(&mut self, text: &Text, asked: &str, most: usize) -> Result<NextPrompt, TextError> {
        let mut left_out = 0;
        loop {
            let prompt = text.encode_chat(&self.messages(asked, left_out).into())?;
            if prompt.len() <= most || left_out == self.turns.len() {
                self.turns.drain(..left_out);
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

    /// Keeps a turn.
    pub(super) fn keep(&mut self, asked: String, answered: String) {
        self.turns.push(Turn { asked, answered });
    }

    /// Forgets all turns, and not the system message; how many there were.
    pub(super) fn clear(&mut self) -> usize {
        self.turns.drain(..).count()
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.turns.len()
    }
}
