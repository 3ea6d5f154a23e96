//! Who waits, who runs, and whether there is room: plain data, told the time, never asking for it.

use std::{collections::VecDeque, fmt, num::NonZeroUsize, sync::Arc};

use tokio::{sync::mpsc::UnboundedSender, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, SubmitError, Terms,
    estimate::{SlotUsage, SpeedEstimate, Work},
    scheduling::{Candidate, Pick, Scheduler, SlotRule},
    snapshot::{Caller, FinishedJob, History, JobInfo, JobOutcome, RunningJobInfo, Snapshot, WaitingJobInfo},
};
use crate::{
    job::{
        Event, Failure, Finish, FinishReason, Job, JobId, MemoryReport, ModelId, Priority, Timings, Usage,
    },
    otel::JobSpans,
    units::Tokens,
};

/// A job that was accepted, and the way back to whoever asked.
#[derive(Debug)]
pub(super) struct QueuedJob {
    pub(super) job: Job,
    pub(super) caller: Caller,
    pub(super) events: UnboundedSender<Event>,
    pub(super) cancel: CancellationToken,
    pub(super) at: Instant,
    pub(super) terms: Terms,
    /// Where its request is traced.
    pub(super) spans: Option<JobSpans>,
    /// How often it was passed over for one whose model was loaded.
    pub(super) passed_over: usize,
    /// `None` is never: the deadline lies beyond what the clock can say.
    pub(super) queue_deadline: Option<Instant>,
    pub(super) total_deadline: Option<Instant>,
}

impl QueuedJob {
    pub(super) fn new(
        job: Job,
        events: UnboundedSender<Event>,
        cancel: CancellationToken,
        at: Instant,
        terms: Terms,
    ) -> Self {
        let queue_deadline = at.checked_add(terms.deadlines.queue);
        let total_deadline = at.checked_add(terms.deadlines.total);
        let spans = JobSpans::begin(&job, terms.priority);
        let (caller, passed_over) = (Caller::default(), 0);
        Self { job, caller, events, cancel, at, terms, spans, passed_over, queue_deadline, total_deadline }
    }

    /// What others may know of it.
    pub(super) fn entry(&self) -> JobInfo {
        JobInfo {
            id: self.job.id,
            caller: self.caller.clone(),
            priority: self.terms.priority,
            model: self.job.model.clone(),
            prompt: Tokens(self.job.prompt.len()),
            max_new: Tokens(self.job.max_new_tokens),
        }
    }

    /// Tells the client; one that is gone does not hear it.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Tells the client that its own cancellation took effect before the job had the slot.
    pub(super) fn tell_cancelled(&self) {
        self.tell(Event::Done(Finish {
            reason: FinishReason::Cancelled,
            usage: Usage { prompt_tokens: self.job.prompt.len(), ..Usage::default() },
            timings: Timings::default(),
            memory: MemoryReport::default(),
        }));
    }

    fn candidate(&self) -> Candidate<'_> {
        let (priority, model) = (self.terms.priority, &self.job.model);
        Candidate { priority, model, passed_over: self.passed_over }
    }

    /// When it no longer wants to wait, for whichever reason comes first.
    fn gives_up(&self) -> Option<Instant> {
        self.queue_deadline.into_iter().chain(self.total_deadline).min()
    }

    /// Why it no longer waits at `now`; `None` when it still does.
    fn given_up(&self, now: Instant) -> Option<Failure> {
        let waited = now.saturating_duration_since(self.at);
        if self.total_deadline.is_some_and(|at| at <= now) {
            Some(Failure::Deadline { elapsed: waited })
        } else if self.queue_deadline.is_some_and(|at| at <= now) {
            Some(Failure::QueueTimeout { waited })
        } else {
            None
        }
    }

    pub(super) fn work(&self) -> Work {
        let (prompt, max_new) = (Tokens(self.job.prompt.len()), Tokens(self.job.max_new_tokens));
        Work { prompt, max_new, generated: Tokens(0), max_time: self.terms.max_time }
    }
}

