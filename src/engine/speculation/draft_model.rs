//! A smaller model that drafts tokens for a larger one.

use std::time::Instant;

use super::{
    cost_model::{CostModel, DraftPlan, PassTimes},
    draft_budget::{DraftBudget, DraftRequest, DraftStep},
    limits::DraftLimits,
};
use crate::{
    device::DeviceErrorKind,
    engine::{error::EngineError, forward::Forward, prefix_cache::common, thread_tuning::shortest},
};

/// Tokens of the longer pass that is measured before the first draft.
const MEASURED_TOKENS: usize = 16;

/// A draft model, and its position in the current sequence.
#[derive(Debug)]
pub(super) struct DraftModel<M> {
    model: M,
    budget: DraftBudget,
    /// Tokens of the sequence that it has read.
    pub(super) read: usize,
    /// Tokens of its own last draft that it has read after those.
    ahead: Vec<u32>,
    has_begun: bool,
    /// It does not draft for this job any more.
    sits_out: bool,
    is_broken: bool,
    was_warned: bool,
}

/// The sequence to continue.
#[derive(Clone, Copy, Debug)]
pub(super) struct DraftContext<'a> {
    pub(super) tokens: &'a [u32],
    /// How many of them belong to the answer.
    pub(super) said: usize,
    pub(super) bounds: DraftLimits<'a>,
}

impl<M: Forward> DraftModel<M> {
    /// Measures the pass times of `model`.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub(super) fn new(mut model: M) -> Result<Self, EngineError> {
        let wide = MEASURED_TOKENS.min(model.chunk()).min(model.capacity());
        let mut measure = |tokens: usize| {
            let tokens = vec![0; tokens];
            shortest(|| {
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
            budget: DraftBudget::new(passes),
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

    pub(super) const fn budget_mut(&mut self) -> &mut DraftBudget {
        &mut self.budget
    }

    pub(super) const fn model(&self) -> &M {
        &self.model
    }

    /// Whether it has read a part of the current sequence.
    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    pub(super) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Begins a new sequence.
    pub(super) const fn begin(&mut self) {
        (self.has_begun, self.sits_out) = (false, false);
        self.budget.begin();
    }

    /// Drafts at most `max` tokens after `text`, of which `due` tokens are fed to the main model in any case. Drafts nothing if
    /// that does not pay, or if it is not expected to be faster than `rival`. At most `rest` tokens follow.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the device can no longer be used. Any other error ends drafting but not the answer.
    pub(super) fn draft(
        &mut self,
        text: DraftContext<'_>,
        cost_model: &CostModel,
        rival: Option<DraftPlan>,
        (due, max, rest): (usize, usize, usize),
    ) -> Result<Vec<u32>, EngineError> {
        // The last drafted token is not read.
        let max = max.min((self.model.capacity() + 1).saturating_sub(text.tokens.len()));
        if self.is_broken || self.sits_out || max == 0 || (cost_model.is_eager && rival.is_some()) {
            return Ok(Vec::new());
        }
        let unread = self.catch_up(text);
        let ask = DraftRequest { due, unread, max, said: text.said, rest };
        let next = if cost_model.is_eager {
            Some(DraftStep { reads: unread, plan: DraftPlan { tokens: max, speed: 0.0 } })
        } else {
            self.budget.next(&cost_model.passes, ask)
        };
        match next {
            Some(next) if rival.is_none_or(|rival| next.plan.speed > rival.speed) => {
                self.run(text, &cost_model.passes, next).or_else(|e| self.give_up(e))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Rewinds to the last right token; returns how many tokens are unread, at least one.
    fn catch_up(&mut self, DraftContext { tokens, bounds, .. }: DraftContext<'_>) -> usize {
        if self.has_begun {
            let right = common(&self.ahead, &tokens[self.read..tokens.len() - 1]);
            self.read += right;
            self.model.rewind(self.read);
        } else {
            let max = if bounds.may_be_kept { tokens.len() } else { 0 };
            self.read = self.model.begin(tokens, max, bounds.salt.into());
            self.has_begun = true;
        }
        self.ahead.clear();
        tokens.len() - self.read
    }

    /// Reads, and drafts if nothing is unread then.
    fn run(
        &mut self,
        text: DraftContext<'_>,
        passes: &PassTimes,
        next: DraftStep,
    ) -> Result<Vec<u32>, EngineError> {
        let DraftStep { reads, plan } = next;
        let (start, end) = (self.read, self.read + reads);
        // An id without a token may be missing in this model's vocabulary although the other one has it.
        if text.tokens[start..end].iter().any(|token| *token as usize >= self.model.vocabulary()) {
            self.sits_out = true;
            return Ok(Vec::new());
        }
        self.model.reserve(reads)?;
        let mut next = None;
        for chunk in text.tokens[start..end].chunks(self.model.chunk()) {
            next = self.pass(chunk, passes, text.bounds.vocabulary)?;
            self.read += chunk.len();
        }
        let mut drafted = Vec::new();
        while let Some(token) = next.filter(|_| end == text.tokens.len()) {
            drafted.push(token);
            if drafted.len() == plan.tokens || text.bounds.ends.contains(&token) {
                break;
            }
            next = self.pass(&[token], passes, text.bounds.vocabulary)?;
            self.ahead.push(token);
        }
        Ok(drafted)
    }

    /// Feeds `tokens`; returns the most probable next one, if any.
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
        self.budget.took(passes, tokens.len(), began.elapsed());
        Ok(token)
    }

    /// Ends drafting, with a warning the first time, and forgets the sequence.
    fn give_up(&mut self, e: EngineError) -> Result<Vec<u32>, EngineError> {
        if e.fault() == DeviceErrorKind::Poisoned {
            return Err(e);
        }
        if !self.was_warned {
            tracing::warn!("the draft model fails, continuing without it: {e}");
        }
        self.was_warned = true;
        // After a lack of memory it may work again for the next sequence.
        (self.sits_out, self.is_broken) = (true, e.fault() != DeviceErrorKind::OutOfMemory);
        self.model.rewind(0);
        self.read = 0;
        self.ahead.clear();
        Ok(Vec::new())
    }
}

/// The first of the greatest logits; `None` if all are NaN.
fn top(logits: &[f32]) -> Option<u32> {
    let numbers = (0..).zip(logits).filter(|(_, logit)| !logit.is_nan());
    numbers.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(token, _)| token)
}
