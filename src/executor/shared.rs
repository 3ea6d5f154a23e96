//! State that the executor, its tickets and its slots share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64};

use tokio::{
    sync::{Notify, mpsc::UnboundedSender},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    estimate::{SlotUsage, Work},
    limits::Limits,
    queue::{Queue, QueuedJob},
    queue_change::QueueChange,
    snapshot::{FinishedJob, JobOutcome},
};
use crate::{
    job::{Event, Failure, JobId},
    metrics::Metrics,
};

/// State that the executor, its tickets and its slots share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) last_id: AtomicU64,
    /// A job was accepted, a slot became free, or the queue was closed: slots look for a job.
    pub(super) arrived: Notify,
    /// A job was accepted, which may have the earliest deadline.
    pub(super) deadlines_changed: Notify,
    /// A job left the queue or a slot: the queue may be idle.
    pub(super) left: Notify,
    /// The grace time of a drain has passed.
    pub(super) cut_off: CancellationToken,
    /// Where a remote queue reports its changes.
    pub(super) changes: Option<UnboundedSender<QueueChange>>,
}

impl Shared {
    pub(super) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            queue: Mutex::new(Queue::new(limits)),
            metrics,
            last_id: AtomicU64::new(0),
            arrived: Notify::new(),
            deadlines_changed: Notify::new(),
            left: Notify::new(),
            cut_off: CancellationToken::new(),
            changes: None,
        }
    }

    /// Reports a group of jobs that now waits.
    pub(super) fn note_accepted(&self, group: JobId) {
        if let Some(changes) = &self.changes
            && let Some(accepted) = self.queue().waiting_group(group)
        {
            let _ = changes.send(QueueChange::Accepted(accepted));
        }
    }

    /// Reports that a waiting job was removed from the queue.
    pub(super) fn note_withdrawn(&self, removed: &QueuedJob) {
        if let Some(changes) = &self.changes {
            let _ = changes.send(QueueChange::Withdrawn(removed.group));
        }
    }

    /// A poisoned queue is still valid: no code that could panic runs under the lock.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue and updates its gauges.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue();
        let changed = change(&mut queue);
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.queue_jobs.set(gauge(queue.jobs()));
        self.metrics.queue_prompt_tokens.set(gauge(queue.prompt_tokens().0));
        self.metrics.slot_busy.set(gauge(queue.running().len()));
        drop(queue);
        self.left.notify_waiters();
        changed
    }

    /// The next job for this slot that is not cancelled, with the other jobs of its group.
    pub(super) fn take_next(&self, slot: usize) -> Option<Vec<QueuedJob>> {
        self.fail_overdue();
        loop {
            let now = Instant::now();
            let taken = self.update(|queue| {
                let first = queue.take(slot, now)?;
                let rest = queue.take_rest(first.group, slot, now);
                Some(std::iter::once(first).chain(rest).collect::<Vec<_>>())
            })?;
            let (cancelled, next): (Vec<_>, Vec<_>) =
                taken.into_iter().partition(|job| job.cancel.is_cancelled());
            for job in cancelled {
                job.send_cancelled();
                self.update(|queue| {
                    queue.release(job.job.id);
                    queue.count(JobOutcome::Cancelled);
                });
            }
            if !next.is_empty() {
                return Some(next);
            }
        }
    }

    /// Fails waiting jobs whose deadline has passed; returns the next deadline.
    pub(super) fn fail_overdue(&self) -> Option<Instant> {
        let now = Instant::now();
        while let Some((late, failure)) = self.update(|queue| queue.remove_overdue(now)) {
            self.queue().count(JobOutcome::Failed);
            self.note_withdrawn(&late);
            late.send(Event::Failed(failure));
        }
        self.queue().next_deadline()
    }

    pub(super) fn note_progress(&self, id: JobId, remains: Work) {
        self.queue().note_progress(id, remains, Instant::now());
    }

    pub(super) fn release(&self, id: JobId, taken: SlotUsage, past: FinishedJob) {
        self.update(|queue| {
            queue.learn(taken);
            queue.remember(past);
            queue.release(id);
        });
    }

    /// Whether the queue is closed and empty.
    pub(super) fn is_over(&self) -> bool {
        let queue = self.queue();
        queue.jobs() == 0 && !queue.is_accepting()
    }

    /// Fails all waiting jobs, and makes the slots end the running ones.
    pub(super) fn cut_off(&self) {
        self.cut_off.cancel();
        while let Some(waiting) = self.update(Queue::remove_first) {
            self.queue().count(JobOutcome::Failed);
            self.note_withdrawn(&waiting);
            waiting.send(Event::Failed(Failure::ShuttingDown));
        }
    }

    /// Waits until no job waits or runs.
    pub(super) async fn idle(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.queue().is_idle() {
                return;
            }
            left.await;
        }
    }
}