/// The job in the slot, as far as others need to know.
#[derive(Clone, Debug)]
pub(super) struct Occupant {
    pub(super) job: JobInfo,
    pub(super) slot: usize,
    pub(super) since: Instant,
    pub(super) remains: Work,
    /// When it said its first token.
    first_token: Option<Instant>,
}

impl Occupant {
    fn show(&self, now: Instant) -> RunningJobInfo {
        RunningJobInfo {
            job: self.job.clone(),
            slot: self.slot,
            time: now.saturating_duration_since(self.since),
            read: Tokens(self.job.prompt.0.saturating_sub(self.remains.prompt.0)),
            generated: self.remains.generated,
            decoding: self.first_token.map(|at| now.saturating_duration_since(at)),
        }
    }
}

/// Whether a slot, by its number, has a model loaded.
type IsLoaded = dyn Fn(usize, &ModelId) -> bool + Send + Sync;

/// Which slot takes which job. Without it they take them as they came.
///
/// A job goes to a free slot that has its model, or else to the one that has been free for longest.
///
/// Jobs of two models that alternate would have each of them loaded again and again. With `most_switches`, a slot takes so
/// many jobs in a row whose model it has to load first, while one waits whose model it has. Every job that is passed over is
/// first in line for the next switch, so none waits for more than the jobs of `most_switches` switches and one more.
#[derive(Clone)]
pub struct Routing {
    /// Switches in a row; `None` is no limit.
    pub most_switches: Option<NonZeroUsize>,
    /// Whether a slot, by its number, has a model loaded.
    pub is_loaded: Arc<IsLoaded>,
    /// Whether a slot is to take jobs. Whoever changes the answer calls [`Executor::look_again`](super::Executor::look_again).
    pub is_open: Arc<dyn Fn(usize) -> bool + Send + Sync>,
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routing").field("most_switches", &self.most_switches).finish_non_exhaustive()
    }
}

/// What is remembered of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct SlotHistory {
    /// Jobs taken in a row whose model was not loaded.
    switches: usize,
    /// Which job it was, of all, that left it last; 0 is none yet.
    freed: u64,
}

