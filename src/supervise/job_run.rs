//! The jobs of a group on one worker, from their first frame to their last.

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    process::Process,
    rpc::{send, send_without_ping},
    watchdog::{JobSignal, JobWatch, Watchdog},
    worker_loss::{LossKind, WorkerLoss},
};
use crate::{
    job::{
        EndReason, Event, Failure, Finish, GroupedJob, Job, JobId, MemoryReport, ModelId, Step, Timings,
        Usage,
    },
    wire::{FromWorker, ToWorker, WireError},
};

/// The jobs of a group that have not ended, with the channels for their events and their outcome.
#[derive(Debug)]
pub(super) struct JobRequest {
    pub(super) jobs: Vec<GroupedJob>,
    pub(super) events: mpsc::UnboundedSender<(JobId, Event)>,
    pub(super) reply: oneshot::Sender<RunOutcome>,
    pub(super) history: RunHistory,
    /// Cancelled when another device takes the jobs. Has no effect once they run.
    pub(super) recall: CancellationToken,
}

/// How a supervisor ended its work on a group.
#[derive(Debug)]
pub(super) enum RunOutcome {
    /// Every job had its last event, or the others fail.
    Finished(Result<(), Failure>),
    /// No worker runs the jobs; they can continue on another device from their answers so far.
    HandedBack {
        jobs: Vec<GroupedJob>,
        history: RunHistory,
        /// The failure to report if no other device takes the jobs; `None` when they were recalled.
        why: Option<Failure>,
    },
}

impl JobRequest {
    /// Sends the outcome. The receiver may be gone.
    pub(super) fn answer(self, end: Result<(), Failure>) {
        let _ = self.reply.send(RunOutcome::Finished(end));
    }

    /// Returns the jobs unfinished.
    pub(super) fn hand_back(self, why: Option<Failure>) {
        let Self { jobs, history, reply, .. } = self;
        let _ = reply.send(RunOutcome::HandedBack { jobs, history, why });
    }

    /// Ends jobs that were cancelled before a worker received them.
    pub(super) fn answer_cancelled(self) {
        for job in &self.jobs {
            let _ = self.events.send((job.job.id, Event::Done(cancelled())));
        }
        self.answer(Ok(()));
    }

    /// Sends an event to every job. A client that has left cancels its job through its token.
    pub(super) fn send_to_all(&self, event: &Event) {
        for job in &self.jobs {
            let _ = self.events.send((job.job.id, event.clone()));
        }
    }

    /// The first job; all jobs of a group have the same model and settings.
    pub(super) fn first(&self) -> Option<&Job> {
        self.jobs.first().map(|grouped| &grouped.job)
    }

    /// The model of the jobs.
    pub(super) fn model(&self) -> ModelId {
        self.first().map(|job| job.model.clone()).unwrap_or_default()
    }

    /// Workers that were lost while they ran the jobs.
    pub(super) fn lost(&self) -> u32 {
        self.first().map_or(0, |job| job.lost)
    }

