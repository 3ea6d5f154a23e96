//! Several sequences, computed in one pass a step: the choices of one prompt, or several prompts of a request.
//!
//! ```text
//! trunk: what all begin with          read once, kept in the prefix cache
//!   ├── rest of prompt A              read once for its choices
//!   │     ├── answer, answer
//!   └── rest of prompt B
//!         └── answer
//! ```
//!
//! A decode step reads every weight once, for all sequences. Each keeps the bits that it has alone, because the model is
//! [row-invariant](crate::model::Model::is_row_invariant): only such models compute sequences together. Nothing is drafted,
//! since a pass of several sequences uses the processor already.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use super::{
    error::EngineError,
    forward::ForwardBranches,
    prefix_cache::common,
    sequence::{Sequence, check},
    summary::GenerationSummary,
};
use crate::{
    constraint::Guide,
    job::{EndReason, Failure, Job, Step, Timings},
};

/// What happens to one of several sequences.
#[derive(Debug)]
pub enum SequenceEvent {
    /// A step, as of [`generate`](super::generate).
    Step(Step),
    /// Nothing follows. Its times are its share of those of the passes that it was in.
    Ended(Result<GenerationSummary, Failure>),
}

/// Runs `jobs` together, each with its guide, and passes each event to `emit` with the job's number. The last event of a job is
/// [`SequenceEvent::Ended`]; it comes at once when `emit` breaks at a step of the job. No job may `save` its prompt or score it.
///
/// # Errors
/// [`EngineError`] when the device fails. A lack of memory is found before the first event.
pub fn generate_together<M: ForwardBranches>(
    model: &mut M,
    jobs: Vec<(&Job, Result<Option<Guide>, Failure>)>,
    mut emit: impl FnMut(usize, SequenceEvent) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let mut members = Vec::with_capacity(jobs.len());
    let mut refused = Vec::new();
    for (number, (job, guide)) in jobs.into_iter().enumerate() {
        match check(model, job).and(guide) {
            Ok(guide) => members.push(Member::new(number, Sequence::new(job, guide))),
            Err(failure) => refused.push((number, failure)),
        }
    }
    let contexts = contexts(&members);
    let trunk = trunk(&contexts);
    let begun = begin(model, &members, &contexts, trunk)?;
    for (number, failure) in refused {
        let _ = emit(number, SequenceEvent::Ended(Err(failure)));
    }
    let mut group = Group { members, emit };
    group.end_complete();
    group.prefill(model, &contexts, [begun, trunk])?;
    loop {
        group.emit_next();
        if group.active().next().is_none() {
            return Ok(());
        }
        group.step(model)?;
    }
}

/// One of several sequences.
struct Member<'a> {
    number: usize,
    sequence: Sequence<'a>,
    /// Its branch, once its context was read.
    branch: usize,
    is_active: bool,
    prefill: Duration,
    decode: Duration,
}

impl<'a> Member<'a> {
    fn new(number: usize, sequence: Sequence<'a>) -> Self {
        let none = Duration::ZERO;
        Self { number, sequence, branch: 0, is_active: true, prefill: none, decode: none }
    }

    /// Tokens that the answer may still have.
    fn rest(&self) -> usize {
        self.sequence.job.max_new_tokens.saturating_sub(self.sequence.written)
    }

    fn summary(&self, reason: EndReason) -> GenerationSummary {
        let timings = Timings { prefill: self.prefill, decode: self.decode, ..Timings::default() };
        GenerationSummary { reason, usage: self.sequence.usage(), timings }
    }
}

/// Tokens that are read before the next one is picked, and the indices of the members that have them.
struct Context {
    tokens: Vec<u32>,
    members: Vec<usize>,
}

/// The different contexts of `members`.
fn contexts(members: &[Member]) -> Vec<Context> {
    let mut contexts: Vec<Context> = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let tokens = member.sequence.context();
        match contexts.iter_mut().find(|context| context.tokens == tokens) {
            Some(context) => context.members.push(index),
            None => contexts.push(Context { tokens, members: vec![index] }),
        }
    }
    contexts
}

/// How many tokens all contexts begin with; less than all of each, since the logits of its last token are needed, unless there
/// is only one context.
fn trunk(contexts: &[Context]) -> usize {
    match contexts {
        [] => 0,
        [only] => only.tokens.len(),
        [first, others @ ..] => {
            let of = |other: &Context| {
                common(&first.tokens, &other.tokens).min(other.tokens.len() - 1).min(first.tokens.len() - 1)
            };
            others.iter().map(of).min().unwrap_or_default()
        }
    }
}

