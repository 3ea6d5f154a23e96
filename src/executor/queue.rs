//! Who waits, who runs, and whether there is room: plain data, told the time, never asking for it.

use std::collections::VecDeque;

use tokio::{sync::mpsc::UnboundedSender, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, SubmitError, Terms,
    estimate::{Pace, Taken, Work},
    order::{Candidate, Order, Switching},
};
use crate::{
    job::{Event, Failure, Finish, FinishReason, Job, JobId, MemoryReport, Priority, Timings, Usage},
    traces::JobSpans,
    units::Tokens,
};

/// A job that was accepted, and the way back to whoever asked.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) job: Job,
    pub(super) events: UnboundedSender<Event>,
    pub(super) cancel: CancellationToken,
    pub(super) at: Instant,
    pub(super) terms: Terms,
    /// Where its request is traced.
    pub(super) spans: Option<JobSpans>,
    /// The order of jobs passed it over for one whose model was loaded.
    was_passed_over: bool,
    /// `None` is never: the deadline lies beyond what the clock can say.
    pub(super) queue_deadline: Option<Instant>,
    pub(super) total_deadline: Option<Instant>,
}

impl Accepted {
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
        let was_passed_over = false;
        Self { job, events, cancel, at, terms, spans, was_passed_over, queue_deadline, total_deadline }
    }

    /// Tells the client; one that is gone does not hear it.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Tells the client that its own cancellation took effect before the job had the slot.
    pub(super) fn tell_cancelled(&self) {
        self.tell(Event::Done(Finish {
            reason: FinishReason::Cancelled,
            usage: Usage { prompt_tokens: self.job.prompt.len(), completion_tokens: 0 },
            timings: Timings::default(),
            memory: MemoryReport::default(),
        }));
    }

    fn candidate(&self) -> Candidate<'_> {
        let (priority, model) = (self.terms.priority, &self.job.model);
        Candidate { priority, model, was_passed_over: self.was_passed_over }
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) id: JobId,
    pub(super) since: Instant,
    pub(super) remains: Work,
}

