//! The bounded queue and the slot: one for each device, and so one on almost every machine.
//!
//! The slot is a closure that turns a job into a future: the executor knows neither process nor device, and its tests
//! need none. Everything else waits in a queue that is bounded twice, by jobs and by their prompt tokens, because
//! eight short questions and eight books are not the same promise. A queue that is full says so at once, and when to
//! come back.
//!
//! Who owns what: a [`Ticket`] is the client's end. Dropping it is how a client leaves: a waiting job is gone from the
//! queue at once, a running one is cancelled, and neither touches any other job. Each job has its own cancel token,
//! looked at again when it is taken off the queue.
//!
//! Events travel over an unbounded channel on purpose. A job says at most `max_new_tokens` and a few more, so it is
//! bounded in fact, and a client that reads slowly never holds the slot.

mod estimate;
mod queue;
mod scheduling;
mod slot;
mod snapshot;

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    estimate::{SlotUsage, Work},
    queue::{Queue, QueuedJob},
};
pub use self::{
    queue::Routing,
    snapshot::{
        Caller, FinishedJob, JobCounts, JobInfo, JobOutcome, RunningJobInfo, Snapshot, WaitingJobInfo,
    },
};
use crate::{
    job::{Event, Failure, Finish, Job, JobId, Priority},
    metrics::Metrics,
    units::Tokens,
};

/// How long [`Executor::drain`] waits for a runner that was told to stop.
const STOPPING: Duration = Duration::from_secs(1);

/// What the queue holds at most; the running job is not in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs that wait.
    pub max_jobs: NonZeroUsize,
    /// Prompt tokens of all that wait. A larger prompt is accepted when nothing else waits.
    pub max_prompt_tokens: Tokens,
}

/// How long a job may take, counted from when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Until it has the slot.
    pub queue: Duration,
    /// Until it is done.
    pub total: Duration,
}

/// On which terms a job waits and runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// When it fails.
    pub deadlines: Deadlines,
    /// Who goes first.
    pub priority: Priority,
    /// When it is cut: what there is after so long in the slot, its model loaded, is the answer, by
    /// [`FinishReason::Length`](crate::job::FinishReason::Length).
    pub max_time: Option<Duration>,
}

impl From<Deadlines> for Terms {
    fn from(deadlines: Deadlines) -> Self {
        Self { deadlines, priority: Priority::default(), max_time: None }
    }
}

/// Why a job was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error(
        "the queue is full: {jobs} of {max_jobs} jobs wait, with {prompt_tokens} of prompt (limit {max_prompt_tokens}); \
         come back in about {} s",
        retry_after.as_secs_f64().ceil()
    )]
    Busy {
        /// Jobs that wait.
        jobs: usize,
        /// Most that may.
        max_jobs: NonZeroUsize,
        /// Their prompt tokens.
        prompt_tokens: Tokens,
        /// Most that may wait.
        max_prompt_tokens: Tokens,
        /// When all of them are likely to be done.
        retry_after: Duration,
    },
    /// The executor is draining.
    #[error("the server is shutting down and accepts no new requests")]
    Stopped,
}

/// The queue and the slot at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSummary {
    /// Jobs that wait.
    pub queued_jobs: usize,
    /// Their prompt tokens.
    pub queued_prompt_tokens: Tokens,
    /// What has a slot, and for how long it has had it.
    pub running: Vec<(JobId, Duration)>,
    /// Whether new jobs are accepted: not after [`Executor::drain`].
    pub accepting: bool,
}

/// The queue and the slot; clones are the same one.
#[derive(Clone, Debug)]
pub struct Executor {
    shared: Arc<Shared>,
}

