//! Receives jobs, also while the supervisor is busy with a worker.

use tokio::sync::{mpsc, oneshot};

use crate::{
    job::{Command, CommandReport, Failure},
    supervise::job_run::JobRequest,
};

/// A command, and where its result goes.
pub(in crate::supervise) type CommandRequest = (Command, oneshot::Sender<Result<CommandReport, Failure>>);

/// The job queue, with room for one job that waits for a worker.
pub(super) struct Inbox {
    requests: mpsc::Receiver<JobRequest>,
    pub(super) waiting: Option<JobRequest>,
}

impl Inbox {
    pub(super) const fn new(requests: mpsc::Receiver<JobRequest>) -> Self {
        Self { requests, waiting: None }
    }

    /// Receives the next job; or, while one waits, answers it when it is cancelled and hands it back when it is recalled. Does
    /// not complete while nothing happens, so it can be a branch of a `select!`.
    pub(super) async fn receive(&mut self) {
        if let Some(request) = self.waiting.take_if(|request| request.is_cancelled()) {
            return request.answer_cancelled();
        }
        if let Some(request) = self.waiting.take_if(|request| request.recall.is_cancelled()) {
            return request.hand_back(None);
        }
        if let Some(request) = &self.waiting {
            tokio::select! {
                () = request.cancelled() => {}
                () = request.recall.cancelled() => {}
            }
            return;
        }
        match self.requests.recv().await {
            Some(request) => self.waiting = Some(request),
            // All handles are gone, so only `stop` can follow.
            None => std::future::pending().await,
        }
    }
}