/// The queue, the slot's occupant, and what is known of the slot's speed.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    waiting: VecDeque<Accepted>,
    prompt_tokens: usize,
    /// Jobs that have a slot, at most one for each.
    running: Vec<Running>,
    slots: usize,
    pace: Pace,
    accepting: bool,
    order: Order,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            prompt_tokens: 0,
            running: Vec::new(),
            slots: 1,
            pace: Pace::default(),
            accepting: true,
            order: Order::new(),
        }
    }

    pub(super) fn check_room(&self, prompt: Tokens, priority: Priority) -> Result<(), SubmitError> {
        match (self.accepting, self.has_room_for(prompt)) {
            (false, _) => Err(SubmitError::Stopped),
            (true, false) => Err(self.busy(priority)),
            (true, true) => Ok(()),
        }
    }

    pub(super) fn push(&mut self, accepted: Accepted) -> Result<(), SubmitError> {
        self.check_room(Tokens(accepted.job.prompt.len()), accepted.terms.priority)?;
        self.prompt_tokens += accepted.job.prompt.len();
        self.waiting.push_back(accepted);
        Ok(())
    }

    /// There is one slot for each device.
    pub(super) fn set_slots(&mut self, slots: usize) {
        self.slots = slots;
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    pub(super) fn limit_switches(&mut self, switching: Switching) {
        self.order.switching = Some(switching);
    }

    pub(super) fn limit_overtakes(&mut self, most: usize) {
        self.order.max_overtakes = most;
    }

    /// The next job takes a slot, of which one must be free.
    pub(super) fn take(&mut self, now: Instant) -> Option<Accepted> {
        debug_assert!(self.running.len() < self.slots, "no slot is free");
        let next = self.order.next(self.waiting.iter().map(Accepted::candidate))?;
        if let Some(passed_over) = next.passed_over.and_then(|place| self.waiting.get_mut(place)) {
            passed_over.was_passed_over = true;
        }
        let next = self.remove_at(next.place)?;
        self.running.push(Running { id: next.job.id, since: now, remains: next.work() });
        Some(next)
    }

    /// The slot of a job is free again.
    pub(super) fn release(&mut self, id: JobId) {
        self.running.retain(|running| running.id != id);
    }

    /// Removes a job that still waits.
    pub(super) fn remove(&mut self, id: JobId) -> Option<Accepted> {
        let place = self.waiting.iter().position(|waiting| waiting.job.id == id)?;
        self.remove_at(place)
    }

    /// Removes the job that waits for longest.
    pub(super) fn remove_first(&mut self) -> Option<Accepted> {
        self.remove_at(0)
    }

    /// Removes the first job that has waited for too long, with the reason.
    pub(super) fn remove_given_up(&mut self, now: Instant) -> Option<(Accepted, Failure)> {
        let (place, failure) =
            self.waiting.iter().enumerate().find_map(|(place, w)| Some((place, w.given_up(now)?)))?;
        Some((self.remove_at(place)?, failure))
    }

    /// When the next of the waiting jobs has waited for too long.
    pub(super) fn next_given_up(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(Accepted::gives_up).min()
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

    pub(super) fn running(&self) -> &[Running] {
        &self.running
    }

    /// Notes how far a running job has come.
    pub(super) fn note_progress(&mut self, id: JobId, remains: Work) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.remains = remains;
        }
    }

    pub(super) fn learn(&mut self, taken: Taken) {
        self.pace.learn(taken);
    }

    fn remove_at(&mut self, place: usize) -> Option<Accepted> {
        let removed = self.waiting.remove(place)?;
        self.prompt_tokens -= removed.job.prompt.len();
        Some(removed)
    }

    /// Jobs that free slots are about to take wait for nothing, and take no place in the queue. One too large for the token
    /// bound has the queue to itself: it is the context length that limits a single prompt.
    fn has_room_for(&self, prompt: Tokens) -> bool {
        let free = self.slots.saturating_sub(self.running.len());
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
            retry_after: self.pace.retry_after(ahead, self.slots),
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
        batch.into_iter().take(turns).chain(interactive).map(Accepted::work)
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, sync::Arc, time::Duration};

    use tokio::sync::mpsc::unbounded_channel;

    use super::{super::Deadlines, *};
    use crate::job::ModelId;

    const FOREVER: Deadlines = Deadlines { queue: Duration::MAX, total: Duration::MAX };

    fn queue(max_jobs: usize, max_prompt_tokens: usize) -> Queue {
        let max_jobs = NonZeroUsize::new(max_jobs).unwrap();
        Queue::new(Limits { max_jobs, max_prompt_tokens: Tokens(max_prompt_tokens) })
    }

    fn job_of(id: u64, prompt_tokens: usize, deadlines: Deadlines, at: Instant) -> Accepted {
        let job = Job::new(JobId(id), vec![7; prompt_tokens], 4);
        Accepted::new(job, unbounded_channel().0, CancellationToken::new(), at, deadlines.into())
    }

    #[test]
    fn the_job_that_a_free_slot_is_about_to_take_is_not_counted() {
        let (mut queue, now) = (queue(1, 100), Instant::now());
        queue.push(job_of(1, 1, FOREVER, now)).unwrap();
        queue.push(job_of(2, 1, FOREVER, now)).unwrap();
        assert!(matches!(queue.push(job_of(3, 1, FOREVER, now)), Err(SubmitError::Busy { jobs: 2, .. })));
        assert_eq!(queue.take(now).unwrap().job.id, JobId(1));
        assert!(matches!(queue.push(job_of(3, 1, FOREVER, now)), Err(SubmitError::Busy { jobs: 1, .. })));
    }

    #[test]
    fn every_slot_takes_a_job_before_any_has_to_wait() {
        let (mut queue, now) = (queue(1, 100), Instant::now());
        queue.set_slots(2);
        for id in 1..=3 {
            queue.push(job_of(id, 1, FOREVER, now)).unwrap();
        }
        assert!(queue.push(job_of(4, 1, FOREVER, now)).is_err());
        assert_eq!(queue.take(now).unwrap().job.id, JobId(1));
        assert_eq!(queue.take(now).unwrap().job.id, JobId(2));
        assert!(queue.push(job_of(4, 1, FOREVER, now)).is_err());
        queue.release(JobId(1));
        queue.push(job_of(4, 1, FOREVER, now)).unwrap();
        let running: Vec<_> = queue.running().iter().map(|running| running.id.0).collect();
        assert_eq!(running, [2]);
    }

    #[test]
    fn prompt_tokens_bound_the_queue_but_never_a_job_that_is_alone_in_it() {
        let (mut queue, now) = (queue(9, 10), Instant::now());
        queue.push(job_of(1, 50, FOREVER, now)).unwrap();
        queue.take(now).unwrap();
        queue.push(job_of(2, 50, FOREVER, now)).unwrap();
        assert!(queue.push(job_of(3, 1, FOREVER, now)).is_err());
        queue.remove(JobId(2)).unwrap();
        queue.push(job_of(4, 4, FOREVER, now)).unwrap();
        queue.push(job_of(5, 6, FOREVER, now)).unwrap();
        assert!(queue.push(job_of(6, 1, FOREVER, now)).is_err());
        assert_eq!(queue.prompt_tokens(), Tokens(10));
    }

    #[test]
    fn jobs_leave_in_the_order_they_came_also_around_one_that_left_early() {
        let (mut queue, now) = (queue(9, 100), Instant::now());
        for id in 1..=4 {
            queue.push(job_of(id, 1, FOREVER, now)).unwrap();
        }
        queue.remove(JobId(2)).unwrap();
        assert!(queue.remove(JobId(2)).is_none());
        let mut order = vec![];
        while let Some(next) = queue.take(now) {
            order.push(next.job.id.0);
            queue.release(next.job.id);
        }
        assert_eq!(order, [1, 3, 4]);
        assert!(queue.is_idle());
    }

    /// The order in which jobs of these models are taken when the slot holds the model of the last one.
    fn order(models: &str, most_switches: usize) -> String {
        let (mut queue, now) = (queue(99, 100), Instant::now());
        let loaded = Arc::new(std::sync::Mutex::new(ModelId::default()));
        let most = NonZeroUsize::new(most_switches).unwrap();
        let held = Arc::clone(&loaded);
        let is_loaded = Arc::new(move |model: &ModelId| *model == *held.lock().unwrap());
        queue.limit_switches(Switching { most, is_loaded });
        for (id, model) in (1..).zip(models.chars()) {
            let mut accepted = job_of(id, 1, FOREVER, now);
            accepted.job.model = ModelId(model.into());
            queue.push(accepted).unwrap();
        }
        let mut order = String::new();
        while let Some(next) = queue.take(now) {
            order += &next.job.model.0;
            queue.release(next.job.id);
            *loaded.lock().unwrap() = next.job.model;
        }
        order
    }

    #[test]
    fn jobs_are_taken_in_the_order_they_came_until_there_were_too_many_switches_in_a_row() {
        assert_eq!(order("ababab", 99), "ababab");
        assert_eq!(order("ababab", 1), "aabbab");
        assert_eq!(order("ababab", 2), "abbaab");
        assert_eq!(order("aabbcc", 1), "aabbcc");
        assert_eq!(order("abcabc", 3), "abccab");
    }

    #[test]
    fn a_job_that_is_passed_over_comes_next() {
        // However many there are of the loaded model, the other one waits for one of them.
        assert_eq!(order("abaaaaaaaa", 1), "aabaaaaaaa");
    }

    fn batch_of(id: u64, at: Instant) -> Accepted {
        let mut accepted = job_of(id, 1, FOREVER, at);
        accepted.terms.priority = Priority::Batch;
        accepted
    }

    #[test]
    fn an_interactive_job_that_is_refused_is_not_told_to_wait_for_the_batch() {
        let (mut queue, now) = (queue(3, 100), Instant::now());
        for id in 1..=4 {
            queue.push(batch_of(id, now)).unwrap();
        }
        let long =
            |accepted: Accepted| Accepted { job: Job { max_new_tokens: 1_000, ..accepted.job }, ..accepted };
        queue.remove(JobId(4)).unwrap();
        queue.push(long(batch_of(4, now))).unwrap();
        assert_eq!(queue.take(now).unwrap().job.id, JobId(1));
        let wait = |refused| match refused {
            Err(SubmitError::Busy { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        };
        let (batch, interactive) = (queue.push(batch_of(5, now)), queue.push(job_of(5, 1, FOREVER, now)));
        assert!(wait(batch) > 10 * wait(interactive), "{:?}", queue.ahead_of(Priority::Interactive).count());
    }

    #[test]
    fn an_interactive_job_takes_no_place_from_a_batch_job_that_waits() {
        let (mut queue, now) = (queue(1, 100), Instant::now());
        queue.push(batch_of(1, now)).unwrap();
        queue.push(batch_of(2, now)).unwrap();
        assert!(queue.push(job_of(3, 1, FOREVER, now)).is_err());
        assert_eq!(queue.jobs(), 2);
    }

    #[test]
    fn whichever_deadline_comes_first_is_the_reason() {
        let (mut queue, now) = (queue(9, 100), Instant::now());
        let seconds = Duration::from_secs;
        queue.push(job_of(1, 1, FOREVER, now)).unwrap();
        queue.push(job_of(2, 1, Deadlines { queue: seconds(3), total: seconds(9) }, now)).unwrap();
        queue.push(job_of(3, 1, Deadlines { queue: seconds(9), total: seconds(2) }, now)).unwrap();
        assert_eq!(queue.next_given_up(), Some(now + seconds(2)));
        assert!(queue.remove_given_up(now + seconds(1)).is_none());
        let later = now + seconds(3);
        let (gone, why) = queue.remove_given_up(later).unwrap();
        assert_eq!((gone.job.id, why), (JobId(2), Failure::QueueTimeout { waited: seconds(3) }));
        let (gone, why) = queue.remove_given_up(later).unwrap();
        assert_eq!((gone.job.id, why), (JobId(3), Failure::Deadline { elapsed: seconds(3) }));
        assert_eq!((queue.next_given_up(), queue.jobs()), (None, 1));
    }

    #[test]
    fn a_closed_queue_accepts_nothing_and_keeps_what_it_has() {
        let (mut queue, now) = (queue(9, 100), Instant::now());
        queue.push(job_of(1, 1, FOREVER, now)).unwrap();
        queue.close();
        assert!(matches!(queue.push(job_of(2, 1, FOREVER, now)), Err(SubmitError::Stopped)));
        assert_eq!(queue.jobs(), 1);
    }
}
