//! Checking that an idle worker is alive.

use super::state::Supervisor;
use crate::{
    supervise::{rpc, startup::ActiveWorker, watchdog::IdleCheck, worker_loss::WorkerLoss},
    wire::ToWorker,
};

impl Supervisor {
    /// Pings an idle worker, or reports it as hung when it has not answered in time.
    pub(super) async fn check_idle(&self, worker: &mut ActiveWorker) -> Result<(), WorkerLoss> {
        if !worker.process.ping_pending() {
            worker.pings.answered();
        }
        let budgets = &self.config.budgets;
        match worker.pings.check() {
            IdleCheck::Ping => rpc::send_without_ping(&mut worker.process, &ToWorker::Ping, budgets).await,
            IdleCheck::Wait => Ok(()),
            IdleCheck::Hung => {
                let seconds = budgets.idle.as_secs_f64();
                Err(WorkerLoss::hung(format!(
                    "no answer to a ping for {seconds:.1} s while the worker was idle"
                )))
            }
        }
    }
}