/// Begins the trunk and makes room for all; returns how many positions of the trunk are reused.
fn begin(
    model: &mut impl ForwardBranches,
    members: &[Member],
    contexts: &[Context],
    trunk: usize,
) -> Result<usize, EngineError> {
    let Some((first, job)) = contexts.first().zip(members.first().map(|member| member.sequence.job)) else {
        return Ok(0);
    };
    let max = if job.cache_prompt { trunk } else { 0 };
    let begun = model.begin(&first.tokens, max, job.cache_scope());
    let tails: usize = contexts.iter().map(|context| context.tokens.len() - trunk).sum();
    let answers: usize = members.iter().map(Member::rest).sum();
    model.reserve_branches(trunk + tails + answers)?;
    Ok(begun)
}

struct Group<'a, E> {
    members: Vec<Member<'a>>,
    emit: E,
}

impl<E: FnMut(usize, SequenceEvent) -> ControlFlow<()>> Group<'_, E> {
    /// The indices of the members that have not ended.
    fn active(&self) -> impl Iterator<Item = usize> {
        self.members.iter().enumerate().filter(|(_, member)| member.is_active).map(|(index, _)| index)
    }

    fn end(&mut self, index: usize, end: Result<EndReason, Failure>) {
        let member = &mut self.members[index];
        member.is_active = false;
        let ended = end.map(|reason| member.summary(reason));
        let _ = (self.emit)(member.number, SequenceEvent::Ended(ended));
    }

    /// Ends members whose answer was complete when they were resumed.
    fn end_complete(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].rest() == 0 {
                let reason = self.members[index].sequence.at_length();
                self.end(index, Ok(reason));
            }
        }
    }

    /// Reads all contexts, picks the first tokens, and gives each member its branch.
    fn prefill<M: ForwardBranches>(
        &mut self,
        model: &mut M,
        contexts: &[Context],
        [begun, trunk]: [usize; 2],
    ) -> Result<(), EngineError> {
        let Some(reader) = self.active().next() else { return Ok(()) };
        for (index, member) in self.members.iter_mut().enumerate() {
            member.sequence.cached = if index == reader { begun } else { trunk };
            member.sequence.read = begun;
        }
        if let [only] = contexts {
            // As of a prompt that is in the prefix cache: its last token is not.
            for index in &only.members {
                let cached = &mut self.members[*index].sequence.cached;
                *cached = (*cached).min(trunk - 1);
            }
        }
        if begun > 0 {
            self.emit_progress(&self.active().collect::<Vec<_>>(), contexts);
        }
        let all: Vec<usize> = (0..self.members.len()).collect();
        let first = contexts.first().map_or(&[][..], |context| &context.tokens[begun..trunk]);
        let logits = self.read(model, (first, contexts), &all, |model, chunk| {
            model.forward(chunk).map(|logits| logits.to_vec())
        })?;
        model.branch(self.members.len())?;
        if let [only] = contexts {
            for index in self.live(only) {
                self.members[index].branch = model.fork(None, self.members[index].rest());
            }
            self.choose(only, &logits);
            return Ok(());
        }
        contexts.iter().try_for_each(|context| self.read_rest(model, context, contexts, trunk))
    }

    /// Reads what `context` has after the trunk, and branches off its members.
    fn read_rest<M: ForwardBranches>(
        &mut self,
        model: &mut M,
        context: &Context,
        contexts: &[Context],
        trunk: usize,
    ) -> Result<(), EngineError> {
        let live = self.live(context);
        let Some(reader) = live.first().copied() else { return Ok(()) };
        let rest = &context.tokens[trunk..];
        for index in &live[1..] {
            // As of a prompt that is in the prefix cache: its last token is not.
            self.members[*index].sequence.cached += rest.len() - 1;
        }
        let room = if live.len() == 1 { self.members[reader].rest() } else { 0 };
        let base = model.fork(None, rest.len() + room);
        let logits = self.read(model, (rest, contexts), &live, |model, chunk| {
            model.forward_branches(&[(base, chunk)]).map(|logits| logits.to_vec())
        })?;
        for index in &live {
            let member = &mut self.members[*index];
            member.branch = if live.len() == 1 { base } else { model.fork(Some(base), member.rest()) };
        }
        self.choose(context, &logits);
        Ok(())
    }

    /// Feeds `tokens` in chunks for `members` and returns the last logits; nothing if all of them were cancelled meanwhile.
    fn read<M: ForwardBranches>(
        &mut self,
        model: &mut M,
        (tokens, contexts): (&[u32], &[Context]),
        members: &[usize],
        mut feed: impl FnMut(&mut M, &[u32]) -> Result<Vec<f32>, EngineError>,
    ) -> Result<Vec<f32>, EngineError> {
        let mut logits = Vec::new();
        for chunk in tokens.chunks(model.chunk()) {
            let live: Vec<usize> =
                members.iter().copied().filter(|index| self.members[*index].is_active).collect();
            if live.is_empty() {
                break;
            }
            let began = Instant::now();
            logits = feed(model, chunk)?;
            let share = began.elapsed() / u32::try_from(live.len()).unwrap_or(u32::MAX);
            for index in &live {
                self.members[*index].sequence.read += chunk.len();
                self.members[*index].prefill += share;
            }
            self.emit_progress(&live, contexts);
        }
        Ok(logits)
    }

    /// Emits how much of their contexts `members` have, unless their first token is next.
    fn emit_progress(&mut self, members: &[usize], contexts: &[Context]) {
        for &index in members {
            let Member { sequence, number, .. } = &self.members[index];
            let context = contexts.iter().find(|context| context.members.contains(&index));
            let total = context.map_or(0, |context| context.tokens.len());
            if (sequence.read < total || contexts.len() > 1)
                && (self.emit)(*number, SequenceEvent::Step(sequence.progress(total))).is_break()
            {
                self.end(index, Ok(EndReason::Cancelled));
            }
        }
    }

    /// The members of `context` that have not ended.
    fn live(&self, context: &Context) -> Vec<usize> {
        context.members.iter().copied().filter(|index| self.members[*index].is_active).collect()
    }

    /// Picks what follows `context` for each of its members.
    fn choose(&mut self, context: &Context, logits: &[f32]) {
        for index in self.live(context) {
            self.choose_for(index, &mut logits.to_vec());
        }
    }

    fn choose_for(&mut self, index: usize, logits: &mut [f32]) {
        if let Err(failure) = self.members[index].sequence.choose(logits) {
            self.end(index, Err(failure.into()));
        }
    }

    /// Emits what follows in every sequence, and ends those that are complete or cancelled.
    fn emit_next(&mut self) {
        for index in self.active().collect::<Vec<_>>() {
            let Member { sequence, number, .. } = &mut self.members[index];
            let emit = &mut self.emit;
            if let Some(reason) = sequence.emit_next(&mut |step| emit(*number, SequenceEvent::Step(step))) {
                self.end(index, Ok(reason));
            }
        }
    }

    /// Feeds what follows in every sequence, and picks what follows that.
    fn step(&mut self, model: &mut impl ForwardBranches) -> Result<(), EngineError> {
        let active: Vec<usize> = self.active().collect();
        let began = Instant::now();
        for &index in &active {
            // Where a constraint leaves no choice, several tokens follow.
            let Member { sequence, branch, .. } = &self.members[index];
            if let [known @ .., _] = &sequence.next[..] {
                known
                    .chunks(model.chunk())
                    .try_for_each(|chunk| model.forward_branches(&[(*branch, chunk)]).map(|_| ()))?;
            }
        }
        let last = |index: &usize| {
            let Member { sequence, branch, .. } = &self.members[*index];
            (*branch, &sequence.next[sequence.next.len().saturating_sub(1)..])
        };
        let fed: Vec<(usize, &[u32])> = active.iter().map(last).collect();
        let vocabulary = model.vocabulary();
        let logits = model.forward_branches(&fed)?;
        for (&index, logits) in active.iter().zip(logits.chunks_exact_mut(vocabulary)) {
            let sequence = &mut self.members[index].sequence;
            sequence.read += sequence.next.len();
            self.choose_for(index, logits);
        }
        let share = began.elapsed() / u32::try_from(active.len()).unwrap_or(u32::MAX);
        active.iter().for_each(|index| self.members[*index].decode += share);
        Ok(())
    }
}