impl Executor {
    /// Opens the queue, and gives the future that works it off. `run` gets one job at a time, with where to say
    /// [`Event::Progress`] and [`Event::Token`] and a token that is cancelled when nobody wants the rest; it should then
    /// return soon, for the slot is free only when it has. A panic in it fails that job alone.
    pub fn new<R, F>(
        limits: Limits,
        metrics: Arc<Metrics>,
        run: R,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<Finish, Failure>> + Send + 'static,
    {
        Self::with_slots(limits, metrics, vec![run])
    }

    /// As [`Self::new`], with a slot for each of `runs`: whichever is free first takes the next job,
    /// or as [`Self::route`] says.
    pub fn with_slots<R, F>(
        limits: Limits,
        metrics: Arc<Metrics>,
        runs: Vec<R>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<Finish, Failure>> + Send + 'static,
    {
        let shared = Arc::new(Shared::new(limits, metrics));
        shared.queue().set_slots(runs.len());
        let deadlines = slot::watch_deadlines(shared.clone());
        let slots = runs.into_iter().enumerate();
        let slots: Vec<_> = slots.map(|(slot, run)| slot::serve(shared.clone(), slot, run)).collect();
        let work = async move {
            tokio::select! {
                _ = join_all(slots) => {}
                () = deadlines => {}
            }
        };
        (Self { shared }, work)
    }

    /// As [`Self::new`], with the work as a task of its own.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start<R, F>(limits: Limits, metrics: Arc<Metrics>, run: R) -> Self
    where
        R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<Finish, Failure>> + Send + 'static,
    {
        let (executor, work) = Self::new(limits, metrics, run);
        tokio::spawn(work);
        executor
    }

    /// Lets slots take jobs by what they have loaded, and not by the jobs' order alone.
    pub fn route(&self, routing: Routing) {
        self.shared.queue().route(routing);
    }

    /// Slots that waited look whether there is something for them now.
    pub fn look_again(&self) {
        self.shared.arrived.notify_waiters();
    }

    /// Lets at most `most` interactive jobs in a row go before a batch job that came earlier.
    pub fn limit_overtakes(&self, most: usize) {
        self.shared.queue().limit_overtakes(most);
    }

    /// Keeps to other limits from now on. What waits already stays.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.queue().set_limits(limits);
    }

    /// A number for the next job.
    #[must_use]
    pub fn new_id(&self) -> JobId {
        JobId(self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Whether a job with so long a prompt would be accepted now; its place is not kept.
    ///
    /// # Errors
    /// As [`Self::submit`] would have.
    pub fn check_room(&self, prompt: Tokens, priority: Priority) -> Result<(), SubmitError> {
        self.shared.queue().check_room(prompt, priority)
    }

    /// Puts a job at the end of the queue: of its priority's, and so perhaps before others.
    ///
    /// # Errors
    /// [`SubmitError::Busy`] when the queue is full, [`SubmitError::Stopped`] when it is draining.
    pub fn submit(&self, job: Job, terms: impl Into<Terms>) -> Result<Ticket, SubmitError> {
        self.submit_for(Caller::default(), job, terms)
    }

    /// As [`Self::submit`], for somebody whom [`Self::snapshot`] shall name.
    ///
    /// # Errors
    /// As [`Self::submit`] has.
    pub fn submit_for(
        &self,
        caller: Caller,
        job: Job,
        terms: impl Into<Terms>,
    ) -> Result<Ticket, SubmitError> {
        let (sender, events) = unbounded_channel();
        let (id, cancel) = (job.id, CancellationToken::new());
        let accepted = QueuedJob::new(job, sender, cancel.clone(), Instant::now(), terms.into());
        let accepted = QueuedJob { caller, ..accepted };
        self.shared.update(|queue| queue.push(accepted))?;
        self.look_again();
        self.shared.deadlines_changed.notify_one();
        Ok(Ticket { id, events, cancel, shared: self.shared.clone() })
    }

    /// The queue and the slot now.
    #[must_use]
    pub fn summary(&self) -> QueueSummary {
        let queue = self.shared.queue();
        QueueSummary {
            queued_jobs: queue.jobs(),
            queued_prompt_tokens: queue.prompt_tokens(),
            running: queue.running().iter().map(|one| (one.job.id, one.since.elapsed())).collect(),
            accepting: queue.is_accepting(),
        }
    }

    /// The queue and the slots now, with everything that runs and waits and the last that ran.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.queue().snapshot(Instant::now())
    }

    /// Accepts nothing more, finishes what waits and runs, and after `grace` ends the rest with
    /// [`Failure::ShuttingDown`]. Returns when the slot is free, or a second after a runner was told to stop and did
    /// not.
    pub async fn drain(&self, grace: Duration) {
        self.shared.update(Queue::close);
        self.look_again();
        if timeout(grace, self.shared.idle()).await.is_err() {
            self.shared.cut_off();
            let _ = timeout(STOPPING, self.shared.idle()).await;
        }
    }
}

/// The client's end of a job. Dropping it takes a waiting job off the queue, and cancels a running one.
#[derive(Debug)]
pub struct Ticket {
    id: JobId,
    events: UnboundedReceiver<Event>,
    cancel: CancellationToken,
    shared: Arc<Shared>,
}

impl Ticket {
    /// The next event; `None` after [`Event::Done`] or [`Event::Failed`]. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Ends the job with [`FinishReason::Cancelled`](crate::job::FinishReason::Cancelled): at once when it waits, after
    /// the current step when it runs. Doing so twice, or after it has ended, changes nothing.
    pub fn cancel(&self) {
        self.cancel.cancel();
        if let Some(left) = self.shared.update(|queue| queue.remove(self.id)) {
            self.shared.queue().count(JobOutcome::Cancelled);
            left.tell_cancelled();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What the executor, its tickets and the slot share.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    metrics: Arc<Metrics>,
    last_id: AtomicU64,
    /// A job was accepted, or a slot became free, or the queue closed: slots look again.
    arrived: Notify,
    /// A job was accepted that may be the first to give up.
    deadlines_changed: Notify,
    /// Something left: whoever waits for idleness looks again.
    left: Notify,
    /// The grace of a drain is over.
    cut_off: CancellationToken,
}

impl Shared {
    fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            queue: Mutex::new(Queue::new(limits)),
            metrics,
            last_id: AtomicU64::new(0),
            arrived: Notify::new(),
            deadlines_changed: Notify::new(),
            left: Notify::new(),
            cut_off: CancellationToken::new(),
        }
    }

    /// The lock is never held across a call into code that could panic, so a poisoned queue is still a sound one.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, and the gauges with it.
    fn update<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue();
        let changed = change(&mut queue);
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.queue_jobs.set(gauge(queue.jobs()));
        self.metrics.queue_prompt_tokens.set(gauge(queue.prompt_tokens().0));
        self.metrics.slot_busy.set(gauge(queue.running().len()));
        drop(queue);
        self.left.notify_waiters();
        changed
    }

    /// The next job for this slot that still wants it gets it.
    fn take_next(&self, slot: usize) -> Option<QueuedJob> {
        self.give_up_on_late();
        loop {
            let next = self.update(|queue| queue.take(slot, Instant::now()))?;
            if !next.cancel.is_cancelled() {
                return Some(next);
            }
            next.tell_cancelled();
            self.update(|queue| {
                queue.release(next.job.id);
                queue.count(JobOutcome::Cancelled);
            });
        }
    }

    /// Ends the jobs that have waited for too long; says when the next one will have.
    fn give_up_on_late(&self) -> Option<Instant> {
        let now = Instant::now();
        while let Some((late, failure)) = self.update(|queue| queue.remove_given_up(now)) {
            self.queue().count(JobOutcome::Failed);
            late.tell(Event::Failed(failure));
        }
        self.queue().next_given_up()
    }

    fn note_progress(&self, id: JobId, remains: Work) {
        self.queue().note_progress(id, remains, Instant::now());
    }

    fn release(&self, id: JobId, taken: SlotUsage, past: FinishedJob) {
        self.update(|queue| {
            queue.learn(taken);
            queue.remember(past);
            queue.release(id);
        });
    }

    /// No job will ever wait again.
    fn is_over(&self) -> bool {
        let queue = self.queue();
        queue.jobs() == 0 && !queue.is_accepting()
    }

    /// Ends everything that waits, and tells the running job's runner to stop.
    fn cut_off(&self) {
        self.cut_off.cancel();
        while let Some(waiting) = self.update(Queue::remove_first) {
            self.queue().count(JobOutcome::Failed);
            waiting.tell(Event::Failed(Failure::ShuttingDown));
        }
    }

    /// Returns when nothing waits and nothing runs.
    async fn idle(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.queue().is_idle() {
                return;
            }
            left.await;
        }
    }
}

#[cfg(test)]
mod tests;
