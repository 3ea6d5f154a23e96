//! Replacing a worker that is healthy, or that leaks memory.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::state::Supervisor;
use crate::{
    job::Readiness,
    supervise::{
        policy::{self, ServiceRecord},
        startup::{ActiveWorker, Standby},
    },
    units::Bytes,
};

/// Pause before another try while another device replaces its worker.
const AFTER_OTHER_DEVICE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Whether the worker must end now because it is replaced. When a replacement becomes due, a standby worker is started if
    /// memory allows. Without a standby the worker ends at a moment when no job needs it.
    pub(super) fn must_replace(&mut self, worker: &mut ActiveWorker) -> bool {
        if !worker.leaks_memory && worker.no_replacement_before > Instant::now() {
            return false;
        }
        let due = policy::recycle(&self.config.recycle, &self.service_record(worker));
        if (worker.leaks_memory || due.is_some()) && !self.may_replace() {
            worker.no_replacement_before = Instant::now() + AFTER_OTHER_DEVICE;
            return false;
        }
        if worker.leaks_memory {
            return true;
        }
        let Some(why) = due else { return false };
        if worker.replacement_due_at.is_none() {
            tracing::info!(event = "worker_replaced", "replacing the worker: {why}");
            worker.replacement_due_at = Some(worker.jobs);
            self.start_standby(worker);
        }
        if self.config.recycle.between_requests {
            return true;
        }
        let jobs_since_due = worker.jobs - worker.replacement_due_at.unwrap_or(worker.jobs);
        let ends = self.standby.is_none()
            && policy::may_end_without_standby(worker.idle_since.elapsed(), jobs_since_due);
        if ends {
            let reason = format!("the worker is replaced: {why}");
            self.readiness.send_replace(Readiness::Restarting { reason });
        }
        ends
    }

    /// Takes the permit to replace this worker. Only one device may do that at a time, unless every job gets its own worker.
    pub(super) fn may_replace(&mut self) -> bool {
        if self.replacement_permit.is_none() {
            self.replacement_permit = Arc::clone(&self.replacements).try_acquire_owned().ok();
        }
        self.replacement_permit.is_some() || self.config.recycle.between_requests
    }

    /// Starts the next worker beside this one if memory allows both.
    pub(super) fn start_standby(&mut self, worker: &ActiveWorker) {
        if self.standby.is_none() && policy::fits_twice((self.config.available_memory)(), worker.memory) {
            self.metrics.starts.inc();
            self.standby = Some(Standby::start(Arc::clone(&self.config), self.models.by_use()));
        }
    }

    fn service_record(&self, worker: &ActiveWorker) -> ServiceRecord {
        let runtime = worker.runtime.memory.anonymous;
        let expected =
            runtime.zip(self.models.anonymous()).map(|(runtime, models)| Bytes(runtime.0 + models.0));
        let (age, held) = (worker.ready_since.elapsed(), worker.memory.lasting());
        ServiceRecord { jobs: worker.jobs, age, expected, held }
    }
}