    /// Whether all jobs are cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        self.jobs.iter().all(|job| job.cancel.is_cancelled())
    }

    /// Waits until all jobs are cancelled.
    pub(super) async fn cancelled(&self) {
        all_cancelled(&self.jobs).await;
    }

    /// Runs the jobs on `worker` and forwards their events. Tokens are appended to the jobs' answers, so that another worker can
    /// continue them. Returns the memory report of the job that ended last.
    ///
    /// # Errors
    /// [`WorkerLoss`] when the worker ends, hangs or breaks the protocol.
    pub(super) async fn run_on(
        &mut self,
        worker: &mut Process,
        watchdog: &mut Watchdog,
        chunk: usize,
    ) -> Result<Option<MemoryReport>, WorkerLoss> {
        let budgets = watchdog.budgets();
        let jobs: Vec<Job> = self.jobs.iter().map(|grouped| grouped.job.clone()).collect();
        let mut watch = JobWatch::start(&jobs, chunk, Instant::now());
        let mut cancels = cancellations(&self.jobs);
        send(worker, &ToWorker::Generate(jobs), &budgets).await?;
        let mut memory = None;
        while !self.jobs.is_empty() {
            let frame = tokio::select! {
                biased;
                frame = worker.next() => frame,
                Some(id) = cancels.next() => {
                    send_without_ping(worker, &ToWorker::Cancel(id), &budgets).await?;
                    continue;
                }
                () = sleep_until(watch.deadline(watchdog)) => {
                    return Err(WorkerLoss::hung(watch.describe(watchdog)));
                }
            };
            if let Some(Ok(frame)) = &frame
                && let Some((job, signal)) = self.signal_of(frame)
            {
                watch.note(job, signal, Instant::now(), watchdog);
                if let FromWorker::Step { step: Step::Token(token), .. } = frame {
                    self.note_token(job, *token);
                }
            }
            memory = self.forward(frame)?.or(memory);
        }
        Ok(memory)
    }

    fn note_token(&mut self, id: JobId, token: u32) {
        if let Some(grouped) = self.jobs.iter_mut().find(|grouped| grouped.job.id == id) {
            grouped.job.answer.push(token);
            self.history.first_token.get_or_insert_with(Instant::now);
        }
    }

    /// Corrects the timings of a job that ran on several workers: each worker measures only its own part. Jobs of a group share
    /// the time.
    fn correct(&self, timings: &mut Timings) {
        let (Some(began), lost @ 1..) = (self.history.began, self.lost()) else { return };
        let first_token = self.history.first_token.unwrap_or_else(Instant::now);
        let jobs = u32::try_from(self.history.jobs).unwrap_or(u32::MAX).max(1);
        timings.prefill = (first_token - began) / jobs;
        timings.decode = first_token.elapsed() / jobs;
        timings.resumed = lost;
    }

    fn is_running(&self, id: JobId) -> bool {
        self.jobs.iter().any(|grouped| grouped.job.id == id)
    }

    /// What a frame means to the watchdog, and of which job it is; `None` if it does not belong to a running job.
    fn signal_of(&self, frame: &FromWorker) -> Option<(JobId, JobSignal)> {
        let (job, signal) = match frame {
            FromWorker::Step { job, step } => match step {
                Step::Progress { done, .. } => (job, JobSignal::Progress(*done)),
                Step::Token(_) => (job, JobSignal::Token),
                Step::Logprobs(_) | Step::Embedding(_) => return None,
            },
            FromWorker::Accepted { job } => (job, JobSignal::Accepted),
            FromWorker::Saving { job, .. } => (job, JobSignal::Saving),
            FromWorker::Done { job, .. } | FromWorker::Failed { job, .. } => (job, JobSignal::Ended),
            _ => return None,
        };
        self.is_running(*job).then_some((*job, signal))
    }

    /// Forwards a frame of a running job to its events, and removes a job that has ended. Returns its memory report.
    fn forward(
        &mut self,
        frame: Option<Result<FromWorker, WireError>>,
    ) -> Result<Option<MemoryReport>, WorkerLoss> {
        match frame {
            Some(Ok(FromWorker::Step { job, step })) if self.is_running(job) => {
                // A client that has left cancels the job through its token.
                let _ = self.events.send((job, Event::Step(step)));
                Ok(None)
            }
            // Belongs to the job before.
            Some(Ok(FromWorker::AutoTrimmed { .. })) => Ok(None),
            // Only the watchdog needs it.
            Some(Ok(FromWorker::Accepted { job } | FromWorker::Saving { job, .. }))
                if self.is_running(job) =>
            {
                Ok(None)
            }
            Some(Ok(FromWorker::Done { job, mut finish })) if self.is_running(job) => {
                let memory = finish.memory;
                self.correct(&mut finish.timings);
                self.end(job, Event::Done(finish));
                Ok(Some(memory))
            }
            // The job may have caused the device error or only met it, so another worker tries the job once more.
            Some(Ok(FromWorker::Failed { job, failure, poisoned: true })) if self.is_running(job) => {
                let reason = format!("the device can no longer be used: {failure}");
                Err(WorkerLoss::new(LossKind::Poisoned, reason))
            }
            Some(Ok(FromWorker::Failed { job, failure, .. })) if self.is_running(job) => {
                self.end(job, Event::Failed(failure));
                Ok(None)
            }
            other => Err(WorkerLoss::from_frame(other)),
        }
    }

    fn end(&mut self, id: JobId, last: Event) {
        self.jobs.retain(|grouped| grouped.job.id != id);
        let _ = self.events.send((id, last));
    }
}

/// Waits until all of these jobs are cancelled.
pub(super) async fn all_cancelled(jobs: &[GroupedJob]) {
    for grouped in jobs {
        grouped.cancel.cancelled().await;
    }
}

/// The ids of jobs, each when it is cancelled.
fn cancellations(jobs: &[GroupedJob]) -> FuturesUnordered<impl Future<Output = JobId> + use<>> {
    let cancelled = |grouped: &GroupedJob| {
        let (id, cancel) = (grouped.job.id, grouped.cancel.clone());
        async move {
            cancel.cancelled().await;
            id
        }
    };
    jobs.iter().map(cancelled).collect()
}

/// The outcome of a job that was cancelled before a worker received it.
pub(super) fn cancelled() -> Finish {
    Finish {
        reason: EndReason::Cancelled,
        usage: Usage::default(),
        timings: Timings::default(),
        memory: MemoryReport::default(),
    }
}

/// When the jobs of a group first reached a worker, and when the first token came.
#[derive(Debug, Default)]
pub(super) struct RunHistory {
    pub(super) began: Option<Instant>,
    first_token: Option<Instant>,
    /// Jobs of the group when it was accepted.
    jobs: usize,
    /// [`Event::Loading`] was sent, [`Event::Loaded`] was not yet.
    pub(super) is_loading: bool,
}

impl RunHistory {
    /// Of a group of `jobs` that no worker has received.
    pub(super) fn of(jobs: usize) -> Self {
        Self { jobs, ..Self::default() }
    }
}
