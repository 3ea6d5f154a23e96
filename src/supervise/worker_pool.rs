//! The handle to all workers of a server, one for each device.
//!
//! A job stays on its device while that has a worker, or gets one soon. Otherwise the supervisor hands the job back, with its
//! answer so far, and the pool runs it on another device: at once if that is idle, else after the job that runs there.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::future::{join_all, select_all};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    handle::SupervisorHandle,
    job_run::{RunHistory, RunOutcome, all_cancelled, cancelled},
    worker_config::WorkerConfig,
};
use crate::{
    job::{Command, CommandOutcome, Event, Failure, GroupedJob, JobId, ModelId, Readiness, SlotReport},
    metrics::Metrics,
};

/// How long a job waits for its own device's next worker while all other devices are busy.
const MIGRATION_DELAY: Duration = Duration::from_secs(5);

/// The handle to all workers of a server; clones refer to the same workers. Devices are numbered in the order of their
/// configurations.
#[derive(Clone, Debug)]
pub struct WorkerPool {
    devices: Arc<[PoolDevice]>,
    /// State of the best device.
    readiness: watch::Receiver<Readiness>,
    /// Changes when any device's state changes or a device becomes idle.
    changes: watch::Receiver<()>,
    change: Arc<watch::Sender<()>>,
}

#[derive(Debug)]
struct PoolDevice {
    label: Option<String>,
    supervisor: SupervisorHandle,
    /// Held while a job is on this device.
    job_permit: Semaphore,
}

impl PoolDevice {
    fn state(&self) -> watch::Ref<'_, Readiness> {
        self.supervisor.readiness().borrow()
    }

    fn is_ready(&self) -> bool {
        matches!(*self.state(), Readiness::Ready(_))
    }

    fn is_idle(&self) -> bool {
        self.job_permit.available_permits() > 0
    }

    fn rank(&self) -> u8 {
        rank(&self.state())
    }
}

/// Rank of a device that will never run a job again.
const UNUSABLE: u8 = 4;

/// How soon a device is likely to run a job; lower is sooner.
const fn rank(state: &Readiness) -> u8 {
    match state {
        Readiness::Ready(_) => 0,
        Readiness::Restarting { .. } => 1,
        Readiness::Starting => 2,
        Readiness::Down { retry_in: Some(_), .. } => 3,
        Readiness::Down { retry_in: None, .. } | Readiness::Stopping => UNUSABLE,
    }
}

impl WorkerPool {
    /// A pool with a worker for each of `configs`, at least one, and the future that starts the workers and replaces those that
    /// end. Healthy workers are replaced one at a time.
    pub fn new(
        configs: Vec<WorkerConfig>,
        metrics: &Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let replacements = Arc::new(Semaphore::new(1));
        let (mut devices, mut supervisors) = (Vec::new(), Vec::new());
        for config in configs {
            let label = config.label.clone();
            let (supervisor, work) =
                SupervisorHandle::new(config, Arc::clone(metrics), Arc::clone(&replacements));
            devices.push(PoolDevice { label, supervisor, job_permit: Semaphore::new(1) });
            supervisors.push(work);
        }
        let (change, changes) = watch::channel(());
        let (merged_state, mut readiness) = watch::channel(merged_state(&devices));
        if let [device] = &devices[..] {
            // Its own channel also carries memory updates, which are not announced as changes.
            readiness = device.supervisor.readiness().clone();
        }
        let pool = Self { devices: devices.into(), readiness, changes, change: Arc::new(change) };
        let watching = pool.clone().watch_devices(merged_state);
        let work = async move {
            tokio::join!(join_all(supervisors), watching);
        };
        (pool, work)
    }

