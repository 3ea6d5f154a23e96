//! A smaller model that guesses what a larger one will say.

use std::time::Instant;

use super::{
    DraftLimits,
    cost_model::{CostModel, DraftPlan, PassTimes},
    draft_budget::{DraftBudget, DraftRequest, DraftStep},
};
use crate::{
    device::DeviceErrorKind,
    engine::{error::EngineError, forward::Forward, prefix_cache::common, thread_tuning::least},
};

/// Tokens of the pass that is measured before the first guess.
const MEASURED: usize = 16;

/// A draft model, and how far it has come in the text at hand.
#[derive(Debug)]
pub(super) struct DraftModel<M> {
    model: M,
    worth: DraftBudget,
    /// Tokens of the text that it has read.
    pub(super) read: usize,
    /// What it has read of its own last guess besides.
    ahead: Vec<u32>,
    has_begun: bool,
    /// It does not guess for this job any more, or not for any.
    sits_out: bool,
    is_broken: bool,
    was_warned: bool,
}

/// A text to be gone on with.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftContext<'a> {
    pub(super) tokens: &'a [u32],
    /// Of these, tokens of the answer.
    pub(super) said: usize,
    pub(super) bounds: DraftLimits<'a>,
}

impl<M: Forward> DraftModel<M> {
    /// One that has read nothing. What its passes take is measured.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub(super) fn new(mut model: M) -> Result<Self, EngineError> {
        let wide = MEASURED.min(model.chunk()).min(model.capacity());
        let mut measure = |tokens: usize| {
            let tokens = vec![0; tokens];
            least(|| {
                let began = Instant::now();
                model.forward(&tokens)?;
                let took = began.elapsed();
                model.rewind(0);
                Ok::<_, EngineError>(took)
            })
        };
        let passes = PassTimes::measured(measure(1)?, wide, measure(wide)?);
        Ok(Self {
            model,
            worth: DraftBudget::new(passes),
            read: 0,
            ahead: Vec::new(),
            has_begun: false,
            sits_out: false,
            is_broken: false,
            was_warned: false,
        })
    }

    pub(super) const fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    pub(super) const fn worth_mut(&mut self) -> &mut DraftBudget {
        &mut self.worth
    }

    pub(super) const fn model(&self) -> &M {
        &self.model
    }

    /// Whether it has read anything of the text at hand.
    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    pub(super) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Another text begins.
    pub(super) const fn begin(&mut self) {
        (self.has_begun, self.sits_out) = (false, false);
        self.worth.begin();
    }

    /// Goes on with `text`, of which `due` tokens are fed to the model in any case, by at most `most` tokens; by none where
    /// that is not worth it, or not expected to be faster than `rival`. `rest` tokens are still to come at most.
    ///
    /// # Errors
    /// [`EngineError::Device`] where the device can no longer be used. What else goes wrong ends the guessing, and no answer.
    pub(super) fn guess(
        &mut self,
        text: DraftContext<'_>,
        pace: &CostModel,
        rival: Option<DraftPlan>,
        (due, most, rest): (usize, usize, usize),
    ) -> Result<Vec<u32>, EngineError> {
        // The last guess is not read.
        let most = most.min((self.model.capacity() + 1).saturating_sub(text.tokens.len()));
        if self.is_broken || self.sits_out || most == 0 || (pace.is_eager && rival.is_some()) {
            return Ok(Vec::new());
        }
        let unread = self.catch_up(text);
        let ask = DraftRequest { due, unread, most, said: text.said, rest };
        let next = if pace.is_eager {
            Some(DraftStep { reads: unread, plan: DraftPlan { tokens: most, speed: 0.0 } })
        } else {
            self.worth.next(&pace.passes, ask)
        };
        match next {
            Some(next) if rival.is_none_or(|rival| next.plan.speed > rival.speed) => {
                self.run(text, &pace.passes, next).or_else(|e| self.give_up(e))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Forgets what was guessed wrong; how many tokens are not read then, at least one.
    fn catch_up(&mut self, DraftContext { tokens, bounds, .. }: DraftContext<'_>) -> usize {
        if self.has_begun {
            let right = common(&self.ahead, &tokens[self.read..tokens.len() - 1]);
            self.read += right;
            self.model.rewind(self.read);
        } else {
            let most = if bounds.may_be_kept { tokens.len() } else { 0 };
            self.read = self.model.begin(tokens, most, bounds.salt);
            self.has_begun = true;
        }
        self.ahead.clear();
        tokens.len() - self.read
    }

    /// Reads, and guesses if it then has read everything.
    fn run(
        &mut self,
        text: DraftContext<'_>,
        passes: &PassTimes,
        next: DraftStep,
    ) -> Result<Vec<u32>, EngineError> {
        let DraftStep { reads, plan } = next;
        let (start, end) = (self.read, self.read + reads);
        // Ids that no token has are not in its vocabulary, though they may be in the other one.
        if text.tokens[start..end].iter().any(|token| *token as usize >= self.model.vocabulary()) {
            self.sits_out = true;
            return Ok(Vec::new());
        }
        self.model.reserve(reads)?;
        let mut guess = None;
        for chunk in text.tokens[start..end].chunks(self.model.chunk()) {
            guess = self.pass(chunk, passes, text.bounds.vocabulary)?;
            self.read += chunk.len();
        }
        let mut guesses = Vec::new();
        while let Some(token) = guess.filter(|_| end == text.tokens.len()) {
            guesses.push(token);
            if guesses.len() == plan.tokens || text.bounds.ends.contains(&token) {
                break;
            }
            guess = self.pass(&[token], passes, text.bounds.vocabulary)?;
            self.ahead.push(token);
        }
        Ok(guesses)
    }

    /// Feeds `tokens`; the most probable of the next, if there is any.
    fn pass(
        &mut self,
        tokens: &[u32],
        passes: &PassTimes,
        vocabulary: usize,
    ) -> Result<Option<u32>, EngineError> {
        let began = Instant::now();
        let logits = self.model.forward(tokens)?;
        let known = vocabulary.min(logits.len());
        let token = top(&logits[..known]);
        self.worth.took(passes, tokens.len(), began.elapsed());
        Ok(token)
    }

    /// What went wrong is said once. It has read nothing then.
    fn give_up(&mut self, e: EngineError) -> Result<Vec<u32>, EngineError> {
        if e.fault() == DeviceErrorKind::Poisoned {
            return Err(e);
        }
        if !self.was_warned {
            tracing::warn!("the draft model fails, and answers go on without its guesses: {e}");
        }
        self.was_warned = true;
        // What there is no memory for now there may be for the next text.
        (self.sits_out, self.is_broken) = (true, e.fault() != DeviceErrorKind::OutOfMemory);
        self.model.rewind(0);
        self.read = 0;
        self.ahead.clear();
        Ok(Vec::new())
    }
}

/// The first of the greatest logits; `None` where none is a number.
fn top(logits: &[f32]) -> Option<u32> {
    let numbers = (0..).zip(logits).filter(|(_, logit)| !logit.is_nan());
    numbers.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(token, _)| token)
}
