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
    limits::{Limits, SubmitError, Terms},
    queue::{Queue, QueuedJob, Routing},
    shared::Shared,
    slot,
    snapshot::{Caller, JobOutcome, QueueSummary, Snapshot},
};
use crate::{
    job::{Event, Failure, Finish, Job, JobId, Priority},
    metrics::Metrics,
    units::Tokens,
};

/// How long [`Executor::drain`] waits for a job that was cancelled.
pub(super) const STOPPING: Duration = Duration::from_secs(1);

/// A handle to the queue and its slots; clones refer to the same queue.
#[derive(Clone, Debug)]
pub struct Executor {
    shared: Arc<Shared>,
}

impl Executor {
    /// Creates a queue with one slot, and the future that runs its jobs. `run` gets one job at a time, with a channel for its
    /// [`Event`]s and a token that is cancelled when its client has left. It should then return soon, because the slot is busy
    /// until it does. A panic in it fails that job only.
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

    /// Like [`Self::new`], with a slot for each of `runs`. The first free slot takes the next job unless [`Self::route`] changes
    /// that.
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

    /// Like [`Self::new`], and spawns the future as a task.
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
        let (sender, events) = unbounded_channel();
        let (id, cancel) = (job.id, CancellationToken::new());
        let accepted = QueuedJob::new(job, sender, cancel.clone(), Instant::now(), terms.into());
        let accepted = QueuedJob { caller, ..accepted };
        self.shared.update(|queue| queue.push(accepted))?;
        self.look_again();
        self.shared.deadlines_changed.notify_one();
        Ok(Ticket { id, events, cancel, shared: self.shared.clone() })
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
            left.send_cancelled();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}