/// The queue, the slots' occupants, and what is known of the slots' speed.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    waiting: VecDeque<QueuedJob>,
    prompt_tokens: usize,
    /// Jobs that have a slot, at most one for each.
    running: Vec<Occupant>,
    /// There is one for each device.
    slots: Vec<SlotHistory>,
    pace: SpeedEstimate,
    history: History,
    accepting: bool,
    order: Scheduler,
    routing: Option<Routing>,
    /// Jobs that have left a slot.
    done: u64,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            prompt_tokens: 0,
            running: Vec::new(),
            slots: vec![SlotHistory::default()],
            pace: SpeedEstimate::default(),
            history: History::default(),
            accepting: true,
            order: Scheduler::new(),
            routing: None,
            done: 0,
        }
    }

    pub(super) fn check_room(&self, prompt: Tokens, priority: Priority) -> Result<(), SubmitError> {
        match (self.accepting, self.has_room_for(prompt)) {
            (false, _) => Err(SubmitError::Stopped),
            (true, false) => Err(self.busy(priority)),
            (true, true) => Ok(()),
        }
    }

    pub(super) fn push(&mut self, accepted: QueuedJob) -> Result<(), SubmitError> {
        self.check_room(Tokens(accepted.job.prompt.len()), accepted.terms.priority)?;
        self.prompt_tokens += accepted.job.prompt.len();
        self.waiting.push_back(accepted);
        Ok(())
    }

    /// There is one slot for each device.
    pub(super) fn set_slots(&mut self, slots: usize) {
        self.slots = vec![SlotHistory::default(); slots];
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn route(&mut self, routing: Routing) {
        self.routing = Some(routing);
    }

    pub(super) fn limit_overtakes(&mut self, most: usize) {
        self.order.max_overtakes = most;
    }

    /// This slot, which is free, takes its next job: the one whose turn it is, unless another free slot has its model, or it
    /// would be one switch of models too many.
    pub(super) fn take(&mut self, slot: usize, now: Instant) -> Option<QueuedJob> {
        let next = self.next_for(slot)?;
        self.order.took(next);
        if let Some(past) = self.slots.get_mut(slot) {
            past.switches = next.switches;
        }
        if let Some(passed_over) = next.passed_over.and_then(|place| self.waiting.get_mut(place)) {
            passed_over.passed_over += 1;
        }
        let next = self.remove_at(next.place)?;
        self.running.push(Occupant {
            job: next.entry(),
            slot,
            since: now,
            remains: next.work(),
            first_token: None,
        });
        Some(next)
    }

    /// The slot of a job is free again.
    pub(super) fn release(&mut self, id: JobId) {
        self.done += 1;
        for left in self.running.extract_if(.., |running| running.job.id == id) {
            if let Some(past) = self.slots.get_mut(left.slot) {
                past.freed = self.done;
            }
        }
    }

    /// Removes a job that still waits.
    pub(super) fn remove(&mut self, id: JobId) -> Option<QueuedJob> {
        let place = self.waiting.iter().position(|waiting| waiting.job.id == id)?;
        self.remove_at(place)
    }

    /// Removes the job that waits for longest.
    pub(super) fn remove_first(&mut self) -> Option<QueuedJob> {
        self.remove_at(0)
    }

    /// Removes the first job that has waited for too long, with the reason.
    pub(super) fn remove_given_up(&mut self, now: Instant) -> Option<(QueuedJob, Failure)> {
        let (place, failure) =
            self.waiting.iter().enumerate().find_map(|(place, w)| Some((place, w.given_up(now)?)))?;
        Some((self.remove_at(place)?, failure))
    }

    /// When the next of the waiting jobs has waited for too long.
    pub(super) fn next_given_up(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(QueuedJob::gives_up).min()
    }

    /// Accepts nothing from here on.
    pub(super) fn close(&mut self) {
        self.accepting = false;
    }

    pub(super) fn is_accepting(&self) -> bool {
        self.accepting
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(super) fn jobs(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn prompt_tokens(&self) -> Tokens {
        Tokens(self.prompt_tokens)
    }

    pub(super) fn running(&self) -> &[Occupant] {
        &self.running
    }

    /// Notes how far a running job has come.
    pub(super) fn note_progress(&mut self, id: JobId, remains: Work, now: Instant) {
        if let Some(running) = self.running.iter_mut().find(|running| running.job.id == id) {
            running.remains = remains;
            if remains.generated > Tokens(0) {
                running.first_token.get_or_insert(now);
            }
        }
    }

    pub(super) fn learn(&mut self, taken: SlotUsage) {
        self.pace.learn(taken);
    }

    /// Remembers a job that had a slot.
    pub(super) fn remember(&mut self, past: FinishedJob) {
        self.history.add(past);
    }

    /// JobCounts a job that never had one.
    pub(super) const fn count(&mut self, outcome: JobOutcome) {
        self.history.count(outcome);
    }

    /// Everything that is to be seen.
    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let share = |work| self.pace.share_of(work, self.slots.len());
        let mut left = self.running.iter().map(|running| share(running.remains)).sum();
        let wait = |waiting: &QueuedJob| {
            let time = now.saturating_duration_since(waiting.at);
            let shown = WaitingJobInfo { job: waiting.entry(), time, left };
            left = left.saturating_add(share(waiting.work()));
            shown
        };
        Snapshot {
            slots: self.slots.len(),
            limits: self.limits,
            accepting: self.accepting,
            waiting: self.in_turn().into_iter().map(|place| &self.waiting[place]).map(wait).collect(),
            running: self.running.iter().map(|running| running.show(now)).collect(),
            past: self.history.past(),
            counts: self.history.counts(),
        }
    }

    /// Places of all that wait, in the order of their turns: whatever has to be loaded for them.
    fn in_turn(&self) -> Vec<usize> {
        let (mut order, mut places) = (self.order, Vec::with_capacity(self.waiting.len()));
        let rule = SlotRule { most_switches: None, switches: 0, most_passes: 0, is_loaded: &|_| true };
        while let Some(next) = order.choose(self.candidates(&places), &rule) {
            order.took(next);
            places.push(next.place);
        }
        places
    }

    /// Those that wait, with their places, but for the ones that others take.
    fn candidates<'a>(&'a self, given: &'a [usize]) -> impl Iterator<Item = (usize, Candidate<'a>)> + Clone {
        let waiting = self.waiting.iter().enumerate().filter(|(place, _)| !given.contains(place));
        waiting.map(|(place, waiting)| (place, waiting.candidate()))
    }

    /// The free slots that take jobs.
    fn free(&self) -> Vec<usize> {
        let is_open = |slot: &usize| self.routing.as_ref().is_none_or(|routing| (routing.is_open)(*slot));
        let is_free = |slot: &usize| self.running.iter().all(|running| running.slot != *slot);
        (0..self.slots.len()).filter(|slot| is_free(slot) && is_open(slot)).collect()
    }

    /// Where no model is anywhere in particular, it is everywhere.
    fn has_loaded(&self, slot: usize, model: &ModelId) -> bool {
        self.routing.as_ref().is_none_or(|routing| (routing.is_loaded)(slot, model))
    }

    /// What this slot takes: free slots are given jobs one after the other, until it is this one's turn.
    fn next_for(&self, slot: usize) -> Option<Pick> {
        let (mut order, mut free, mut given) = (self.order, self.free(), Vec::new());
        while !free.is_empty() {
            let model = order.first(self.candidates(&given))?;
            let has_it = free.iter().position(|slot| self.has_loaded(*slot, model));
            let longest = (0..free.len()).min_by_key(|at| self.slots[free[*at]].freed)?;
            let taker = free.remove(has_it.unwrap_or(longest));
            let next = order.choose(
                self.candidates(&given),
                &self.rule_of(taker, &|model| self.has_loaded(taker, model)),
            )?;
            if taker == slot {
                return Some(next);
            }
            order.took(next);
            given.push(next.place);
        }
        None
    }

    fn rule_of<'a>(&self, slot: usize, is_loaded: &'a dyn Fn(&ModelId) -> bool) -> SlotRule<'a> {
        SlotRule {
            most_switches: self.routing.as_ref().and_then(|routing| routing.most_switches),
            switches: self.slots[slot].switches,
            most_passes: self.slots.len(),
            is_loaded,
        }
    }

    fn remove_at(&mut self, place: usize) -> Option<QueuedJob> {
        let removed = self.waiting.remove(place)?;
        self.prompt_tokens -= removed.job.prompt.len();
        Some(removed)
    }

    /// Jobs that free slots are about to take wait for nothing, and take no place in the queue. One too large for the token
    /// bound has the queue to itself: it is the context length that limits a single prompt.
    fn has_room_for(&self, prompt: Tokens) -> bool {
        let free = self.free().len();
        if self.waiting.len() < free {
            return true;
        }
        let about_to_run = self.waiting.iter().take(free);
        let queued = self.prompt_tokens - about_to_run.map(|next| next.job.prompt.len()).sum::<usize>();
        let jobs = self.waiting.len() - free;
        let fits = queued.saturating_add(prompt.0) <= self.limits.max_prompt_tokens.0;
        jobs < self.limits.max_jobs.get() && (jobs == 0 || fits)
    }

    fn busy(&self, priority: Priority) -> SubmitError {
        let running = self.running.iter().map(|running| running.remains);
        let ahead = running.chain(self.ahead_of(priority));
        SubmitError::Busy {
            jobs: self.jobs(),
            max_jobs: self.limits.max_jobs,
            prompt_tokens: self.prompt_tokens(),
            max_prompt_tokens: self.limits.max_prompt_tokens,
            retry_after: self.pace.retry_after(ahead, self.slots.len()),
        }
    }

    /// What would have its turn before a job of this priority that came now.
    fn ahead_of(&self, priority: Priority) -> impl Iterator<Item = Work> {
        let (batch, interactive): (Vec<_>, Vec<_>) =
            self.waiting.iter().partition(|waiting| waiting.terms.priority == Priority::Batch);
        let turns = match priority {
            Priority::Batch => batch.len(),
            Priority::Interactive => self.order.batch_turns(interactive.len()),
        };
        batch.into_iter().take(turns).chain(interactive).map(QueuedJob::work)
    }
}

#[cfg(test)]
mod tests;