    /// How many devices there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.devices.len()
    }

    /// State of the best device, now and whenever it changes.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// Label and state of each device; a single device has no label.
    pub fn devices(&self) -> impl Iterator<Item = (Option<&str>, watch::Receiver<Readiness>)> {
        self.devices.iter().map(|device| (device.label.as_deref(), device.supervisor.readiness().clone()))
    }

    /// Waits until a device's state has changed, or a device has become idle, since the last call.
    pub async fn changed(&mut self) {
        // This handle holds the sender, so the channel is never closed.
        let _ = self.changes.changed().await;
    }

    /// Whether a device has a model loaded. A device whose worker is starting counts as having it, because it will first load
    /// the model of the job that waits for it.
    #[must_use]
    pub fn is_loaded(&self, slot: usize, model: &ModelId) -> bool {
        self.devices.get(slot).is_none_or(|device| match &*device.state() {
            Readiness::Ready(report) => report.model(model).is_some(),
            _ => true,
        })
    }

    /// Whether a device should get jobs from the queue: it is idle, and no other device will have a worker sooner.
    #[must_use]
    pub fn is_open(&self, slot: usize) -> bool {
        let soonest = self.devices.iter().map(PoolDevice::rank).min();
        self.devices.get(slot).is_some_and(|device| device.is_idle() && Some(device.rank()) == soonest)
    }

    /// Runs `command` on every device, on each before its next job.
    pub async fn command(&self, command: Command) -> Vec<CommandOutcome> {
        let outcomes = self.devices.iter().map(async |device| CommandOutcome {
            device: device.label.clone(),
            outcome: device.supervisor.command(command.clone()).await,
        });
        join_all(outcomes).await
    }

    /// Runs `jobs` together on the device `slot`, or on another one while that has no worker, and sends their events to `events`:
    /// the last one of each job is [`Event::Done`] or [`Event::Failed`]. Waits for a worker if necessary. A job that is cancelled
    /// ends with the next step.
    ///
    /// # Errors
    /// For all jobs without a last event: [`Failure::WorkerLost`] when they have lost two workers, [`Failure::NoWorker`] when no
    /// device will have a worker.
    pub async fn run(
        &self,
        slot: usize,
        jobs: Vec<GroupedJob>,
        events: mpsc::UnboundedSender<(JobId, Event)>,
    ) -> Result<(), Failure> {
        let history = RunHistory::of(jobs.len());
        let (mut slot, mut part) = (slot, (jobs, history));
        loop {
            let permit = tokio::select! {
                biased;
                permit = self.job_permit(slot) => permit,
                () = all_cancelled(&part.0) => {
                    for grouped in &part.0 {
                        let _ = events.send((grouped.job.id, Event::Done(cancelled())));
                    }
                    return Ok(());
                }
                better = self.better_than(slot) => {
                    slot = better;
                    continue;
                }
            };
            let outcome = self.run_on(slot, part, &events).await;
            drop(permit);
            let (jobs, history, why) = match outcome {
                RunOutcome::Finished(end) => return end,
                RunOutcome::HandedBack { jobs, history, why } => (jobs, history, why),
            };
            match (self.instead_of(slot), why) {
                (Some(next), _) => {
                    let device = self.devices[next].label.as_deref().unwrap_or_default();
                    let id = jobs.first().map_or(0, |grouped| grouped.job.id.0);
                    let tokens: usize = jobs.iter().map(|grouped| grouped.job.answer.len()).sum();
                    tracing::warn!(
                        event = "job_moved",
                        job = id,
                        tokens,
                        "no worker on this device; job moved to {device}"
                    );
                    slot = next;
                }
                (None, Some(why)) => return Err(why),
                (None, None) => {}
            }
            part = (jobs, history);
        }
    }

    /// Runs jobs on one device; recalls them while they wait there and another device could run them sooner.
    async fn run_on(
        &self,
        slot: usize,
        part: (Vec<GroupedJob>, RunHistory),
        events: &mpsc::UnboundedSender<(JobId, Event)>,
    ) -> RunOutcome {
        let recall = CancellationToken::new();
        let supervisor = &self.devices[slot].supervisor;
        let attempt = supervisor.run(part, events.clone(), recall.clone());
        tokio::pin!(attempt);
        tokio::select! {
            outcome = &mut attempt => outcome,
            _ = self.better_than(slot) => {
                recall.cancel();
                attempt.await
            }
        }
    }

    /// Asks all workers to end, kills those that do not, and returns when they have ended.
    pub async fn stop(&self) {
        join_all(self.devices.iter().map(|device| device.supervisor.stop())).await;
    }

    async fn job_permit(&self, slot: usize) -> JobPermit<'_> {
        // The semaphore is never closed.
        let permit = self.devices[slot].job_permit.acquire().await.ok();
        JobPermit { permit, change: &self.change }
    }

    /// The best other device for a job of `slot`, if that is likely to run the job sooner.
    fn instead_of(&self, slot: usize) -> Option<usize> {
        let others = self.devices.iter().enumerate().filter(|(other, _)| *other != slot);
        let (other, best) = others.min_by_key(|(_, device)| (device.rank(), !device.is_idle()))?;
        (best.rank() < UNUSABLE.min(self.devices[slot].rank())).then_some(other)
    }

    /// Waits until a job that waits for a worker of `slot` should move to another device, and returns that device: an idle one
    /// at once, a busy one after [`MIGRATION_DELAY`].
    async fn better_than(&self, slot: usize) -> usize {
        let mut changes = self.changes.clone();
        let mut since = None;
        loop {
            changes.mark_unchanged();
            let delay_ends = if self.devices[slot].is_ready() {
                since = None;
                None
            } else {
                Some(*since.get_or_insert_with(Instant::now) + MIGRATION_DELAY)
            };
            if let (Some(delay_ends), Some(other)) = (delay_ends, self.instead_of(slot))
                && self.devices[other].is_ready()
                && (self.devices[other].is_idle() || delay_ends <= Instant::now())
            {
                return other;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = until(delay_ends.filter(|at| *at > Instant::now())) => {}
            }
        }
    }

    /// Publishes every change of state until all supervisors have ended.
    async fn watch_devices(self, merged: watch::Sender<Readiness>) {
        let mut receivers: Vec<_> = self.devices().map(|(_, readiness)| readiness).collect();
        while !receivers.is_empty() {
            let changes = receivers.iter_mut().map(|seen| Box::pin(seen.changed()));
            let (outcome, index, _) = select_all(changes).await;
            if outcome.is_err() {
                receivers.remove(index);
            }
            merged.send_replace(merged_state(&self.devices));
            self.change.send_replace(());
        }
    }
}

