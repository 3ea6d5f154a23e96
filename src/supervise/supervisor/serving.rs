//! What a ready worker does next: jobs, unloads, restored prompts, commands, checks.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{inbox::CommandRequest, state::Supervisor};
use crate::{
    supervise::{
        loaded_models::FAR_FUTURE,
        policy::{self, LossStage},
        startup::{ActiveWorker, wait_for_standby},
        worker_loss::WorkerLoss,
    },
    wire::FromWorker,
};

/// Pause before another replacement is tried when a standby worker failed to start.
const AFTER_FAILED_STANDBY: Duration = Duration::from_secs(30);

/// How one worker ended.
pub(super) enum WorkerExit {
    /// The supervisor is to stop.
    Stopped,
    /// The worker was healthy and is replaced.
    Replaced,
    /// The worker can no longer be used.
    Lost { stage: LossStage, loss: WorkerLoss },
}

/// What woke the supervisor while its worker was idle.
enum Wake {
    /// A job arrived, or a timer ran out.
    Recheck,
    Command(CommandRequest),
    Standby(Result<(), String>),
    /// Time to check whether the worker still answers.
    CheckIdle,
    Lost(WorkerLoss),
    Stop,
}

impl Supervisor {
    /// Gives the worker one thing to do after another until it ends or is replaced.
    pub(super) async fn work(&mut self, worker: &mut ActiveWorker) -> WorkerExit {
        let loss = loop {
            if self.must_replace(worker) {
                return WorkerExit::Replaced;
            }
            let done = if let Some(request) = self.inbox.waiting.take() {
                self.load_and_run(worker, request).await
            } else if let Some(model) = self.models.expired(Instant::now()) {
                self.unload(worker, &model).await
            } else if self.next_lost_prompt(None).is_some() {
                self.restore_lost(worker, None).await
            } else {
                match self.wait_idle(worker).await {
                    Wake::Recheck => continue,
                    Wake::Command(command) => self.execute(worker, command).await,
                    Wake::Standby(Ok(())) => return WorkerExit::Replaced,
                    Wake::Standby(Err(reason)) => {
                        tracing::error!(
                            event = "standby_failed",
                            "the standby worker failed to start; keeping the current one: {reason}"
                        );
                        worker.no_replacement_before = Instant::now() + AFTER_FAILED_STANDBY;
                        self.replacement_permit = None;
                        Ok(())
                    }
                    Wake::CheckIdle => self.check_idle(worker).await,
                    Wake::Lost(loss) => Err(loss),
                    Wake::Stop => return WorkerExit::Stopped,
                }
            };
            if let Err(loss) = done {
                break loss;
            }
            worker.next_check = Instant::now() + self.config.budgets.ping_interval();
        };
        WorkerExit::Lost { stage: LossStage::AfterReady, loss }
    }

    async fn wait_idle(&mut self, worker: &mut ActiveWorker) -> Wake {
        let max_age = self.config.recycle.after.map(|max| worker.ready_since + max);
        let idle_enough = worker.replacement_due_at.map(|_| worker.idle_since + policy::IDLE);
        let timers = [self.models.next_expiry(), max_age, idle_enough, Some(worker.no_replacement_before)];
        // A timer in the past has already had its effect.
        let timer = timers.into_iter().flatten().filter(|at| *at > Instant::now()).min();
        let timer = timer.unwrap_or_else(|| Instant::now() + FAR_FUTURE);
        tokio::select! {
            () = self.stop.cancelled() => Wake::Stop,
            () = self.inbox.receive() => Wake::Recheck,
            Some(command) = self.commands.recv() => Wake::Command(command),
            frame = worker.process.next() => match frame {
                Some(Ok(FromWorker::AutoTrimmed { memory, .. })) => {
                    worker.memory = memory;
                    self.publish_memory(memory);
                    Wake::Recheck
                }
                Some(Ok(FromWorker::Pong)) => Wake::Recheck,
                other => Wake::Lost(WorkerLoss::from_frame(other)),
            },
            outcome = wait_for_standby(&mut self.standby) => Wake::Standby(outcome),
            () = sleep_until(worker.next_check) => Wake::CheckIdle,
            () = sleep_until(timer) => Wake::Recheck,
        }
    }
}
