//! Guessing what comes next, and computing several tokens in one pass where the guess is good.
//!
//! A decode step reads every weight for one token. A pass of a few tokens reads them once as well, and on most machines
//! takes little longer. So what is likely to come is fed along with the token that is due, and the logits after each of them
//! tell how far the guess was right ([Leviathan, Kalman and Matias: Fast Inference from Transformers via Speculative
//! Decoding](https://arxiv.org/abs/2211.17192), 2023). There are two who guess:
//!
//! - The text at hand ([prompt lookup decoding](https://github.com/apoorvumang/prompt-lookup-decoding)): where it has said the
//!   same before (an edited paragraph, a quoted field, code), what followed then. That costs nothing.
//! - A draft model, if there is one: a smaller model with the same tokens, which says what it thinks most probable. It follows
//!   the text on a timeline of its own, and what it guessed wrong is rewound.
//!
//! Whoever is expected to make the answer faster guesses, one of the two in each pass.
//!
//! # Why the answer stays what it was
//! A guess decides nothing. At each position the job's own sampler picks from the model's logits, with the chance that
//! belongs to that step; where it picks what was guessed, the logits of the next position are there already, and
//! where it does not, what was fed behind it is forgotten. Hence the same text, for greedy and for sampled answers, with
//! penalties and constraints. (The paper accepts a guess with a probability that keeps the distribution of answers; here
//! each single answer is kept, so that a seed means the same with guesses and without, and a job goes on in the same words
//! on another worker. For that, guesses are the most probable tokens and not drawn.) What is left are the last bits of the
//! logits, which with some kernels depend on how many tokens a pass has, as they do between a prompt that is read at once
//! and one that is read in chunks.
//!
//! # When it is done
//! Only where it is expected to pay: from what the passes of both models took on this machine, and from how often guesses
//! were right lately. For the text at hand ([`CostModel`]) the latter costs nothing to learn, as every token that is said confirms
//! or refutes a guess, whether that was fed or not. A draft model is learned of by trials, on an account that bounds what
//! they may cost ([`worth`]).
//!
//! A draft model that fails ends its guessing and no answer, unless its device is lost, which then is the answer's as well.

mod cost_model;
mod draft_budget;
mod draft_model;
mod prompt_lookup;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use cost_model::{CostModel, DraftPlan};
use draft_model::{DraftContext, DraftModel};
use prompt_lookup::PromptLookup;

use super::{error::EngineError, forward::Forward, timeline::Timeline};
use crate::{job::CacheSalt, units::Bytes};

/// What one model's jobs teach about guessing, and the draft model if there is one; kept from job to job.
pub struct Speculation<D = Timeline> {
    pace: CostModel,
    draft: Option<DraftModel<D>>,
}

impl<D> fmt::Debug for Speculation<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_draft = self.draft.is_some();
        f.debug_struct("Speculation").field("pace", &self.pace).field("has_draft", &has_draft).finish()
    }
}

impl Default for Speculation {
    fn default() -> Self {
        Self { pace: CostModel::default(), draft: None }
    }
}

impl Speculation {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Guesses as much as it may wherever it can, whether that pays or not: to see that answers stay what they are. The text
    /// at hand goes first.
    #[must_use]
    pub fn eager() -> Self {
        Self { pace: CostModel::eager(), draft: None }
    }

    /// What the draft model keeps of texts that are over.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        self.draft.as_ref().map_or(Bytes(0), |draft| draft.model().kept())
    }

    /// Ends a job: the draft model keeps its text as [`Timeline::settle`] does.
    pub fn settle(&mut self, may_be_kept: bool) {
        match &mut self.draft {
            Some(draft) if draft.is_broken() => draft.model_mut().clear_to(Bytes(0)),
            Some(draft) if draft.has_begun() => draft.model_mut().settle(may_be_kept),
            _ => {}
        }
    }

    /// Has the draft model give its memory back, as [`Timeline::clear_to`] does.
    pub fn clear_to(&mut self, keep: Bytes) {
        if let Some(draft) = &mut self.draft {
            draft.model_mut().clear_to(keep);
        }
    }

    /// As [`Timeline::release_captured`], of the draft model.
    pub fn release_captured(&mut self) {
        if let Some(draft) = &mut self.draft {
            draft.model_mut().release_captured();
        }
    }
}

