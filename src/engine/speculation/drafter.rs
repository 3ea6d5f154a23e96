//! Drafts the tokens of one job.

use std::time::Duration;

use super::{
    cost_model::{CostModel, DraftPlan},
    draft_model::{DraftContext, DraftModel},
    learned::Speculation,
    limits::DraftLimits,
    prompt_lookup::PromptLookup,
};
use crate::engine::{error::EngineError, forward::Forward};

/// Drafted tokens and their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Draft {
    pub(in crate::engine) tokens: Vec<u32>,
    pub(in crate::engine) by: DraftSource,
}

/// Where a draft comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum DraftSource {
    /// Prompt lookup.
    Lookup,
    /// The draft model.
    Model,
}

/// Drafts the tokens of one job.
#[derive(Debug)]
pub(in crate::engine) struct Drafter<'a, D> {
    cost_model: &'a mut CostModel,
    lookup: PromptLookup,
    draft: Option<&'a mut DraftModel<D>>,
    bounds: DraftLimits<'a>,
    /// Tokens of the answer so far.
    said: usize,
}

impl<'a, D: Forward> Drafter<'a, D> {
    /// A drafter for one job.
    pub(in crate::engine) fn new(learned: &'a mut Speculation<D>, bounds: DraftLimits<'a>) -> Self {
        let mut draft = learned.draft.as_mut();
        if let Some(draft) = &mut draft {
            draft.begin();
        }
        Self { cost_model: &mut learned.cost_model, lookup: PromptLookup::default(), draft, bounds, said: 0 }
    }

    /// Takes the prompt and the answer so far.
    pub(in crate::engine) fn read(&mut self, prompt: &[u32], answer: &[u32]) {
        if self.bounds.rows > 1 {
            for token in prompt.iter().chain(answer) {
                self.lookup.push(*token);
            }
            self.said = answer.len();
        }
    }

    /// Takes a token of the answer.
    pub(in crate::engine) fn take(&mut self, token: u32) {
        if self.bounds.rows > 1 {
            self.said += 1;
            if let Some(verdict) = self.lookup.push(token) {
                self.cost_model.judge(verdict.length, verdict.was_right);
            }
        }
    }

    /// Drafts what may follow, as far as that pays. `due` tokens are fed before the draft; at most `rest` tokens are wanted, the
    /// last of which needs no draft.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the draft model has lost the device.
    pub(in crate::engine) fn draft(&mut self, due: usize, rest: usize) -> Result<Draft, EngineError> {
        let max = rest.saturating_sub(1).min(self.bounds.rows.saturating_sub(due));
        let nothing = Draft { tokens: Vec::new(), by: DraftSource::Lookup };
        if max == 0 {
            return Ok(nothing);
        }
        let found = self.lookup.match_length().and_then(|length| {
            if self.cost_model.is_eager {
                return Some(DraftPlan { tokens: max, speed: f64::INFINITY });
            }
            self.cost_model.best(due, length, max)
        });
        if let Some(draft) = &mut self.draft {
            let text = DraftContext { tokens: self.lookup.text(), said: self.said, bounds: self.bounds };
            let tokens = draft.draft(text, self.cost_model, found, (due, max, rest))?;
            if !tokens.is_empty() {
                return Ok(Draft { tokens, by: DraftSource::Model });
            }
        }
        Ok(found.map_or(nothing, |plan| Draft {
            tokens: self.lookup.draft(plan.tokens),
            by: DraftSource::Lookup,
        }))
    }

    /// Notes the time of a pass of `tokens` tokens.
    pub(in crate::engine) fn took(&mut self, tokens: usize, time: Duration) {
        if self.bounds.rows > 1 {
            self.cost_model.passes.took(tokens, time);
            if let Some(draft) = &mut self.draft {
                draft.budget_mut().earn(&self.cost_model.passes, time);
            }
        }
    }

    /// Notes the result of a draft after `due` tokens: how many tokens were right, and whether the next one was wrong.
    pub(in crate::engine) fn judge(&mut self, proposal: &Draft, due: usize, right: usize, was_wrong: bool) {
        // Prompt lookup is judged token by token, whether it drafted or not.
        if let (DraftSource::Model, Some(draft)) = (proposal.by, &mut self.draft) {
            draft.budget_mut().judge(&self.cost_model.passes, due, proposal.tokens.len(), (right, was_wrong));
        }
    }
}
