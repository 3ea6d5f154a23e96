//! Cancellations and shutdown, which the reader thread notes for the compute thread.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::job::{Job, JobId};

/// Set by the reader thread, checked by the compute thread between two steps.
#[derive(Debug, Default)]
pub(super) struct StopSignals {
    /// Cancelled jobs of the group that runs, and of the one before.
    cancelled: Mutex<BTreeSet<JobId>>,
    shutdown: AtomicBool,
}

impl StopSignals {
    pub(super) fn cancel(&self, job: JobId) {
        self.cancelled().insert(job);
    }

    /// Forgets cancellations. Call this before the last frame of a group: the parent sends those of the next group after it.
    pub(super) fn forget_cancelled(&self) {
        self.cancelled().clear();
    }

    pub(super) fn shut_down(&self) {
        self.shutdown.store(true, Ordering::Relaxed);
    }

    /// Whether `job` must stop.
    pub(super) fn stops(&self, job: &Job) -> bool {
        self.shutdown.load(Ordering::Relaxed) || self.cancelled().contains(&job.id)
    }

    /// A poisoned set is still valid: no code that could panic runs under the lock.
    fn cancelled(&self) -> MutexGuard<'_, BTreeSet<JobId>> {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
