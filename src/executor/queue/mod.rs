//! Waiting and running jobs, and whether there is room. Pure: callers pass the time.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    num::NonZeroUsize,
    sync::Arc,
};

use tokio::{sync::mpsc::UnboundedSender, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    estimate::{SlotUsage, SpeedEstimate, Work},
    limits::{Limits, SubmitError, Terms},
    queue_change::AcceptedGroup,
    scheduling::{Candidate, Pick, Scheduler, SlotRule},
    snapshot::{Caller, FinishedJob, History, JobInfo, JobOutcome, RunningJobInfo, Snapshot, WaitingJobInfo},
};
use crate::{
    job::{EndReason, Event, Failure, Finish, Job, JobId, MemoryReport, ModelId, Priority, Timings, Usage},
    otel::JobSpans,
    units::Tokens,
};

/// An accepted job, with the channel to its client.
#[derive(Debug)]
pub(super) struct QueuedJob {
    pub(super) job: Job,
    /// The first of the jobs that a slot takes together.
    pub(super) group: JobId,
    pub(super) caller: Caller,
    pub(super) events: UnboundedSender<Event>,
    pub(super) cancel: CancellationToken,
    pub(super) at: Instant,
    pub(super) terms: Terms,
    /// Spans of its phases, if the request is traced.
    pub(super) spans: Option<JobSpans>,
    /// How often a job with a loaded model was taken instead of it.
    pub(super) passed_over: usize,
    /// `None` if the deadline lies beyond the clock's range.
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
        let (group, caller, passed_over) = (job.id, Caller::default(), 0);
        Self {
            job,
            group,
            caller,
            events,
            cancel,
            at,
            terms,
            spans,
            passed_over,
            queue_deadline,
            total_deadline,
        }
    }

    /// Its public information.
    pub(super) fn info(&self) -> JobInfo {
        JobInfo {
            id: self.job.id,
            caller: self.caller.clone(),
            priority: self.terms.priority,
            model: self.job.model.clone(),
            prompt: Tokens(self.job.prompt.len()),
            max_new: Tokens(self.job.max_new_tokens),
        }
    }

    /// Sends an event to the client, which may have left.
    pub(super) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Tells the client that the job was cancelled before it started.
    pub(super) fn send_cancelled(&self) {
        self.send(Event::Done(Finish {
            reason: EndReason::Cancelled,
            usage: Usage { prompt_tokens: self.job.prompt.len(), ..Usage::default() },
            timings: Timings::default(),
            memory: MemoryReport::default(),
        }));
    }

    fn candidate(&self) -> Candidate<'_> {
        let (priority, model) = (self.terms.priority, &self.job.model);
        Candidate { priority, model, passed_over: self.passed_over }
    }

    /// The earlier of its deadlines.
    fn deadline(&self) -> Option<Instant> {
        self.queue_deadline.into_iter().chain(self.total_deadline).min()
    }

    /// Which deadline has passed at `now`, if any.
    fn overdue(&self, now: Instant) -> Option<Failure> {
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
        let Terms { max_time, is_limited, .. } = self.terms;
        Work { prompt, max_new, generated: Tokens(0), max_time, is_limited }
    }
}

/// A running job.
#[derive(Clone, Debug)]
pub(super) struct Occupant {
    pub(super) job: JobInfo,
    pub(super) slot: usize,
    pub(super) since: Instant,
    pub(super) remains: Work,
    /// When its first token came.
    first_token: Option<Instant>,
}

impl Occupant {
    fn info(&self, now: Instant) -> RunningJobInfo {
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

/// Which slot takes which job. Without it, jobs run in order of arrival.
///
/// A job goes to a free slot that has its model loaded, else to the slot that has been free for longest.
///
/// Alternating jobs of two models would load both again and again. With `max_switches`, a slot loads at most this many models in a
/// row while a job for a loaded model waits. A job that was passed over is first in line for the next switch, so it waits for the
/// jobs of `max_switches` switches and one more at most.
#[derive(Clone)]
pub struct Routing {
    /// Maximum number of model switches in a row; `None` means no limit.
    pub max_switches: Option<NonZeroUsize>,
    /// Whether a slot, by its number, has a model loaded.
    pub is_loaded: Arc<IsLoaded>,
    /// Whether a slot should take jobs. When the answer changes, call [`Executor::look_again`](super::Executor::look_again).
    pub is_open: Arc<dyn Fn(usize) -> bool + Send + Sync>,
}

impl fmt::Debug for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routing").field("max_switches", &self.max_switches).finish_non_exhaustive()
    }
}

