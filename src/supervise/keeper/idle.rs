//! A worker that has nothing to do.

use super::Keeper;
use crate::{
    supervise::{
        boot::Worker,
        exchange::{self, Lost},
        watchdog::Idle,
    },
    wire::Down,
};

impl Keeper {
    /// Looks whether an idle worker is alive.
    pub(super) async fn look(&self, worker: &mut Worker) -> Result<(), Lost> {
        if !worker.process.is_pinged() {
            worker.pings.answered();
        }
        let budgets = &self.command.budgets;
        match worker.pings.look() {
            Idle::Ping => exchange::send_unasked(&mut worker.process, &Down::Ping, budgets).await,
            Idle::Wait => Ok(()),
            Idle::Hung => {
                let seconds = budgets.idle.as_secs_f64();
                Err(Lost::hung(format!("no answer to a ping for {seconds:.1} s while it was idle")))
            }
        }
    }
}
