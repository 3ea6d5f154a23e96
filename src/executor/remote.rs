//! A queue whose jobs run on other machines. These decide which job is next and claim it by its id, so there are no slots that
//! look for jobs. All else is as in a local queue: limits, deadlines, cancellation, metrics, and what `/v1/slot` shows.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};

use super::{
    handle::Executor,
    limits::Limits,
    queue::QueuedJob,
    queue_change::QueueChange,
    shared::Shared,
    slot::{run_group, watch_deadlines},
    snapshot::JobOutcome,
};
use crate::{
    job::{Event, Failure, GroupedJob, Job, JobId},
    metrics::Metrics,
};

/// The end of a queue for those who run its jobs.
#[derive(Clone, Debug)]
pub struct RemoteQueue {
    shared: Arc<Shared>,
}

/// Jobs that have left the queue and have to be run.
#[derive(Debug)]
pub struct ClaimedGroup {
    slot: usize,
    jobs: Vec<QueuedJob>,
}

impl Executor {
    /// A queue whose jobs are claimed; its other end, its changes, and the future that watches deadlines.
    pub fn remote(
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> (Self, RemoteQueue, UnboundedReceiver<QueueChange>, impl Future<Output = ()> + Send + 'static) {
        let (sender, changes) = unbounded_channel();
        let shared = Arc::new(Shared { changes: Some(sender), ..Shared::new(limits, metrics) });
        shared.queue().set_remote_slots(0, 0);
        let deadlines = watch_deadlines(Arc::clone(&shared));
        (Self { shared: Arc::clone(&shared) }, RemoteQueue { shared }, changes, deadlines)
    }
}

impl RemoteQueue {
    /// Sets how many slots there are, and how many of them can take jobs now.
    pub fn set_slots(&self, slots: usize, live: usize) {
        self.shared.queue().set_remote_slots(slots, live);
    }

    /// Sets how many jobs wait for the same slots in the queues of other processes.
    pub fn set_waiting_elsewhere(&self, jobs: usize) {
        self.shared.queue().set_waiting_elsewhere(jobs);
    }

    /// Whether a job of this group waits.
    #[must_use]
    pub fn is_waiting(&self, group: JobId) -> bool {
        self.shared.queue().waiting_group(group).is_some()
    }

    /// The first waiting job of a group.
    #[must_use]
    pub fn first_of(&self, group: JobId) -> Option<Job> {
        self.shared.queue().first_of(group)
    }

    /// Number of running jobs of each slot that has any.
    #[must_use]
    pub fn running(&self) -> BTreeMap<usize, usize> {
        let mut slots = BTreeMap::new();
        for running in self.shared.queue().running() {
            *slots.entry(running.slot).or_default() += 1;
        }
        slots
    }

    /// Jobs that wait, and groups of jobs that do not run yet or any more are not among them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue().jobs()
    }

    /// Takes the jobs of a group that still wait; `None` if all have left.
    #[must_use]
    pub fn claim(&self, group: JobId, slot: usize) -> Option<ClaimedGroup> {
        self.shared.fail_overdue();
        let taken = self.shared.update(|queue| queue.take_group(group, slot, Instant::now()));
        let (cancelled, jobs): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|job| job.cancel.is_cancelled());
        for job in cancelled {
            job.send_cancelled();
            self.shared.update(|queue| {
                queue.release(job.job.id);
                queue.count(JobOutcome::Cancelled);
            });
        }
        (!jobs.is_empty()).then_some(ClaimedGroup { slot, jobs })
    }

    /// Runs claimed jobs with `run`, as a slot of a local queue would.
    pub async fn run<R, F>(&self, claimed: ClaimedGroup, mut run: R)
    where
        R: FnMut(Vec<GroupedJob>, UnboundedSender<(JobId, Event)>) -> F + Send,
        F: Future<Output = Result<(), Failure>> + Send,
    {
        run_group(&self.shared, claimed.slot, &mut run, claimed.jobs).await;
        self.shared.left.notify_waiters();
    }

    /// Notes that running jobs have moved to another slot.
    pub fn move_to(&self, jobs: &[JobId], slot: usize) {
        self.shared.queue().move_to(jobs, slot);
    }
}