/// Past of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct SlotHistory {
    /// Model switches in a row.
    switches: usize,
    /// Number of finished jobs of all slots when this slot became free; 0 if it has run no job.
    freed: u64,
}

/// Waiting jobs, running jobs, and the measured speed.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    waiting: VecDeque<QueuedJob>,
    prompt_tokens: usize,
    /// Running jobs, at most one group per slot.
    running: Vec<Occupant>,
    /// One per device.
    slots: Vec<SlotHistory>,
    speed: SpeedEstimate,
    history: History,
    accepting: bool,
    order: Scheduler,
    routing: Option<Routing>,
    /// Finished jobs.
    done: u64,
    /// Slots that can take jobs, where that differs from the number of slots: a remote slot may be away.
    live_slots: Option<usize>,
    /// Jobs that wait for the same slots in queues of other processes.
    waiting_elsewhere: usize,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            prompt_tokens: 0,
            running: Vec::new(),
            slots: vec![SlotHistory::default()],
            speed: SpeedEstimate::default(),
            history: History::default(),
            accepting: true,
            order: Scheduler::new(),
            routing: None,
            done: 0,
            live_slots: None,
            waiting_elsewhere: 0,
        }
    }

    pub(super) fn check_room(&self, prompt: Tokens, priority: Priority) -> Result<(), SubmitError> {
        match (self.accepting, self.has_room_for(prompt)) {
            (false, _) => Err(SubmitError::Stopped),
            (true, false) => Err(self.busy(priority)),
            (true, true) => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn push(&mut self, accepted: QueuedJob) -> Result<(), SubmitError> {
        self.push_group(vec![accepted])
    }

    /// Adds jobs of one group, which a slot takes together, or none of them.
    pub(super) fn push_group(&mut self, accepted: Vec<QueuedJob>) -> Result<(), SubmitError> {
        let prompt_tokens = accepted.iter().map(|accepted| accepted.job.prompt.len()).sum();
        let priority = accepted.first().map(|accepted| accepted.terms.priority).unwrap_or_default();
        self.check_room(Tokens(prompt_tokens), priority)?;
        self.prompt_tokens += prompt_tokens;
        self.waiting.extend(accepted);
        Ok(())
    }

    /// Sets the number of slots, one per device.
    pub(super) fn set_slots(&mut self, slots: usize) {
        self.slots = vec![SlotHistory::default(); slots];
    }

    /// Sets the number of slots of other machines, and how many of them can take jobs now.
    pub(super) fn set_remote_slots(&mut self, slots: usize, live: usize) {
        self.slots.resize(slots.max(1), SlotHistory::default());
        self.live_slots = Some(live);
    }

    /// Sets the number of jobs that wait for the same slots in queues of other processes.
    pub(super) const fn set_waiting_elsewhere(&mut self, jobs: usize) {
        self.waiting_elsewhere = jobs;
    }

    /// What other machines need to know of a waiting group.
    pub(super) fn waiting_group(&self, group: JobId) -> Option<AcceptedGroup> {
        let of_group = |waiting: &&QueuedJob| waiting.group == group;
        let first = self.waiting.iter().find(of_group)?;
        Some(AcceptedGroup {
            group,
            model: first.job.model.clone(),
            terms: first.terms,
            prompt: Tokens(self.waiting.iter().filter(of_group).map(|job| job.job.prompt.len()).sum()),
            accepted: first.at,
            trace: first.job.trace.clone(),
        })
    }

    /// The first waiting job of a group.
    pub(super) fn first_of(&self, group: JobId) -> Option<Job> {
        self.waiting.iter().find(|waiting| waiting.group == group).map(|first| first.job.clone())
    }

    /// Gives the waiting jobs of a group to a slot.
    pub(super) fn take_group(&mut self, group: JobId, slot: usize, now: Instant) -> Vec<QueuedJob> {
        self.take_rest(group, slot, now)
    }

    /// Notes that the running jobs with these ids have moved to another slot.
    pub(super) fn move_to(&mut self, jobs: &[JobId], slot: usize) {
        for running in self.running.iter_mut().filter(|running| jobs.contains(&running.job.id)) {
            running.slot = slot;
        }
    }

    fn estimating_slots(&self) -> usize {
        self.live_slots.unwrap_or(self.slots.len())
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn route(&mut self, routing: Routing) {
        self.routing = Some(routing);
    }

    pub(super) fn limit_overtakes(&mut self, max: usize) {
        self.order.max_overtakes = max;
    }

    /// The next job for a free slot: the one that is next, unless another free slot has its model loaded or it would need too many
    /// model switches.
    pub(super) fn take(&mut self, slot: usize, now: Instant) -> Option<QueuedJob> {
        let next = self.next_for(slot)?;
        self.order.took(next);
        if let Some(past) = self.slots.get_mut(slot) {
            past.switches = next.switches;
        }
        if let Some(passed_over) = next.passed_over.and_then(|index| self.waiting.get_mut(index)) {
            passed_over.passed_over += 1;
        }
        let next = self.remove_at(next.index)?;
        self.occupy(&next, slot, now);
        Some(next)
    }

    /// The other waiting jobs of a group whose first one a slot has taken.
    pub(super) fn take_rest(&mut self, group: JobId, slot: usize, now: Instant) -> Vec<QueuedJob> {
        let mut rest = Vec::new();
        while let Some(index) = self.waiting.iter().position(|waiting| waiting.group == group)
            && let Some(next) = self.remove_at(index)
        {
            self.occupy(&next, slot, now);
            rest.push(next);
        }
        rest
    }

    fn occupy(&mut self, next: &QueuedJob, slot: usize, now: Instant) {
        self.running.push(Occupant {
            job: next.info(),
            slot,
            since: now,
            remains: next.work(),
            first_token: None,
        });
    }

    /// Frees the slot of a job.
    pub(super) fn release(&mut self, id: JobId) {
        self.done += 1;
        for left in self.running.extract_if(.., |running| running.job.id == id) {
            if let Some(past) = self.slots.get_mut(left.slot) {
                past.freed = self.done;
            }
        }
    }

    /// Removes a waiting job.
    pub(super) fn remove(&mut self, id: JobId) -> Option<QueuedJob> {
        let index = self.waiting.iter().position(|waiting| waiting.job.id == id)?;
        self.remove_at(index)
    }

    /// Removes the job that has waited longest.
    pub(super) fn remove_first(&mut self) -> Option<QueuedJob> {
        self.remove_at(0)
    }

    /// Removes the first job whose deadline has passed; returns it with the failure.
    pub(super) fn remove_overdue(&mut self, now: Instant) -> Option<(QueuedJob, Failure)> {
        let (index, failure) =
            self.waiting.iter().enumerate().find_map(|(index, w)| Some((index, w.overdue(now)?)))?;
        Some((self.remove_at(index)?, failure))
    }

    /// The next deadline of a waiting job.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(QueuedJob::deadline).min()
    }

    /// Rejects new jobs from now on.
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

    /// Updates the progress of a running job.
    pub(super) fn note_progress(&mut self, id: JobId, remains: Work, now: Instant) {
        if let Some(running) = self.running.iter_mut().find(|running| running.job.id == id) {
            running.remains = remains;
            if remains.generated > Tokens(0) {
                running.first_token.get_or_insert(now);
            }
        }
    }

    pub(super) fn learn(&mut self, taken: SlotUsage) {
        self.speed.learn(taken);
    }

    /// Adds a finished job to the history.
    pub(super) fn remember(&mut self, past: FinishedJob) {
        self.history.add(past);
    }

    /// Counts a job that never had a slot.
    pub(super) const fn count(&mut self, outcome: JobOutcome) {
        self.history.count(outcome);
    }

    /// Information about all jobs.
    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let share = |work| self.speed.share_of(work, self.estimating_slots());
        let mut wait_time = self.running.iter().map(|running| share(running.remains)).sum();
        let wait = |waiting: &QueuedJob| {
            let time = now.saturating_duration_since(waiting.at);
            let info = WaitingJobInfo { job: waiting.info(), time, left: wait_time };
            wait_time = wait_time.saturating_add(share(waiting.work()));
            info
        };
        Snapshot {
            slots: self.slots.len(),
            limits: self.limits,
            accepting: self.accepting,
            waiting: self.in_turn().into_iter().map(|index| &self.waiting[index]).map(wait).collect(),
            running: self.running.iter().map(|running| running.info(now)).collect(),
            past: self.history.past(),
            counts: self.history.counts(),
        }
    }

    /// Indices of waiting jobs in the order in which they will run, without regard to loaded models.
    fn in_turn(&self) -> Vec<usize> {
        let (mut order, mut indices) = (self.order, Vec::with_capacity(self.waiting.len()));
        let rule = SlotRule { max_switches: None, switches: 0, max_passes: 0, is_loaded: &|_| true };
        while let Some(next) = order.choose(self.candidates(&indices), &rule) {
            order.took(next);
            indices.push(next.index);
        }
        indices
    }

    /// Waiting jobs with their indices, without those in `given`.
    fn candidates<'a>(&'a self, given: &'a [usize]) -> impl Iterator<Item = (usize, Candidate<'a>)> + Clone {
        let waiting = self.waiting.iter().enumerate().filter(|(index, _)| !given.contains(index));
        waiting.map(|(index, waiting)| (index, waiting.candidate()))
    }

    /// Free slots that take jobs.
    fn free(&self) -> Vec<usize> {
        let is_open = |slot: &usize| self.routing.as_ref().is_none_or(|routing| (routing.is_open)(*slot));
        let is_free = |slot: &usize| self.running.iter().all(|running| running.slot != *slot);
        (0..self.slots.len()).filter(|slot| is_free(slot) && is_open(slot)).collect()
    }

    /// Free slots of `live` ones. A slot runs the jobs of one group. While jobs wait elsewhere no slot is free, although this queue
    /// does not know what the slots run.
    fn free_of(&self, live: usize) -> usize {
        if self.waiting_elsewhere > 0 {
            return 0;
        }
        let busy: BTreeSet<usize> = self.running.iter().map(|running| running.slot).collect();
        live.saturating_sub(busy.len())
    }

    /// Whether a slot has a model loaded; always true without routing.
    fn has_loaded(&self, slot: usize, model: &ModelId) -> bool {
        self.routing.as_ref().is_none_or(|routing| (routing.is_loaded)(slot, model))
    }

    /// The job that this slot takes, if jobs are given to the free slots one after another.
    fn next_for(&self, slot: usize) -> Option<Pick> {
        let (mut order, mut free, mut given) = (self.order, self.free(), Vec::new());
        while !free.is_empty() {
            let model = order.first(self.candidates(&given))?;
            let has_it = free.iter().position(|slot| self.has_loaded(*slot, model));
            let longest = (0..free.len()).min_by_key(|at| self.slots[free[*at]].freed)?;
            let taker = free.remove(has_it.unwrap_or(longest));
            let next = order.choose(
                self.candidates(&given),
                &self.slot_rule(taker, &|model| self.has_loaded(taker, model)),
            )?;
            if taker == slot {
                return Some(next);
            }
            order.took(next);
            given.push(next.index);
        }
        None
    }

    fn slot_rule<'a>(&self, slot: usize, is_loaded: &'a dyn Fn(&ModelId) -> bool) -> SlotRule<'a> {
        SlotRule {
            max_switches: self.routing.as_ref().and_then(|routing| routing.max_switches),
            switches: self.slots[slot].switches,
            max_passes: self.slots.len(),
            is_loaded,
        }
    }

    fn remove_at(&mut self, index: usize) -> Option<QueuedJob> {
        let removed = self.waiting.remove(index)?;
        self.prompt_tokens -= removed.job.prompt.len();
        Some(removed)
    }

    /// A group counts as one job. Those that free slots are about to take do not count. Prompts above the token limit are accepted
    /// if no other job waits, because each is limited by the context length.
    fn has_room_for(&self, prompt: Tokens) -> bool {
        let free = self.live_slots.map_or_else(|| self.free().len(), |live| self.free_of(live));
        let (mut groups, mut queued, mut last) = (self.waiting_elsewhere, 0, None);
        for waiting in &self.waiting {
            // The jobs of a group wait side by side.
            if last.replace(waiting.group) != Some(waiting.group) {
                groups += 1;
            }
            if groups > free {
                queued += waiting.job.prompt.len();
            }
        }
        if groups < free {
            return true;
        }
        let jobs = groups - free;
        let fits = queued.saturating_add(prompt.0) <= self.limits.max_prompt_tokens.0;
        jobs < self.limits.max_jobs.get() && (jobs == 0 || fits)
    }

    fn busy(&self, priority: Priority) -> SubmitError {
        let running = self.running.iter().map(|running| running.remains);
        let ahead = running.chain(self.ahead_of(priority)).chain(self.elsewhere());
        SubmitError::Busy {
            jobs: self.jobs() + self.waiting_elsewhere,
            max_jobs: self.limits.max_jobs,
            prompt_tokens: self.prompt_tokens(),
            max_prompt_tokens: self.limits.max_prompt_tokens,
            retry_after: self.speed.retry_after(ahead, self.estimating_slots()),
        }
    }

    /// Jobs of other queues, as if they were like those of this one.
    fn elsewhere(&self) -> impl Iterator<Item = Work> {
        let typical = self.waiting.front().map(QueuedJob::work);
        let typical = typical.or_else(|| self.running.first().map(|running| running.remains));
        std::iter::repeat_n(typical.unwrap_or_default(), self.waiting_elsewhere)
    }

    /// Jobs that would run before a new job of this priority.
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
