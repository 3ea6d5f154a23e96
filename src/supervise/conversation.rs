//! One job on one worker, from its first frame to its last.

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    exchange::{Lost, send, send_unasked},
    process::Process,
    watchdog::{Heard, Watch, Watchdog},
};
use crate::{
    job::{Event, Failure, Finish, FinishReason, Job, JobId, MemoryReport, Timings, Usage},
    wire::{Down, Up, WireError},
};

/// A job, where its events go, and where its end is told.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) job: Job,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) cancel: CancellationToken,
    pub(super) reply: oneshot::Sender<End>,
    pub(super) history: History,
    /// Cancelled when another device would have it, unless it is running by then.
    pub(super) recall: CancellationToken,
}

/// What came of a job.
#[derive(Debug)]
pub(super) enum End {
    /// It is over.
    Over(Result<Finish, Failure>),
    /// It is as far as it says, and no worker has it.
    Returned {
        job: Job,
        history: History,
        /// What to say if nobody else takes it; `None` when it was recalled.
        why: Option<Failure>,
    },
}

impl Request {
    /// Tells its end; nobody may be left to hear it.
    pub(super) fn answer(self, end: Result<Finish, Failure>) {
        let _ = self.reply.send(End::Over(end));
    }

    /// Gives it back as it is.
    pub(super) fn give_back(self, why: Option<Failure>) {
        let Self { job, history, reply, .. } = self;
        let _ = reply.send(End::Returned { job, history, why });
    }

    /// Tells the end of a job that was cancelled before a worker saw it.
    pub(super) fn answer_cancelled(self) {
        self.answer(Ok(cancelled()));
    }

    /// Sends the job and passes on what the worker says, until one of them has ended. Tokens are added to the job's answer,
    /// so that another worker can go on with it.
    pub(super) async fn converse(
        &mut self,
        worker: &mut Process,
        watchdog: &mut Watchdog,
        chunk: usize,
    ) -> Result<Result<Finish, Failure>, Lost> {
        let Self { job, events, cancel, history, .. } = self;
        let (id, budgets) = (job.id, watchdog.budgets());
        let mut cancelled = false;
        send(worker, &Down::Generate(Box::new(job.clone())), &budgets).await?;
        let mut watch = Watch::start(job.prompt.len() + job.answer.len(), chunk, Instant::now());
        loop {
            let frame = tokio::select! {
                biased;
                frame = worker.next() => frame,
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    send_unasked(worker, &Down::Cancel(id), &budgets).await?;
                    continue;
                }
                () = sleep_until(watch.deadline(watchdog)) => return Err(Lost::hung(watch.describe(watchdog))),
            };
            if let Some(Ok(said)) = &frame
                && let Some(heard) = heard_of(id, said)
            {
                watch.hear(heard, Instant::now(), watchdog);
                if let Up::Token { id: token, .. } = said {
                    job.answer.push(*token);
                    history.first_token.get_or_insert_with(Instant::now);
                }
            }
            if let Some(end) = pass_on(id, frame, events)? {
                return Ok(end);
            }
        }
    }

    /// Times as the client saw them, for a job that more than one worker had; each worker knows its own part alone.
    pub(super) fn correct(&self, timings: &mut Timings) {
        let (Some(began), true) = (self.history.began, self.job.lost > 0) else { return };
        let first_token = self.history.first_token.unwrap_or_else(Instant::now);
        timings.prefill = first_token - began;
        timings.decode = first_token.elapsed();
        timings.resumed = self.job.lost;
    }
}

/// The end of a job that was cancelled before a worker saw it.
pub(super) fn cancelled() -> Finish {
    Finish {
        reason: FinishReason::Cancelled,
        usage: Usage::default(),
        timings: Timings::default(),
        memory: MemoryReport::default(),
    }
}

/// When a job came to a worker for the first time, and said its first token.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) began: Option<Instant>,
    first_token: Option<Instant>,
    /// Whoever asked was told that the model is being loaded, and not yet that it is.
    pub(super) is_loading: bool,
}

/// What a frame tells the watchdog about the running job.
fn heard_of(running: JobId, frame: &Up) -> Option<Heard> {
    match frame {
        Up::Progress { job, done, .. } if *job == running => Some(Heard::Progress(*done)),
        Up::Token { job, .. } if *job == running => Some(Heard::Token),
        Up::Saving { job, .. } if *job == running => Some(Heard::Saving),
        _ => None,
    }
}

/// Passes on what a frame says about the running job; its end, if it is that.
fn pass_on(
    running: JobId,
    frame: Option<Result<Up, WireError>>,
    events: &mpsc::UnboundedSender<Event>,
) -> Result<Option<Result<Finish, Failure>>, Lost> {
    // A listener who has left cancels the job by other means.
    match frame {
        Some(Ok(Up::Progress { job, done, total, cached })) if job == running => {
            let _ = events.send(Event::Progress { done, total, cached });
            Ok(None)
        }
        // Said after the last job, before it heard of this one.
        Some(Ok(Up::Held { .. })) => Ok(None),
        // A sign of life, and for nobody else.
        Some(Ok(Up::Saving { job, .. })) if job == running => Ok(None),
        Some(Ok(Up::Score { job, score })) if job == running => {
            let _ = events.send(Event::Score(score));
            Ok(None)
        }
        Some(Ok(Up::Token { job, id })) if job == running => {
            let _ = events.send(Event::Token(id));
            Ok(None)
        }
        Some(Ok(Up::Done { job, finish })) if job == running => Ok(Some(Ok(finish))),
        // The job may be the device's victim as well as its poison: another worker finds out.
        Some(Ok(Up::Failed { job, failure, poisoned: true })) if job == running => {
            let reason = format!("its device cannot be used any more: {failure}");
            Err(Lost::new("poisoned", reason))
        }
        Some(Ok(Up::Failed { job, failure, .. })) if job == running => Ok(Some(Err(failure))),
        other => Err(Lost::by(other)),
    }
}
