//! The handles to the queue: one for the server, one for each client.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    in_turn::one_by_one,
    limits::{Limits, SubmitError, Terms},
    queue::{Queue, QueuedJob, Routing},
    shared::Shared,
    slot,
    snapshot::{Caller, JobOutcome, QueueSummary, Snapshot},
};
use crate::{
    job::{Event, Failure, Finish, GroupedJob, Job, JobId, Priority},
    metrics::Metrics,
    units::Tokens,
};

/// How long [`Executor::drain`] waits for a job that was cancelled.
pub(super) const STOPPING: Duration = Duration::from_secs(1);

/// A handle to the queue and its slots; clones refer to the same queue.
#[derive(Clone, Debug)]
pub struct Executor {
    pub(super) shared: Arc<Shared>,
}

impl Executor {
    /// Creates a queue with a slot for each of `runs`, and the future that runs its jobs. The first free slot takes the next jobs
    /// unless [`Self::route`] changes that.
    ///
    /// A run gets the jobs of one group at a time, with a channel for their [`Event`]s, the last of which is [`Event::Done`] or
    /// [`Event::Failed`] for each job. If it returns a failure, jobs without a last event fail with it. Each job has a token that
    /// is cancelled when its client has left; the run should then return soon, because the slot is busy until it does. A panic in
    /// it fails these jobs only.
    pub fn with_slots<R, F>(
        limits: Limits,
        metrics: Arc<Metrics>,
        runs: Vec<R>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        R: FnMut(Vec<GroupedJob>, UnboundedSender<(JobId, Event)>) -> F + Send + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
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

    /// A queue with one slot, run by a task. `run` gets one job at a time, with a channel for its events and its token; the jobs
    /// of a group run one after another.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start<R, F>(limits: Limits, metrics: Arc<Metrics>, run: R) -> Self
    where
        R: FnMut(Job, UnboundedSender<Event>, CancellationToken) -> F + Send + 'static,
        F: Future<Output = Result<Finish, Failure>> + Send + 'static,
    {
        let (executor, work) = Self::with_slots(limits, metrics, vec![one_by_one(run)]);
        tokio::spawn(work);
        executor
    }

    /// Makes slots prefer jobs whose model they have loaded.
    pub fn route(&self, routing: Routing) {
        self.shared.queue().route(routing);
    }

    /// Wakes waiting slots to look for a job again.
    pub fn look_again(&self) {
        self.shared.arrived.notify_waiters();
    }

    /// Limits how many interactive jobs in a row may overtake a batch job.
    pub fn limit_overtakes(&self, max: usize) {
        self.shared.queue().limit_overtakes(max);
    }

    /// Changes the limits. Waiting jobs stay.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.queue().set_limits(limits);
    }

    /// The number for a new job.
    #[must_use]
    pub fn new_id(&self) -> JobId {
        JobId(self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Whether a job with a prompt of this length would be accepted now. Reserves nothing.
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    pub fn check_room(&self, prompt: Tokens, priority: Priority) -> Result<(), SubmitError> {
        self.shared.queue().check_room(prompt, priority)
    }

    /// Adds a job to the queue, behind those of the same priority.
    ///
    /// # Errors
    /// [`SubmitError::Busy`] when the queue is full, [`SubmitError::Stopped`] when it is draining.
    pub fn submit(&self, job: Job, terms: impl Into<Terms>) -> Result<Ticket, SubmitError> {
        self.submit_for(Caller::default(), job, terms)
    }

    /// Like [`Self::submit`], with the caller to show in [`Self::snapshot`].
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    pub fn submit_for(
        &self,
        caller: Caller,
        job: Job,
        terms: impl Into<Terms>,
    ) -> Result<Ticket, SubmitError> {
        let mut tickets = self.submit_together(&caller, vec![job], terms)?;
        tickets.pop().ok_or(SubmitError::Stopped)
    }

    /// Adds jobs that a slot takes together, or none of them: the choices of one prompt, or several prompts of one request.
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    pub fn submit_together(
        &self,
        caller: &Caller,
        jobs: Vec<Job>,
        terms: impl Into<Terms>,
    ) -> Result<Vec<Ticket>, SubmitError> {
        let (now, terms) = (Instant::now(), terms.into());
        let group = jobs.first().map(|job| job.id).unwrap_or_default();
        let (mut accepted, mut receivers) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            let (sender, events) = unbounded_channel();
            let (id, cancel) = (job.id, CancellationToken::new());
            let queued = QueuedJob::new(job, sender, cancel.clone(), now, terms);
            accepted.push(QueuedJob { group, caller: caller.clone(), ..queued });
            receivers.push((id, events, cancel));
        }
        self.shared.update(|queue| queue.push_group(accepted))?;
        self.look_again();
        self.shared.deadlines_changed.notify_one();
        self.shared.note_accepted(group);
        let ticket = |(id, events, cancel)| Ticket { id, events, cancel, shared: self.shared.clone() };
        Ok(receivers.into_iter().map(ticket).collect())
    }

    /// Numbers of waiting and running jobs.
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

    /// Every waiting and running job, and the last finished ones.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.queue().snapshot(Instant::now())
    }

    /// Rejects new jobs and finishes all others. Those left after `grace` end with [`Failure::ShuttingDown`]. Returns when every slot
    /// is free, or a second after a job was cancelled but did not stop.
    pub async fn drain(&self, grace: Duration) {
        self.shared.update(Queue::close);
        self.look_again();
        if timeout(grace, self.shared.idle()).await.is_err() {
            self.shared.cut_off();
            let _ = timeout(STOPPING, self.shared.idle()).await;
        }
    }
}

/// The client's end of a job. Dropping it removes a waiting job from the queue, and cancels a running one.
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

    /// Ends the job with [`EndReason::Cancelled`](crate::job::EndReason::Cancelled): at once if it waits, after the current
    /// step if it runs. Has no effect on a job that has ended.
    pub fn cancel(&self) {
        self.cancel.cancel();
        if let Some(left) = self.shared.update(|queue| queue.remove(self.id)) {
            self.shared.queue().count(JobOutcome::Cancelled);
            self.shared.note_withdrawn(&left);
            left.send_cancelled();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}
