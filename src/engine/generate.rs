//! The generation loop: the prompt in chunks, then token by token.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use super::{
    embedding::embed,
    error::EngineError,
    forward::Forward,
    sequence::{Sequence, check},
    speculation::{Draft, DraftLimits, DraftSource, Drafter, Speculation},
    summary::GenerationSummary,
};
use crate::{
    constraint::Guide,
    job::{DraftCounts, EndReason, Job, Step, Timings},
};

/// Runs `job` and passes each step to `emit`, until the job ends or `emit` breaks. Reuses the cache of an earlier sequence with
/// the same beginning. For a job with `save` only the prompt is read. `guide` enforces the job's constraint; `speculation` keeps
/// what earlier jobs of this model taught about drafting.
///
/// # Errors
/// [`EngineError::Job`] when the job does not fit the model, before anything is computed; others when the device fails.
pub fn generate<D: Forward>(
    model: &mut impl Forward,
    job: &Job,
    guide: Option<Guide>,
    speculation: &mut Speculation<D>,
    mut emit: impl FnMut(Step) -> ControlFlow<()>,
) -> Result<GenerationSummary, EngineError> {
    if let Some(pooling) = job.embedding {
        return embed(model, job, pooling, emit);
    }
    check(model, job).map_err(EngineError::Job)?;
    let (rows, vocabulary) = (model.rows(), model.vocabulary());
    let bounds = DraftLimits {
        rows,
        vocabulary,
        may_be_kept: job.cache_prompt,
        salt: job.cache_salt,
        ends: &job.end_tokens,
    };
    let mut run = Run::new(job, guide, Drafter::new(speculation, bounds));
    if run.sequence.written >= job.max_new_tokens {
        let reason = run.sequence.at_length();
        return Ok(run.outcome(reason));
    }
    let Some(logits) = run.prefill(model, &mut emit)? else {
        return Ok(run.outcome(EndReason::Cancelled));
    };
    if job.save.is_some() {
        return Ok(run.outcome(EndReason::EndToken));
    }
    run.sequence.choose(logits)?;
    loop {
        if let Some(reason) = run.emit_next(&mut emit) {
            return Ok(run.outcome(reason));
        }
        let draft = run.draft()?;
        if draft.tokens.is_empty() {
            let logits = run.feed(model)?;
            run.sequence.choose(logits)?;
        } else if let Some(reason) = run.verify(model, &draft, &mut emit)? {
            return Ok(run.outcome(reason));
        }
    }
}

struct Run<'a, D> {
    sequence: Sequence<'a>,
    drafter: Drafter<'a, D>,
    started: Instant,
    prefilled: Option<Duration>,
    drafted: DraftCounts,
    drafted_by_model: DraftCounts,
}

impl<'a, D: Forward> Run<'a, D> {
    fn new(job: &'a Job, guide: Option<Guide>, mut drafter: Drafter<'a, D>) -> Self {
        drafter.read(&job.prompt, &job.answer);
        let (started, drafted) = (Instant::now(), DraftCounts::default());
        let sequence = Sequence::new(job, guide);
        Self { sequence, drafter, started, prefilled: None, drafted, drafted_by_model: drafted }
    }