impl<D> Speculation<D> {
    /// Has `draft` guess as well, which must have the same tokens. A few of its passes are run, to know what they take.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub fn with_draft<M: Forward>(self, draft: M) -> Result<Speculation<M>, EngineError> {
        Ok(Speculation { pace: self.pace, draft: Some(DraftModel::new(draft)?) })
    }
}

/// What may follow, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) tokens: Vec<u32>,
    pub(super) by: DraftSource,
}

/// Who guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DraftSource {
    /// What the text at hand said before.
    Text,
    /// The draft model.
    Model,
}

/// What a job allows for.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftLimits<'a> {
    /// Most tokens that one pass gives logits of; with 1 nothing is guessed.
    pub(super) rows: usize,
    /// Token ids of the model.
    pub(super) vocabulary: usize,
    /// Whether what is kept of earlier texts may be used.
    pub(super) may_be_kept: bool,
    /// Only earlier texts of this salt are used.
    pub(super) salt: CacheSalt,
    /// Tokens that end the answer: nothing is guessed behind them.
    pub(super) ends: &'a [u32],
}

/// Guesses the tokens of one job.
#[derive(Debug)]
pub(super) struct Drafter<'a, D> {
    pace: &'a mut CostModel,
    lookup: PromptLookup,
    draft: Option<&'a mut DraftModel<D>>,
    bounds: DraftLimits<'a>,
    /// Tokens of the answer so far.
    said: usize,
}

impl<'a, D: Forward> Drafter<'a, D> {
    /// A drafter for one job.
    pub(super) fn new(learned: &'a mut Speculation<D>, bounds: DraftLimits<'a>) -> Self {
        let mut draft = learned.draft.as_mut();
        if let Some(draft) = &mut draft {
            draft.begin();
        }
        Self { pace: &mut learned.pace, lookup: PromptLookup::default(), draft, bounds, said: 0 }
    }

    /// Takes what the job begins with: its prompt, and what there is of the answer.
    pub(super) fn read(&mut self, prompt: &[u32], answer: &[u32]) {
        if self.bounds.rows > 1 {
            for token in prompt.iter().chain(answer) {
                self.lookup.push(*token);
            }
            self.said = answer.len();
        }
    }

    /// Takes a token that was said.
    pub(super) fn take(&mut self, token: u32) {
        if self.bounds.rows > 1 {
            self.said += 1;
            if let Some(guess) = self.lookup.push(token) {
                self.pace.judge(guess.length, guess.was_right);
            }
        }
    }

    /// What may follow the last token, as long as is expected to pay; `due` tokens are fed before it, and at most `rest` are
    /// wanted, the last of which needs no guess.
    ///
    /// # Errors
    /// [`EngineError::Device`] where the draft model has lost the device.
    pub(super) fn draft(&mut self, due: usize, rest: usize) -> Result<Draft, EngineError> {
        let most = rest.saturating_sub(1).min(self.bounds.rows.saturating_sub(due));
        let nothing = Draft { tokens: Vec::new(), by: DraftSource::Text };
        if most == 0 {
            return Ok(nothing);
        }
        let found = self.lookup.match_length().and_then(|length| {
            if self.pace.is_eager {
                return Some(DraftPlan { tokens: most, speed: f64::INFINITY });
            }
            self.pace.best(due, length, most)
        });
        if let Some(draft) = &mut self.draft {
            let text = DraftContext { tokens: self.lookup.text(), said: self.said, bounds: self.bounds };
            let tokens = draft.guess(text, self.pace, found, (due, most, rest))?;
            if !tokens.is_empty() {
                return Ok(Draft { tokens, by: DraftSource::Model });
            }
        }
        Ok(found
            .map_or(nothing, |plan| Draft { tokens: self.lookup.draft(plan.tokens), by: DraftSource::Text }))
    }

    /// Notes what a pass of so many tokens took.
    pub(super) fn took(&mut self, tokens: usize, time: Duration) {
        if self.bounds.rows > 1 {
            self.pace.passes.took(tokens, time);
            if let Some(draft) = &mut self.draft {
                draft.worth_mut().earn(&self.pace.passes, time);
            }
        }
    }

    /// Notes what became of a guess behind `due` tokens: so many of it were right, and whether the next was wrong.
    pub(super) fn judge(&mut self, guess: &Draft, due: usize, right: usize, was_wrong: bool) {
        // What the text says is judged token by token, guessed or not.
        if let (DraftSource::Model, Some(draft)) = (guess.by, &mut self.draft) {
            draft.worth_mut().judge(&self.pace.passes, due, guess.tokens.len(), (right, was_wrong));
        }
    }
}
