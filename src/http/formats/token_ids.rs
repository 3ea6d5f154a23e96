//! The ids of a choice's tokens, where a request wants them.

use std::sync::Arc;

/// The ids of the tokens of prompt and answer; empty unless they were requested.
#[derive(Debug, Default)]
pub(super) struct TokenIds {
    is_wanted: bool,
    prompt: Option<Arc<[u32]>>,
    answer: Vec<u32>,
    /// How many of the answer have been sent with a delta, and whether the prompt has been.
    sent: usize,
    is_prompt_sent: bool,
}

/// Ids that an event or an answer reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReportedIds {
    /// The prompt's, once for each choice.
    pub(crate) prompt: Option<Arc<[u32]>>,
    /// The answer's, where ids were requested.
    pub(crate) answer: Option<Vec<u32>>,
}

impl TokenIds {
    /// For a choice whose request wants ids if this is the prompt's.
    pub(super) fn new(prompt: Option<Arc<[u32]>>) -> Self {
        Self { is_wanted: prompt.is_some(), prompt, ..Self::default() }
    }

    pub(super) fn push(&mut self, token: u32) {
        if self.is_wanted {
            self.answer.push(token);
        }
    }

    /// Ids that no delta had.
    pub(super) fn unsent(&mut self) -> ReportedIds {
        if !self.is_wanted {
            return ReportedIds::default();
        }
        let from = std::mem::replace(&mut self.sent, self.answer.len());
        let is_first = !std::mem::replace(&mut self.is_prompt_sent, true);
        let prompt = self.prompt.clone().filter(|_| is_first);
        ReportedIds { prompt, answer: Some(self.answer[from..].to_vec()) }
    }

    /// All ids.
    pub(super) fn take(&mut self) -> ReportedIds {
        let answer = std::mem::take(&mut self.answer);
        ReportedIds { prompt: self.prompt.take(), answer: self.is_wanted.then_some(answer) }
    }
}

impl ReportedIds {
    /// Whether nothing is reported.
    pub(crate) fn is_empty(&self) -> bool {
        self.prompt.is_none() && self.answer.as_ref().is_none_or(Vec::is_empty)
    }
}
