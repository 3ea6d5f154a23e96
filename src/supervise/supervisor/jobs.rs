//! Running a job on the current worker.

use tokio::time::Instant;

use super::state::Supervisor;
use crate::{
    job::{Event, Failure},
    supervise::{
        job_run::JobRequest,
        policy::{self, AfterLoss},
        startup::ActiveWorker,
        worker_loss::WorkerLoss,
    },
};

impl Supervisor {
    /// Loads the job's model if necessary and runs the job. If the worker is lost, the job waits for the next one.
    pub(super) async fn load_and_run(
        &mut self,
        worker: &mut ActiveWorker,
        mut request: JobRequest,
    ) -> Result<(), WorkerLoss> {
        if request.is_cancelled() {
            request.answer_cancelled();
            return Ok(());
        }
        request.history.began.get_or_insert_with(Instant::now);
        let model = request.model();
        if !self.models.is_loaded(&model) {
            request.send_to_all(&Event::Loading);
            request.history.is_loading = true;
            match self.load(worker, &model).await {
                Ok(Ok(())) => {}
                Ok(Err(message)) => {
                    request.answer(Err(Failure::Model { model, message }));
                    return Ok(());
                }
                Err(loss) => {
                    self.load_losses += 1;
                    self.inbox.waiting = Some(request);
                    return Err(loss);
                }
            }
        }
        // A resumed job does not wait for prompts that it may not need.
        if request.lost() == 0
            && let Err(loss) = self.restore_lost(worker, Some(&model)).await
        {
            self.inbox.waiting = Some(request);
            return Err(loss);
        }
        if self.config.recycle.between_requests {
            self.start_standby(worker);
        }
        self.run_job(worker, request).await
    }

    /// Runs a job whose model is loaded.
    async fn run_job(
        &mut self,
        worker: &mut ActiveWorker,
        mut request: JobRequest,
    ) -> Result<(), WorkerLoss> {
        if std::mem::take(&mut request.history.is_loading) {
            request.send_to_all(&Event::Loaded);
        }
        let model = request.model();
        let watchdog = self.watchdogs.of(&model, &self.config);
        // Jobs that have ended leave the request.
        let keep_alive = request.first().and_then(|job| job.keep_alive);
        let outcome = request.run_on(&mut worker.process, watchdog, self.config.spec.prefill_chunk).await;
        self.models.touch(&model, Instant::now());
        if let Some(keep_alive) = keep_alive {
            self.models.keep(&model, keep_alive);
        }
        match outcome {
            Ok(memory) => {
                if let Some(memory) = memory {
                    self.failures = 0;
                    worker.jobs += 1;
                    worker.idle_since = Instant::now();
                    worker.memory = memory.after;
                    self.metrics.set_peaks(&memory);
                    self.publish_memory(worker.memory);
                }
                request.answer(Ok(()));
                Ok(())
            }
            Err(loss) => {
                self.keep_or_fail(request, &loss);
                Err(loss)
            }
        }
    }

    /// Keeps a job for the next worker, or fails it when it has lost too many.
    fn keep_or_fail(&mut self, mut request: JobRequest, loss: &WorkerLoss) {
        request.jobs.iter_mut().for_each(|grouped| grouped.job.lost += 1);
        match policy::after_loss(request.lost()) {
            AfterLoss::Resume => {
                self.metrics.resumed.inc();
                let job = request.first().map_or(0, |job| job.id.0);
                let tokens: usize = request.jobs.iter().map(|grouped| grouped.job.answer.len()).sum();
                tracing::warn!(
                    event = "job_resumed",
                    job,
                    tokens,
                    "worker lost; the job will resume on the next worker"
                );
                self.inbox.waiting = Some(request);
            }
            AfterLoss::Fail => {
                let message =
                    format!("{} workers in a row ended while running it: {}", request.lost(), loss.reason);
                request.answer(Err(Failure::WorkerLost { message }));
            }
        }
    }
}