fn merged_state(devices: &[PoolDevice]) -> Readiness {
    merged(devices.iter().map(|device| device.state().clone()).collect())
}

/// The right to run a job on a device. Dropping it wakes those who wait for an idle device.
struct JobPermit<'a> {
    permit: Option<SemaphorePermit<'a>>,
    change: &'a watch::Sender<()>,
}

impl Drop for JobPermit<'_> {
    fn drop(&mut self) {
        self.permit = None;
        self.change.send_replace(());
    }
}

/// The state of the best device, with the loaded models of all devices.
fn merged(states: Vec<Readiness>) -> Readiness {
    let mut best = states.iter().min_by_key(|state| rank(state)).cloned().unwrap_or(Readiness::Stopping);
    let Readiness::Ready(SlotReport { models, .. }) = &mut best else { return best };
    for state in states {
        let Readiness::Ready(report) = state else { continue };
        for (id, report) in report.models {
            if models.iter().all(|(known, _)| *known != id) {
                models.push((id, report));
            }
        }
    }
    best
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::job::{Memory, ModelReport, RuntimeReport};

    fn ready(device: &str, models: &[&str]) -> Readiness {
        let memory = Memory::default();
        let report = ModelReport { before: memory, after: memory, ..ModelReport::default() };
        Readiness::Ready(SlotReport {
            runtime: RuntimeReport {
                runtime: "1".into(),
                library: PathBuf::new(),
                device: device.into(),
                gpu: None,
                fell_back: None,
                threads: 1,
                memory,
            },
            models: models.iter().map(|id| ((*id).into(), report.clone())).collect(),
            memory,
        })
    }

    fn down(retry_in: Option<Duration>) -> Readiness {
        Readiness::Down { reason: "it crashed".into(), retry_in }
    }

    #[test]
    fn one_ready_device_makes_the_pool_ready_with_the_models_of_all_devices() {
        let Readiness::Ready(report) =
            merged(vec![down(None), ready("x", &["a", "b"]), ready("y", &["b", "c"])])
        else {
            panic!("one device is ready");
        };
        let ids: Vec<_> = report.models.iter().map(|(id, _)| id.0.as_str()).collect();
        assert_eq!((report.runtime.device.as_str(), ids), ("x", vec!["a", "b", "c"]));
    }

    #[test]
    fn without_a_ready_device_the_state_is_that_of_the_device_likely_ready_first() {
        let restarting = Readiness::Restarting { reason: "it crashed".into() };
        let soon = down(Some(Duration::from_secs(1)));
        assert_eq!(merged(vec![Readiness::Starting, restarting.clone()]), restarting);
        assert_eq!(merged(vec![down(None), soon.clone()]), soon);
        assert_eq!(merged(vec![down(None), Readiness::Starting]), Readiness::Starting);
        assert_eq!(merged(vec![down(None), down(None)]), down(None), "no device will be ready");
    }
}
