//! All supervisors of one server, one for each device.
//!
//! A job is given to a device and stays there as long as it has a worker, or gets one soon. When it does not, the job comes
//! back, with all that was said of its answer, and goes to another device as soon as that is free: after its running job at
//! the latest, as whoever waits for a device has it in turn.

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::future::{join_all, select_all};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Foreman, Runner, Supervisor, WorkerCommand,
    conversation::{End, History, cancelled},
};
use crate::{
    job::{Event, Failure, Finish, Job, ModelId, Order, OrderOutcome, Readiness, SlotReport},
    metrics::Metrics,
};

/// How long a job waits for its own device's next worker, while other devices have one but no time for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The devices of one server.
#[derive(Debug)]
pub struct Fleet {
    supervisors: Vec<Supervisor>,
    readiness: watch::Receiver<Readiness>,
    view: FleetView,
}

/// A handle to run jobs on one of the devices, or on another when that has no worker.
#[derive(Clone, Debug)]
pub struct FleetRunner {
    slot: usize,
    view: FleetView,
}

/// A handle to have something done on all devices.
#[derive(Clone, Debug)]
pub struct FleetForeman {
    foremen: Vec<(Option<String>, Foreman)>,
}

/// What can be seen of the devices; they are numbered as they were named.
#[derive(Clone, Debug)]
pub struct FleetView {
    devices: Arc<[Device]>,
    /// Changes with any of them.
    changes: watch::Receiver<()>,
    change: Arc<watch::Sender<()>>,
}

#[derive(Debug)]
struct Device {
    label: Option<String>,
    runner: Runner,
    readiness: watch::Receiver<Readiness>,
    /// The right to give it a job.
    turn: Semaphore,
}

impl Device {
    fn is_ready(&self) -> bool {
        matches!(*self.readiness.borrow(), Readiness::Ready(_))
    }

    fn is_idle(&self) -> bool {
        self.turn.available_permits() > 0
    }

    fn rank(&self) -> u8 {
        rank(&self.readiness.borrow())
    }
}

/// Of a device that will not run any job again.
const HOPELESS: u8 = 4;

/// How soon a device is likely to run a job; less is sooner.
const fn rank(state: &Readiness) -> u8 {
    match state {
        Readiness::Ready(_) => 0,
        Readiness::Restarting { .. } => 1,
        Readiness::Starting => 2,
        Readiness::Down { retry_in: Some(_), .. } => 3,
        Readiness::Down { retry_in: None, .. } | Readiness::Stopping => HOPELESS,
    }
}

impl Fleet {
    /// A supervisor for each of `commands`, at least one, and the future that keeps their workers alive.
    ///
    /// Workers that make way while they work do so one after the other.
    pub fn new(
        commands: Vec<WorkerCommand>,
        metrics: &Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let turns = Arc::new(Semaphore::new(1));
        let (mut supervisors, mut devices, mut keeping) = (Vec::new(), Vec::new(), Vec::new());
        for command in commands {
            let label = command.label.clone();
            let (supervisor, keeper) = Supervisor::in_turn(command, Arc::clone(metrics), Arc::clone(&turns));
            let (runner, readiness) = (supervisor.runner(), supervisor.readiness());
            devices.push(Device { label, runner, readiness, turn: Semaphore::new(1) });
            supervisors.push(supervisor);
            keeping.push(keeper);
        }
        let (change, changes) = watch::channel(());
        let view = FleetView { devices: devices.into(), changes, change: Arc::new(change) };
        let (merged, readiness) = watch::channel(view.merged());
        let watching = view.clone().watch(merged);
        let work = async move {
            tokio::join!(join_all(keeping), watching);
        };
        (Self { supervisors, readiness, view }, work)
    }

    /// Whether jobs can be run on any device, now and whenever it changes.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// What can be seen of each device.
    #[must_use]
    pub fn view(&self) -> FleetView {
        self.view.clone()
    }

    /// A handle for each device to run jobs with.
    #[must_use]
    pub fn runners(&self) -> Vec<FleetRunner> {
        (0..self.supervisors.len()).map(|slot| FleetRunner { slot, view: self.view.clone() }).collect()
    }

