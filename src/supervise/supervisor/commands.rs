//! Commands that run between two jobs.

use tokio::time::Instant;

use super::{inbox::CommandRequest, state::Supervisor};
use crate::{
    job::{Command, CommandReport, Failure},
    supervise::{restored_prompts::RestoredPrompt, rpc, startup::ActiveWorker, worker_loss::WorkerLoss},
};

impl Supervisor {
    /// Runs a command and sends its result.
    pub(super) async fn execute(
        &mut self,
        worker: &mut ActiveWorker,
        (command, reply): CommandRequest,
    ) -> Result<(), WorkerLoss> {
        let (before, began) = (worker.memory, Instant::now());
        let done = self.try_execute(worker, command).await;
        let outcome = match &done {
            Ok(outcome) => outcome.clone(),
            Err(loss) => Err(Failure::WorkerLost { message: loss.reason.clone() }),
        };
        let (took, loaded) = (began.elapsed(), self.models.ids());
        let report = CommandReport { before, after: worker.memory, took, loaded };
        // The receiver may be gone.
        let _ = reply.send(outcome.map(|()| report));
        done.map(drop)
    }

    async fn try_execute(
        &mut self,
        worker: &mut ActiveWorker,
        command: Command,
    ) -> Result<Result<(), Failure>, WorkerLoss> {
        match command {
            Command::Load { model, keep_alive } => {
                if let Some(keep_alive) = keep_alive {
                    self.models.keep(&model, keep_alive);
                }
                return self.ensure_loaded(worker, model).await;
            }
            Command::Unload { model } => self.unload(worker, &model).await?,
            Command::Trim => {
                self.restored.forget(None);
                worker.memory = rpc::trim(&mut worker.process, &self.config).await?;
                self.publish_ready(worker);
            }
            Command::Restore { model, name, file, salt } => {
                if let Err(failure) = self.ensure_loaded(worker, model.clone()).await? {
                    return Ok(Err(failure));
                }
                return self.restore(worker, RestoredPrompt { model, name, file, salt }).await;
            }
            Command::Forget { name } => {
                self.restored.forget(Some(&name));
                worker.memory = rpc::forget(&mut worker.process, &self.config, name).await?;
                self.publish_ready(worker);
            }
        }
        Ok(Ok(()))
    }
}
