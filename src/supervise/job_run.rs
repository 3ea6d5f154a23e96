//! One job on one worker, from its first frame to its last.

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
    job::{EndReason, Event, Failure, Finish, Job, JobId, MemoryReport, Step, Timings, Usage},
    wire::{FromWorker, ToWorker, WireError},
};

/// A job, with the channels for its events and its outcome.
#[derive(Debug)]
pub(super) struct JobRequest {
    pub(super) job: Job,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) cancel: CancellationToken,
    pub(super) reply: oneshot::Sender<RunOutcome>,
    pub(super) history: RunHistory,
    /// Cancelled when another device takes the job. Has no effect once the job runs.
    pub(super) recall: CancellationToken,
}

/// How a supervisor ended its work on a job.
#[derive(Debug)]
pub(super) enum RunOutcome {
    Finished(Result<Finish, Failure>),
    /// No worker runs the job; it can continue on another device from its answer so far.
    HandedBack {
        job: Job,
        history: RunHistory,
        /// The failure to report if no other device takes the job; `None` when it was recalled.
        why: Option<Failure>,
    },
}

impl JobRequest {
    /// Sends the outcome. The receiver may be gone.
    pub(super) fn answer(self, end: Result<Finish, Failure>) {
        let _ = self.reply.send(RunOutcome::Finished(end));
    }

    /// Returns the job unfinished.
    pub(super) fn hand_back(self, why: Option<Failure>) {
        let Self { job, history, reply, .. } = self;
        let _ = reply.send(RunOutcome::HandedBack { job, history, why });
    }

    /// Ends a job that was cancelled before a worker received it.
    pub(super) fn answer_cancelled(self) {
        self.answer(Ok(cancelled()));
    }

    /// Runs the job on `worker` and forwards its events. Tokens are appended to the job's answer, so that another worker can
    /// continue it.
    ///
    /// # Errors
    /// [`WorkerLoss`] when the worker ends, hangs or breaks the protocol.
    pub(super) async fn run_on(
        &mut self,
        worker: &mut Process,
        watchdog: &mut Watchdog,
        chunk: usize,
    ) -> Result<Result<Finish, Failure>, WorkerLoss> {
        let Self { job, events, cancel, history, .. } = self;
        let (id, budgets) = (job.id, watchdog.budgets());
        let mut cancelled = false;
        send(worker, &ToWorker::Generate(Box::new(job.clone())), &budgets).await?;
        let mut watch = JobWatch::start(job.prompt.len() + job.answer.len(), chunk, Instant::now());
        loop {
            let frame = tokio::select! {
                biased;
                frame = worker.next() => frame,
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    send_without_ping(worker, &ToWorker::Cancel(id), &budgets).await?;
                    continue;
                }
                () = sleep_until(watch.deadline(watchdog)) => {
                    return Err(WorkerLoss::hung(watch.describe(watchdog)));
                }
            };
            if let Some(Ok(frame)) = &frame
                && let Some(signal) = signal_of(id, frame)
            {
                watch.note(signal, Instant::now(), watchdog);
                if let FromWorker::Step { step: Step::Token(token), .. } = frame {
                    job.answer.push(*token);
                    history.first_token.get_or_insert_with(Instant::now);
                }
            }
            if let Some(end) = forward(id, frame, events)? {
                return Ok(end);
            }
        }
    }

    /// Corrects the timings of a job that ran on several workers: each worker measures only its own part.
    pub(super) fn correct(&self, timings: &mut Timings) {
        let (Some(began), true) = (self.history.began, self.job.lost > 0) else { return };
        let first_token = self.history.first_token.unwrap_or_else(Instant::now);
        timings.prefill = first_token - began;
        timings.decode = first_token.elapsed();
        timings.resumed = self.job.lost;
    }
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

/// When a job first reached a worker, and when its first token came.
#[derive(Debug, Default)]
pub(super) struct RunHistory {
    pub(super) began: Option<Instant>,
    first_token: Option<Instant>,
    /// [`Event::Loading`] was sent, [`Event::Loaded`] was not yet.
    pub(super) is_loading: bool,
}

/// What a frame means to the watchdog; `None` if it does not belong to the running job.
fn signal_of(running: JobId, frame: &FromWorker) -> Option<JobSignal> {
    match frame {
        FromWorker::Step { job, step } if *job == running => match step {
            Step::Progress { done, .. } => Some(JobSignal::Progress(*done)),
            Step::Token(_) => Some(JobSignal::Token),
            Step::Logprobs(_) => None,
        },
        FromWorker::Saving { job, .. } if *job == running => Some(JobSignal::Saving),
        _ => None,
    }
}

/// Forwards a frame of the running job to `events`. The last frame returns how the job ended.
fn forward(
    running: JobId,
    frame: Option<Result<FromWorker, WireError>>,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<Option<Result<Finish, Failure>>, WorkerLoss> {
    match frame {
        Some(Ok(FromWorker::Step { job, step })) if job == running => {
            // A client that has left cancels the job through its token.
            let _ = events.send(Event::Step(step));
            Ok(None)
        }
        // Belongs to the previous job.
        Some(Ok(FromWorker::AutoTrimmed { .. })) => Ok(None),
        // Only the watchdog needs it.
        Some(Ok(FromWorker::Saving { job, .. })) if job == running => Ok(None),
        Some(Ok(FromWorker::Done { job, finish })) if job == running => Ok(Some(Ok(finish))),
        // The job may have caused the device error or only met it, so another worker tries the job once more.
        Some(Ok(FromWorker::Failed { job, failure, poisoned: true })) if job == running => {
            let reason = format!("the device can no longer be used: {failure}");
            Err(WorkerLoss::new(LossKind::Poisoned, reason))
        }
        Some(Ok(FromWorker::Failed { job, failure, .. })) if job == running => Ok(Some(Err(failure))),
        other => Err(WorkerLoss::from_frame(other)),
    }
}