    /// A handle to have something done between two jobs, on all devices.
    #[must_use]
    pub fn foreman(&self) -> FleetForeman {
        let labels = self.view.devices.iter().map(|device| device.label.clone());
        FleetForeman { foremen: labels.zip(self.supervisors.iter().map(Supervisor::foreman)).collect() }
    }

    /// Ends all workers, kindly at first, and returns when they are gone.
    pub async fn stop(self) {
        join_all(self.supervisors.into_iter().map(Supervisor::stop)).await;
    }
}

impl FleetForeman {
    /// Has `order` done on every device, on each as soon as it is free, and says what came of it there.
    pub async fn give(&self, order: Order) -> Vec<OrderOutcome> {
        let obeyed = self.foremen.iter().map(async |(device, foreman)| OrderOutcome {
            device: device.clone(),
            outcome: foreman.give(order.clone()).await,
        });
        join_all(obeyed).await
    }
}

impl FleetRunner {
    /// Runs `job`, waiting for a worker if need be, and passes on what it says. After `cancel` it returns as soon as the
    /// worker has stopped, with what was done so far.
    ///
    /// # Errors
    /// As [`Runner::run`], and [`Failure::NoWorker`] only when no device will have one.
    pub async fn run(
        &self,
        job: Job,
        events: tokio::sync::mpsc::UnboundedSender<Event>,
        cancel: CancellationToken,
    ) -> Result<Finish, Failure> {
        let (view, mut slot, mut part) = (&self.view, self.slot, (job, History::default()));
        loop {
            let device = &view.devices[slot];
            let turn = tokio::select! {
                biased;
                turn = view.turn_at(slot) => turn,
                () = cancel.cancelled() => return Ok(cancelled()),
                better = view.better_than(slot) => {
                    slot = better;
                    continue;
                }
            };
            let recall = CancellationToken::new();
            let attempt = device.runner.attempt(part, events.clone(), cancel.clone(), recall.clone());
            tokio::pin!(attempt);
            let end = tokio::select! {
                end = &mut attempt => end,
                _ = view.better_than(slot) => {
                    recall.cancel();
                    attempt.await
                }
            };
            drop(turn);
            match end {
                End::Over(end) => return end,
                End::Returned { job, history, why } => {
                    let (id, tokens) = (job.id.0, job.answer.len());
                    part = (job, history);
                    match (view.instead_of(slot), why) {
                        (Some(next), _) => {
                            let to = view.devices[next].label.as_deref();
                            tracing::warn!(
                                job = id,
                                tokens,
                                "its device has no worker; {} goes on with it",
                                to.unwrap_or_default()
                            );
                            slot = next;
                        }
                        (None, Some(why)) => return Err(why),
                        (None, None) => {}
                    }
                }
            }
        }
    }
}

/// The right to give a device a job; others hear of its end.
struct Turn<'a> {
    permit: Option<SemaphorePermit<'a>>,
    change: &'a watch::Sender<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.permit = None;
        self.change.send_replace(());
    }
}

impl FleetView {
    /// Returns whenever something has changed since the last time.
    pub async fn changed(&mut self) {
        // This view holds the sender itself.
        let _ = self.changes.changed().await;
    }

    /// The devices' names and states; without names where there is but one.
    pub fn devices(&self) -> impl Iterator<Item = (Option<&str>, watch::Receiver<Readiness>)> {
        self.devices.iter().map(|device| (device.label.as_deref(), device.readiness.clone()))
    }

    /// Whether a device has a model loaded. One whose worker is coming up loads whatever is asked for first.
    #[must_use]
    pub fn is_loaded(&self, slot: usize, model: &ModelId) -> bool {
        self.devices.get(slot).is_none_or(|device| match &*device.readiness.borrow() {
            Readiness::Ready(report) => report.model(model).is_some(),
            _ => true,
        })
    }