    /// Feeds the prompt and the answer so far; `None` when the job was cancelled meanwhile.
    fn prefill<'m, M: Forward>(
        &mut self,
        model: &'m mut M,
        emit: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Option<&'m mut [f32]>, EngineError> {
        let context = self.sequence.context();
        let total = context.len();
        // The logits of cached prompt tokens are not kept.
        let max = if self.sequence.job.cache_prompt && !self.sequence.scores_prompt() { total } else { 0 };
        self.sequence.cached = model.begin(&context, max, self.sequence.job.cache_scope());
        self.sequence.read = self.sequence.cached;
        model.reserve(total - self.sequence.read)?;
        // Emitted before anything is computed, so that no one takes these tokens for ones that were read that fast.
        if self.sequence.cached > 0 && emit(self.sequence.progress(total)).is_break() {
            return Ok(None);
        }
        let last = self.prefill_chunks(model, &context, emit)?;
        let Some(last) = last else { return Ok(None) };
        let logits = model.forward(&context[last..])?;
        self.sequence.read = total;
        self.prefilled = Some(self.started.elapsed());
        Ok(Some(logits))
    }

    /// Feeds `context` up to its last chunk, and scores the prompt if requested; where the last chunk begins, or `None` when
    /// the job was cancelled meanwhile.
    fn prefill_chunks(
        &mut self,
        model: &mut impl Forward,
        context: &[u32],
        emit: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Option<usize>, EngineError> {
        let (total, prompt) = (context.len(), self.sequence.job.prompt.len());
        loop {
            let in_prompt = self.sequence.read < prompt;
            let is_scored = in_prompt && self.sequence.scores_prompt();
            let (width, end) = if is_scored {
                (model.scored_chunk(), prompt)
            } else if in_prompt && model.answer_chunk() == model.chunk() {
                (model.chunk(), total)
            } else if in_prompt {
                (model.chunk(), prompt)
            } else {
                (model.answer_chunk(), total)
            };
            let chunk = &context[self.sequence.read..(self.sequence.read + width).min(end)];
            let is_last = self.sequence.read + chunk.len() == total;
            if is_last && !(is_scored && chunk.len() > 1) {
                return Ok(Some(self.sequence.read));
            }
            if is_scored {
                // The sampler may change the logits of the last token of all: it is fed by itself.
                let chunk = if is_last { &chunk[..chunk.len() - 1] } else { chunk };
                let logits = model.forward_scored(chunk)?;
                let vocabulary = logits.len() / chunk.len();
                for logits in logits.chunks(vocabulary) {
                    self.sequence.read += 1;
                    if self.sequence.score_prompt(logits, emit).is_break() {
                        return Ok(None);
                    }
                }
            } else {
                model.forward(chunk)?;
                self.sequence.read += chunk.len();
            }
            if emit(self.sequence.progress(total)).is_break() {
                return Ok(None);
            }
        }
    }

    /// Emits what follows; returns the reason if the generation ends.
    fn emit_next(&mut self, emit: &mut impl FnMut(Step) -> ControlFlow<()>) -> Option<EndReason> {
        self.sequence.next.iter().for_each(|token| self.drafter.take(*token));
        self.sequence.emit_next(emit)
    }

    /// Feeds what follows.
    fn feed<'m, M: Forward>(&mut self, model: &'m mut M) -> Result<&'m mut [f32], EngineError> {
        let width = model.answer_chunk();
        let last = (self.sequence.next.len() - 1) / width * width;
        for chunk in self.sequence.next[..last].chunks(width) {
            model.forward(chunk)?;
        }
        self.sequence.read += self.sequence.next.len();
        let (rest, began) = (&self.sequence.next[last..], Instant::now());
        let logits = model.forward(rest)?;
        self.drafter.took(rest.len(), began.elapsed());
        Ok(logits)
    }

    /// Tokens that may come next, if it pays to verify them in the same pass.
    fn draft(&mut self) -> Result<Draft, EngineError> {
        self.drafter.draft(self.sequence.next.len(), self.sequence.job.max_new_tokens - self.sequence.written)
    }

    /// Feeds what follows together with a draft, and emits the part of the draft that would have been picked anyway. Then picks
    /// what follows that. Returns the reason if the generation ends.
    fn verify(
        &mut self,
        model: &mut impl Forward,
        proposal: &Draft,
        emit: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<Option<EndReason>, EngineError> {
        let (vocabulary, draft, due) = (model.vocabulary(), &*proposal.tokens, self.sequence.next.len());
        let fed = [&*self.sequence.next, draft].concat();
        self.sequence.read += due;
        let began = Instant::now();
        let logits = model.forward_rows(&fed, draft.len() + 1)?;
        self.drafter.took(fed.len(), began.elapsed());
        let (mut accepted, mut end) = (0, None);
        loop {
            self.sequence.choose(&mut logits[accepted * vocabulary..][..vocabulary])?;
            // If the constraint leaves no choice, several picked tokens may match the draft.
            if self.sequence.next.is_empty() || !draft[accepted..].starts_with(&self.sequence.next) {
                break;
            }
            accepted += self.sequence.next.len();
            end = self.emit_next(emit);
            if end.is_some() {
                break;
            }
        }
        self.sequence.read += accepted;
        self.drafted.add(draft.len(), accepted);
        if proposal.by == DraftSource::Model {
            self.drafted_by_model.add(draft.len(), accepted);
        }
        // After the end of the answer the rest of the draft was not tested.
        let was_wrong = end.is_none()
            && self
                .sequence
                .next
                .first()
                .is_some_and(|token| draft.get(accepted).is_some_and(|drafted| drafted != token));
        self.drafter.judge(proposal, due, accepted, was_wrong);
        model.rewind(self.sequence.read);
        Ok(end)
    }

    fn outcome(&self, reason: EndReason) -> GenerationSummary {
        let elapsed = self.started.elapsed();
        let prefill = self.prefilled.unwrap_or(elapsed);
        GenerationSummary {
            reason,
            usage: self.sequence.usage(),
            timings: Timings {
                prefill,
                decode: elapsed.saturating_sub(prefill),
                resumed: 0,
                drafted: self.drafted,
                saving: Duration::ZERO,
                drafted_by_model: self.drafted_by_model,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Failure, JobId, LogprobOptions, Sampling, Usage},
        units::Tokens,
    };

    const VOCABULARY: usize = 10;
    const END: u32 = 9;

    /// A model that returns scripted tokens, then the end token.
    struct Script<'a>(std::slice::Iter<'a, u32>, [f32; VOCABULARY]);

    impl Forward for Script<'_> {
        fn rewind(&mut self, _: usize) {}

        fn reserve(&mut self, _: usize) -> Result<(), EngineError> {
            Ok(())
        }

        fn forward_rows(&mut self, _: &[u32], _: usize) -> Result<&mut [f32], EngineError> {
            self.1 = [0.0; VOCABULARY];
            self.1[*self.0.next().unwrap_or(&END) as usize] = 1.0;
            Ok(&mut self.1)
        }

        fn chunk(&self) -> usize {
            4
        }

        fn capacity(&self) -> usize {
            32
        }

        fn vocabulary(&self) -> usize {
            VOCABULARY
        }
    }

    fn job(prompt: usize, max_new_tokens: usize) -> Job {
        Job { end_tokens: vec![END], ..Job::new(JobId(1), vec![1; prompt], max_new_tokens) }
    }

    /// A prompt of one chunk consumes one scripted token, each further chunk another.
    fn script(tokens: &[u32]) -> Script<'_> {
        Script(tokens.iter(), [0.0; VOCABULARY])
    }

    fn run(mut script: Script<'_>, job: &Job) -> (Vec<u32>, GenerationSummary) {
        let mut tokens = Vec::new();
        let outcome = generate(&mut script, job, None, &mut Speculation::new(), |step| {
            if let Step::Token(id) = step {
                tokens.push(id);
            }
            ControlFlow::Continue(())
        });
        (tokens, outcome.unwrap())
    }

    /// A model that counts: the most probable token is the next number. It remembers the lengths of its passes.
    #[derive(Default)]
    struct Counting {
        passes: Vec<usize>,
        answer_chunk: usize,
        logits: Vec<f32>,
    }

    impl Forward for Counting {
        fn rewind(&mut self, _: usize) {}

        fn reserve(&mut self, _: usize) -> Result<(), EngineError> {
            Ok(())
        }

        fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
            self.passes.push(tokens.len());
            self.logits = vec![0.0; rows * VOCABULARY];
            for (row, token) in self.logits.chunks_mut(VOCABULARY).zip(&tokens[tokens.len() - rows..]) {
                row[(*token as usize + 1) % VOCABULARY] = 100.0;
            }
            Ok(&mut self.logits)
        }

        fn scored_chunk(&self) -> usize {
            3
        }

        fn answer_chunk(&self) -> usize {
            self.answer_chunk
        }

        fn chunk(&self) -> usize {
            4
        }

        fn capacity(&self) -> usize {
            32
        }

        fn vocabulary(&self) -> usize {
            VOCABULARY
        }
    }

    #[test]
    fn a_scored_prompt_is_read_in_chunks_and_each_token_has_the_score_of_its_position() {
        for (length, passes) in [(1, vec![1]), (2, vec![1, 1]), (4, vec![3, 1]), (8, vec![3, 3, 1, 1])] {
            let mut model = Counting { answer_chunk: 4, ..Counting::default() };
            let mut scores = Vec::new();
            // Every second number is one more than expected.
            let prompt: Vec<u32> = (0..length).map(|i| i + i % 2).collect();
            let logprobs = Some(LogprobOptions { prompt: true, ..LogprobOptions::default() });
            let job = Job { logprobs, ..Job::new(JobId(1), prompt.clone(), 1) };
            generate(&mut model, &job, None, &mut Speculation::new(), |step| {
                if let Step::Logprobs(score) = step {
                    scores.push((score.position, score.token, score.logprob > -1.0));
                }
                ControlFlow::Continue(())
            })
            .unwrap();
            let last = *prompt.last().unwrap();
            let all = [&*prompt, &[(last + 1) % 10]].concat();
            let expected: Vec<(usize, u32, bool)> =
                (1..all.len()).map(|i| (i, all[i], all[i] == (all[i - 1] + 1) % 10)).collect();
            assert_eq!((scores, model.passes), (expected, passes), "a prompt of {length}");
        }
    }

    #[test]
    fn a_resumed_answer_is_fed_as_it_was_where_passes_matter() {
        let begun = Job { answer: vec![2, 3, 4], ..job(6, 4) };
        for (answer_chunk, passes) in [(4, vec![4, 4, 1]), (1, vec![4, 2, 1, 1, 1])] {
            let mut model = Counting { answer_chunk, ..Counting::default() };
            generate(&mut model, &begun, None, &mut Speculation::new(), |_| ControlFlow::Continue(()))
                .unwrap();
            assert_eq!(model.passes, passes);
        }
    }

    #[test]
    fn the_end_token_is_counted_but_not_emitted() {
        let (tokens, outcome) = run(script(&[3, 4]), &job(2, 20));
        assert_eq!((tokens, outcome.reason), (vec![3, 4], EndReason::EndToken));
        assert_eq!(outcome.usage, Usage { prompt_tokens: 2, completion_tokens: 3, cached_tokens: 0 });
    }

    #[test]
    fn the_answer_has_exactly_the_allowed_length() {
        let (tokens, outcome) = run(script(&[3, 4, 5, 6]), &job(2, 3));
        assert_eq!((tokens, outcome.reason), (vec![3, 4, 5], EndReason::Length));
    }

    #[test]
    fn a_resumed_answer_is_read_with_the_prompt_and_counted() {
        let begun = Job { answer: vec![3, 4], ..job(2, 4) };
        let (tokens, outcome) = run(script(&[5, 6, 7]), &begun);
        assert_eq!((tokens, outcome.reason), (vec![5, 6], EndReason::Length));
        assert_eq!(outcome.usage, Usage { prompt_tokens: 2, completion_tokens: 4, cached_tokens: 0 });
        let complete = Job { answer: vec![3, 4, 5, 6], ..job(2, 4) };
        let outcome =
            generate(&mut script(&[]), &complete, None, &mut Speculation::new(), |_| panic!("it ran"))
                .unwrap();
        assert_eq!((outcome.reason, outcome.usage.completion_tokens), (EndReason::Length, 4));
    }

    #[test]
    fn a_callback_that_breaks_stops_the_loop_at_once() {
        let mut steps = 0;
        let leave = |_| {
            steps += 1;
            ControlFlow::Break(())
        };
        let outcome =
            generate(&mut script(&[3, 4]), &job(9, 20), None, &mut Speculation::new(), leave).unwrap();
        assert_eq!((steps, outcome.reason), (1, EndReason::Cancelled));
        assert_eq!(outcome.usage, Usage { prompt_tokens: 4, ..Usage::default() });
    }

    #[test]
    fn progress_is_emitted_after_every_chunk_but_the_last_which_a_token_follows() {
        for (prompt, expected) in [(4, vec![]), (5, vec![4]), (8, vec![4]), (11, vec![4, 8])] {
            let mut progress = Vec::new();
            let listen = |step| {
                if let Step::Progress { done, .. } = step {
                    progress.push(done);
                }
                ControlFlow::Continue(())
            };
            generate(&mut script(&[]), &job(prompt, 1), None, &mut Speculation::new(), listen).unwrap();
            assert_eq!(progress, expected, "a prompt of {prompt}");
        }
    }

    #[test]
    fn a_job_that_cannot_fit_is_refused_with_the_numbers_before_anything_runs() {
        let refused =
            generate(&mut script(&[]), &job(30, 3), None, &mut Speculation::new(), |_| panic!("it ran"));
        let Err(EngineError::Job(Failure::Context { prompt, max_new, capacity })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!((prompt, max_new, capacity), (Tokens(30), Tokens(3), Tokens(32)));
        for empty in [job(0, 3), job(3, 0)] {
            assert!(
                generate(&mut script(&[]), &empty, None, &mut Speculation::new(), |_| panic!("it ran"))
                    .is_err()
            );
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused_by_its_id() {
        let job = Job { prompt: vec![1, 10], ..job(2, 3) };
        let refused = generate(&mut script(&[]), &job, None, &mut Speculation::new(), |_| panic!("it ran"));
        assert!(matches!(refused, Err(EngineError::Job(Failure::UnknownToken { id: 10, vocabulary: 10 }))));
    }

    #[test]
    fn a_model_of_nothing_but_nan_is_an_error_and_not_token_zero() {
        let mut script = script(&[3]);
        let sampling =
            Sampling { logit_bias: (0..10).map(|id| (id, f32::NAN)).collect(), ..Sampling::greedy() };
        let refused =
            generate(&mut script, &Job { sampling, ..job(2, 3) }, None, &mut Speculation::new(), |_| {
                ControlFlow::Continue(())
            });
        assert!(matches!(refused, Err(EngineError::Job(Failure::NanLogits { .. }))), "{refused:?}");
    }
}
