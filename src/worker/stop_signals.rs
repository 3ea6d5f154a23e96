//! Cancellations and shutdown, which the reader thread notes for the compute thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::job::{Job, JobId};

/// Set by the reader thread, checked by the compute thread between two steps.
#[derive(Debug, Default)]
pub(super) struct StopSignals {
    /// Number of the last cancelled job plus one; 0 means none. One is enough, because one job runs at a time.
    cancelled: AtomicU64,
    shutdown: AtomicBool,
}

impl StopSignals {
    pub(super) fn cancel(&self, job: JobId) {
        self.cancelled.store(job.0 + 1, Ordering::Relaxed);
    }

    pub(super) fn shut_down(&self) {
        self.shutdown.store(true, Ordering::Relaxed);
    }

    /// Whether `job` must stop.
    pub(super) fn stops(&self, job: &Job) -> bool {
        self.shutdown.load(Ordering::Relaxed) || self.cancelled.load(Ordering::Relaxed) == job.id.0 + 1
    }
}
