//! Workers, one after another: start, serve, wait after a loss.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{serving::WorkerExit, state::Supervisor};
use crate::{
    job::{Failure, ModelId, Readiness, RuntimeReport},
    supervise::{
        policy::{self, Action, LossStage},
        startup::{ActiveWorker, LoadOutcome, StartFailure, StartedWorker, start},
        worker_loss::{LossKind, WorkerLoss},
    },
};

/// The loss of a worker that was ready for this long does not count as a failure.
const STABLE_AFTER: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Runs workers, one after another, until it is to stop.
    pub(in crate::supervise) async fn run(mut self) {
        loop {
            match self.run_worker().await {
                WorkerExit::Stopped => break,
                WorkerExit::Replaced => self.metrics.count_exit("recycled"),
                WorkerExit::Lost { stage, loss } => {
                    self.metrics.count_exit(loss.kind.as_str());
                    // No other device replaces its worker while this one has none.
                    self.may_replace();
                    self.failures = self.failures.saturating_add(1);
                    tracing::error!(event = "worker_lost", kind = loss.kind.as_str(), "worker lost: {loss}");
                    self.give_up_on_model(&loss.reason);
                    match policy::after(stage, self.ever_ready, self.failures) {
                        Action::RestartAfter(wait) => self.wait_to_restart(wait, stage, loss.reason).await,
                        Action::GiveUp => return self.give_up(loss.reason).await,
                    }
                }
            }
            if self.stop.is_cancelled() {
                break;
            }
        }
        self.watchdogs.save(&self.config);
        self.readiness.send_replace(Readiness::Stopping);
        self.metrics.count_exit("shutdown");
    }

    /// One worker from start to end: the standby if there is one, else a new process.
    async fn run_worker(&mut self) -> WorkerExit {
        if let Some(standby) = self.standby.take() {
            match self.while_receiving(standby.started()).await {
                None => return WorkerExit::Stopped,
                Some(Ok(worker)) => return self.serve(*worker).await,
                Some(Err(reason)) => {
                    tracing::warn!(event = "standby_failed", "the standby worker failed to start: {reason}");
                }
            }
        }
        self.metrics.starts.inc();
        let models = self.models_to_preload();
        match self.while_receiving(start(Arc::clone(&self.config), models.clone())).await {
            None => WorkerExit::Stopped,
            Some(Ok(worker)) => self.serve(worker).await,
            Some(Err(StartFailure { stage, loss })) => {
                self.load_losses += u32::from(!models.is_empty());
                WorkerExit::Lost { stage, loss }
            }
        }
    }

    /// Completes `work` while jobs can arrive and be cancelled; `None` when it is to stop first.
    async fn while_receiving<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.stop.cancelled() => return None,
                () = self.inbox.receive() => {}
            }
        }
    }

    /// Models that a new worker loads when it starts: the one that the waiting job needs, else those of the previous worker.
    /// After several losses during loading it starts without a model, so that jobs for other models can run.
    fn models_to_preload(&self) -> Vec<ModelId> {
        match &self.inbox.waiting {
            Some(request) => vec![request.model()],
            None if policy::gives_up_on_model(self.load_losses, self.has_several_models()) => Vec::new(),
            None => self.preload.clone(),
        }
    }

    /// Fails the waiting job when loading its model has ended several workers in a row and there are other models to serve.
    fn give_up_on_model(&mut self, reason: &str) {
        if policy::gives_up_on_model(self.load_losses, self.has_several_models())
            && let Some(request) = self.inbox.waiting.take()
        {
            let model = request.model();
            let message = format!("{} workers in a row ended while loading it: {reason}", self.load_losses);
            request.answer(Err(Failure::Model { model, message }));
        }
    }

    /// Runs jobs on a new worker until it ends or is replaced.
    async fn serve(&mut self, started: StartedWorker) -> WorkerExit {
        let StartedWorker { process, models: LoadOutcome { runtime, loaded, failed } } = started;
        let mut worker = ActiveWorker::new(process, runtime, &self.config.budgets);
        for (model, report) in loaded {
            self.note_loaded(&mut worker, model, report);
        }
        if let Some((model, message)) = failed {
            // With a single model there is nothing else to serve. If it has loaded before, it may load again later.
            if !self.ever_ready || !self.has_several_models() {
                worker.process.kill().await;
                let loss = WorkerLoss::new(LossKind::LoadFailed, message);
                return WorkerExit::Lost { stage: LossStage::LoadFailed, loss };
            }
            tracing::error!(event = "model_load_failed", "model {model} cannot be loaded: {message}");
        }
        self.note_ready(&worker);
        let exit = self.work(&mut worker).await;
        if worker.ready_since.elapsed() >= STABLE_AFTER {
            self.failures = 0;
        }
        self.metrics.ready.set(0);
        self.preload = self.models.take_all();
        self.restored.mark_lost(None);
        match exit {
            WorkerExit::Lost { stage, loss } => {
                return WorkerExit::Lost { stage, loss: worker.process.clean_up(loss).await };
            }
            // The standby has its own memory, and a hanging driver can delay the exit of the old process.
            WorkerExit::Replaced if self.standby.is_some() => {
                drop(tokio::spawn(worker.process.shut_down()));
            }
            WorkerExit::Replaced | WorkerExit::Stopped => worker.process.shut_down().await,
        }
        exit
    }

    fn note_ready(&mut self, worker: &ActiveWorker) {
        let RuntimeReport { runtime, library, device, fell_back, threads, .. } = &worker.runtime;
        let why = fell_back.as_ref().map(|why| format!(" because {why}")).unwrap_or_default();
        let library = library.display();
        tracing::info!(
            event = "worker_ready",
            threads,
            "the worker is ready: {runtime} ({library}) on {device}{why}"
        );
        self.ever_ready = true;
        self.replacement_permit = None;
        self.metrics.ready.set(1);
        self.publish_ready(worker);
    }

    /// Waits before the next start. After a series of failures waiting jobs and commands are answered meanwhile.
    async fn wait_to_restart(&mut self, wait: Duration, stage: LossStage, reason: String) {
        let is_down = self.ever_ready && policy::is_down(self.failures);
        let hands_back = is_down && policy::hands_jobs_back(stage, self.failures);
        let failure = Failure::NoWorker { message: reason.clone(), retry_in: Some(wait) };
        let state = if is_down {
            Readiness::Down { reason, retry_in: Some(wait) }
        } else if self.ever_ready {
            Readiness::Restarting { reason }
        } else {
            Readiness::Starting
        };
        self.readiness.send_replace(state);
        tokio::select! {
            () = sleep(wait) => {}
            () = self.refuse(hands_back, &failure) => {}
        }
    }

    /// Rejects every job and command until it is to stop.
    async fn give_up(mut self, reason: String) {
        self.replacement_permit = None;
        self.readiness.send_replace(Readiness::Down { reason: reason.clone(), retry_in: None });
        self.refuse(true, &Failure::NoWorker { message: reason, retry_in: None }).await;
    }

    /// Receives jobs and commands until it is to stop. If `hands_back`, jobs are handed back and commands fail, with `failure`.
    async fn refuse(&mut self, hands_back: bool, failure: &Failure) {
        loop {
            if hands_back && let Some(request) = self.inbox.waiting.take() {
                request.hand_back(Some(failure.clone()));
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.inbox.receive() => {}
                Some((_, reply)) = self.commands.recv(), if hands_back => {
                    let _ = reply.send(Err(failure.clone()));
                }
            }
        }
    }
}
