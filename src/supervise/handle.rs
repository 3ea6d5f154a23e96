//! The handle to one supervisor task.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    job_run::{JobRequest, RunHistory, RunOutcome},
    supervisor::{Channels, CommandRequest, Supervisor},
    worker_config::WorkerConfig,
    worker_metrics::WorkerMetrics,
};
use crate::{
    job::{Command, CommandReport, Event, Failure, GroupedJob, JobId, Readiness},
    metrics::Metrics,
};

/// Commands that may wait; senders of more wait as well.
const COMMAND_QUEUE: usize = 16;

/// Sends jobs and commands to one supervisor.
#[derive(Debug)]
pub(super) struct SupervisorHandle {
    requests: mpsc::Sender<JobRequest>,
    commands: mpsc::Sender<CommandRequest>,
    readiness: watch::Receiver<Readiness>,
    stop: CancellationToken,
}

impl SupervisorHandle {
    /// A handle, and the future that starts a worker and replaces it until [`stop`](Self::stop). `replacements` limits how
    /// many supervisors replace a healthy worker at the same time.
    pub(super) fn new(
        config: WorkerConfig,
        metrics: Arc<Metrics>,
        replacements: Arc<Semaphore>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let label = config.label.clone();
        let span =
            label.as_ref().map_or_else(tracing::Span::none, |device| tracing::error_span!("worker", %device));
        let metrics = WorkerMetrics::new(metrics, label.as_deref().into());
        let (requests, job_queue) = mpsc::channel(1);
        let (commands, command_queue) = mpsc::channel(COMMAND_QUEUE);
        let (state, readiness) = watch::channel(Readiness::Starting);
        let stop = CancellationToken::new();
        let channels = Channels {
            jobs: job_queue,
            commands: command_queue,
            readiness: state,
            stop: stop.clone(),
            replacements,
        };
        let supervisor = Supervisor::new(config, metrics, channels);
        (Self { requests, commands, readiness, stop }, supervisor.run().instrument(span))
    }

    /// Whether the worker is ready, now and whenever that changes.
    pub(super) const fn readiness(&self) -> &watch::Receiver<Readiness> {
        &self.readiness
    }

    /// Runs `command` before the next job.
    ///
    /// # Errors
    /// [`Failure::Model`] when a model cannot be loaded, [`Failure::NoWorker`] when there is no worker,
    /// [`Failure::WorkerLost`] when it ended meanwhile, [`Failure::ShuttingDown`].
    pub(super) async fn command(&self, command: Command) -> Result<CommandReport, Failure> {
        let (reply, outcome) = oneshot::channel();
        self.commands.send((command, reply)).await.map_err(|_| Failure::ShuttingDown)?;
        outcome.await.unwrap_or(Err(Failure::ShuttingDown))
    }

    /// Runs jobs, which may have run on another worker before, and sends their events to `events`. A job that is cancelled ends
    /// with the next step. While they wait for a worker, `recall` makes the supervisor hand them back.
    pub(super) async fn run(
        &self,
        (jobs, history): (Vec<GroupedJob>, RunHistory),
        events: mpsc::UnboundedSender<(JobId, Event)>,
        recall: CancellationToken,
    ) -> RunOutcome {
        let (reply, answer) = oneshot::channel();
        let request = JobRequest { jobs, events, reply, history, recall };
        if self.requests.send(request).await.is_err() {
            return RunOutcome::Finished(Err(Failure::ShuttingDown));
        }
        answer.await.unwrap_or(RunOutcome::Finished(Err(Failure::ShuttingDown)))
    }

    /// Asks the worker to end, kills it if it does not, and returns when it has ended.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        // Closed when the supervisor task has ended or was dropped.
        self.requests.closed().await;
    }
}