    /// Whether a device is to be given jobs from the queue: it has no other device's, and no device has a worker sooner.
    #[must_use]
    pub fn is_open(&self, slot: usize) -> bool {
        let soonest = self.devices.iter().map(Device::rank).min();
        self.devices.get(slot).is_some_and(|device| device.is_idle() && Some(device.rank()) == soonest)
    }

    async fn turn_at(&self, slot: usize) -> Turn<'_> {
        // Never closed.
        let permit = self.devices[slot].turn.acquire().await.ok();
        Turn { permit, change: &self.change }
    }

    /// Another device that can have a job of `slot`, whose own has no worker.
    fn instead_of(&self, slot: usize) -> Option<usize> {
        let others = self.devices.iter().enumerate().filter(|(other, _)| *other != slot);
        let (other, best) = others.min_by_key(|(_, device)| (device.rank(), !device.is_idle()))?;
        (best.rank() < HOPELESS.min(self.devices[slot].rank())).then_some(other)
    }

    /// Returns another device when a job that waits for a worker of `slot` had better go there: at once to one that has
    /// nothing to do, after a while to one that has.
    async fn better_than(&self, slot: usize) -> usize {
        let mut changes = self.changes.clone();
        let mut since = None;
        loop {
            changes.mark_unchanged();
            let patience = if self.devices[slot].is_ready() {
                since = None;
                None
            } else {
                Some(*since.get_or_insert_with(Instant::now) + PATIENCE)
            };
            if let (Some(until), Some(other)) = (patience, self.instead_of(slot))
                && self.devices[other].is_ready()
                && (self.devices[other].is_idle() || until <= Instant::now())
            {
                return other;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = until(patience.filter(|until| *until > Instant::now())) => {}
            }
        }
    }

    /// Tells of every change until all devices are gone.
    async fn watch(self, merged: watch::Sender<Readiness>) {
        let mut receivers: Vec<_> = self.devices.iter().map(|device| device.readiness.clone()).collect();
        while !receivers.is_empty() {
            let changes = receivers.iter_mut().map(|seen| Box::pin(seen.changed()));
            let (outcome, place, _) = select_all(changes).await;
            if outcome.is_err() {
                receivers.remove(place);
            }
            merged.send_replace(self.merged());
            self.change.send_replace(());
        }
    }

    fn merged(&self) -> Readiness {
        merged(self.devices.iter().map(|device| device.readiness.borrow().clone()).collect())
    }
}

/// The state of the best device; what is loaded anywhere is loaded.
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
    use crate::job::{Memory, ModelReport, Placement, RuntimeReport};

    fn ready(device: &str, models: &[&str]) -> Readiness {
        let memory = Memory::default();
        let report = ModelReport {
            placement: Placement::default(),
            capacity: 64,
            decode_threads: None,
            prefill_threads: None,
            draft: None,
            load_time: Duration::ZERO,
            before: memory,
            after: memory,
        };
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
        Readiness::Down { reason: "it fell".into(), retry_in }
    }

    #[test]
    fn one_device_that_is_ready_is_enough_and_tells_of_all_models() {
        let Readiness::Ready(report) =
            merged(vec![down(None), ready("x", &["a", "b"]), ready("y", &["b", "c"])])
        else {
            panic!("one is ready");
        };
        let ids: Vec<_> = report.models.iter().map(|(id, _)| id.0.as_str()).collect();
        assert_eq!((report.runtime.device.as_str(), ids), ("x", vec!["a", "b", "c"]));
    }

    #[test]
    fn while_none_is_ready_the_one_that_is_likely_to_be_first_speaks() {
        let restarting = Readiness::Restarting { reason: "it fell".into() };
        let soon = down(Some(Duration::from_secs(1)));
        assert_eq!(merged(vec![Readiness::Starting, restarting.clone()]), restarting);
        assert_eq!(merged(vec![down(None), soon.clone()]), soon);
        assert_eq!(merged(vec![down(None), Readiness::Starting]), Readiness::Starting);
        assert_eq!(merged(vec![down(None), down(None)]), down(None), "only then is there no hope");
    }
}
