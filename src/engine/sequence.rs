//! One sequence while it is generated: from logits to the tokens that are due, and what is emitted of them.

use std::ops::ControlFlow;

use super::{error::EngineError, forward::Forward, logprobs::LogprobScorer, sampler::Sampler};
use crate::{
    constraint::{Choice, Guide},
    job::{EndReason, Failure, Job, Step, Usage},
    units::Tokens,
};

/// One sequence while it is generated.
pub(super) struct Sequence<'a> {
    pub(super) job: &'a Job,
    sampler: Sampler<'a>,
    guide: Option<Guide>,
    scorer: Option<LogprobScorer>,
    /// Tokens that follow but were not emitted and fed yet: one, or several if the constraint leaves no choice.
    pub(super) next: Vec<u32>,
    /// Tokens that are in the cache for good, and the part of them that was reused.
    pub(super) read: usize,
    pub(super) cached: usize,
    pub(super) written: usize,
}

impl<'a> Sequence<'a> {
    pub(super) fn new(job: &'a Job, guide: Option<Guide>) -> Self {
        let sampler = Sampler::resume(&job.sampling, &job.prompt, &job.answer);
        let scorer = job.logprobs.map(LogprobScorer::new);
        let written = job.answer.len();
        Self { job, sampler, guide, scorer, next: Vec::new(), read: 0, cached: 0, written }
    }

    /// The prompt and the answer so far.
    pub(super) fn context(&self) -> Vec<u32> {
        [&*self.job.prompt, &self.job.answer].concat()
    }

    pub(super) fn progress(&self, total: usize) -> Step {
        Step::Progress { done: self.read, total, cached: self.cached.min(self.read) }
    }

    pub(super) fn scores_prompt(&self) -> bool {
        self.job.logprobs.is_some_and(|asked| asked.prompt)
    }

    /// Emits the log-probability of the prompt's next token, whose `logits` these are.
    pub(super) fn score_prompt(
        &mut self,
        logits: &[f32],
        emit: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match (&mut self.scorer, self.job.prompt.get(self.read)) {
            (Some(scorer), Some(token)) => {
                scorer.read(logits);
                emit(Step::Logprobs(scorer.score(*token, self.read)))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// Picks what follows; nothing if the constraint allows no further token.
    pub(super) fn choose(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        self.next.clear();
        let after_sampling = self.job.logprobs.is_some_and(|asked| asked.after_sampling);
        if let Some(scorer) = self.scorer.as_mut().filter(|_| !after_sampling) {
            scorer.read(logits);
        }
        let choice = self.guide.as_mut().map(Guide::choice).transpose().map_err(EngineError::Job)?;
        match choice {
            Some(Choice::Nothing) => return Ok(()),
            Some(Choice::Forced(tokens)) => {
                tokens.iter().for_each(|token| self.sampler.take(*token));
                if let Some(scorer) = self.scorer.as_mut().filter(|_| after_sampling) {
                    scorer.read_forced();
                }
                self.next = tokens;
                return Ok(());
            }
            Some(Choice::Among(allowed)) => allowed.mask(logits, &self.job.end_tokens),
            None => {}
        }
        if self.written < self.job.min_new_tokens {
            for end in &self.job.end_tokens {
                if let Some(logit) = logits.get_mut(*end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let picked = self.sampler.pick(logits);
        let picked = picked.ok_or(EngineError::Job(Failure::NanLogits { after: Tokens(self.read) }))?;
        self.next.push(picked);
        if let Some(scorer) = self.scorer.as_mut().filter(|_| after_sampling) {
            scorer.read_candidates(self.sampler.candidates(), logits.len());
        }
        if let Some(guide) = &self.guide
            && !self.job.end_tokens.contains(&picked)
        {
            guide.picked(picked);
        }
        Ok(())
    }

    /// Emits what follows; returns the reason if the generation ends.
    pub(super) fn emit_next(&mut self, emit: &mut impl FnMut(Step) -> ControlFlow<()>) -> Option<EndReason> {
        for index in 0..self.next.len() {
            let token = self.next[index];
            self.written += 1;
            if self.job.end_tokens.contains(&token) {
                return Some(EndReason::EndToken);
            }
            let position = self.job.prompt.len() + self.written - 1;
            let score = self.scorer.as_mut().map(|scorer| Step::Logprobs(scorer.score(token, position)));
            if score.into_iter().chain([Step::Token(token)]).any(|step| emit(step).is_break()) {
                return Some(EndReason::Cancelled);
            }
            if self.written >= self.job.max_new_tokens {
                let is_truncated = index + 1 < self.next.len();
                return Some(if is_truncated { EndReason::Length } else { self.at_length() });
            }
        }
        self.next.is_empty().then_some(EndReason::EndToken)
    }

    /// Why an answer of full length ends. If its constraint allows no further token, it is complete and was not cut off.
    pub(super) fn at_length(&mut self) -> EndReason {
        match self.guide.as_mut().map(Guide::choice) {
            Some(Ok(Choice::Nothing)) => EndReason::EndToken,
            _ => EndReason::Length,
        }
    }

    /// Token counts so far.
    pub(super) fn usage(&self) -> Usage {
        let prompt = self.job.prompt.len();
        Usage {
            prompt_tokens: self.read.min(prompt),
            completion_tokens: self.written,
            cached_tokens: self.cached.min(prompt),
        }
    }
}

/// Checks that `job` fits the model.
///
/// # Errors
/// [`Failure::Context`] and [`Failure::UnknownToken`].
pub(super) fn check(model: &impl Forward, job: &Job) -> Result<(), Failure> {
    let (prompt, max_new, capacity) = (job.prompt.len(), job.max_new_tokens, model.capacity());
    if prompt == 0 || max_new == 0 || prompt.saturating_add(max_new) > capacity {
        let (prompt, max_new, capacity) = (Tokens(prompt), Tokens(max_new), Tokens(capacity));
        return Err(Failure::Context { prompt, max_new, capacity });
    }
    let vocabulary = model.vocabulary();
    match job.prompt.iter().chain(&job.answer).find(|id| **id as usize >= vocabulary) {
        Some(&id) => Err(Failure::UnknownToken { id, vocabulary }),
        None => Ok(()),
    }
}
