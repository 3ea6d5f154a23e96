//! What the tasks of a node share.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::{kept::Kept, offers::Offers, runs::Runs};
use crate::{
    cluster::{
        broker::Broker,
        jetstream::TicketStream,
        messages::{JOB_FORMAT, NodeState, PoolState, SlotState},
        options::Options,
        subjects::Pool,
    },
    executor::Executor,
    job::{Command, CommandOutcome, JobId, ModelId, Readiness},
    metrics::Metrics,
};

/// Gives the state of each device, with its name if there are several.
pub type Devices = Arc<dyn Fn() -> Vec<(Option<String>, Readiness)> + Send + Sync>;

/// How gateways operate a node.
pub struct Operators {
    /// Runs a command on every device.
    pub command: Box<dyn Fn(Command) -> CommandOutcomes + Send + Sync>,
    /// Makes the process stop after the jobs that it has.
    pub drain: Box<dyn Fn() + Send + Sync>,
}

/// The outcomes of a command, when it has ended.
pub type CommandOutcomes = Pin<Box<dyn Future<Output = Vec<CommandOutcome>> + Send>>;

/// What the tasks of a node share.
pub(super) struct Shared {
    pub(super) broker: Broker,
    pub(super) stream: TicketStream,
    pub(super) options: Options,
    pub(super) pools: Vec<(Pool, ModelId)>,
    pub(super) executor: Executor,
    pub(super) devices: Devices,
    pub(super) metrics: Arc<Metrics>,
    /// Random, and different after a restart.
    pub(super) instance: u64,
    pub(super) operators: Operators,
    pub(super) runs: Runs,
    pub(super) kept: Kept,
    pub(super) offers: Offers,
    /// A slot may have become free.
    pub(super) freed: Notify,
    /// The state has changed in a way that gateways should know at once.
    pub(super) changed: Notify,
    pub(super) is_draining: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.options.id).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Slots that can take jobs now.
    pub(super) fn free_slots(&self) -> usize {
        if self.is_draining() {
            return 0;
        }
        let states = (self.devices)();
        let ready = states.iter().filter(|(_, state)| matches!(state, Readiness::Ready(_))).count();
        ready.saturating_sub(self.runs.busy())
    }

    /// The number of the slot that runs a job; 0 if it has ended.
    pub(super) fn slot_of(&self, job: JobId) -> u16 {
        let running = self.executor.snapshot().running;
        let slot = running.iter().find(|one| one.job.id == job).map(|one| one.slot);
        slot.and_then(|slot| u16::try_from(slot).ok()).unwrap_or_default()
    }

    /// The pool of a model.
    pub(super) fn pool_of(&self, model: &ModelId) -> Option<&Pool> {
        self.pools.iter().find(|(_, one)| one == model).map(|(pool, _)| pool)
    }

    /// For each pool, whether a device has its model loaded.
    pub(super) fn loaded(&self) -> Vec<bool> {
        let states = (self.devices)();
        let has = |model: &ModelId| {
            states
                .iter()
                .any(|(_, state)| matches!(state, Readiness::Ready(report) if report.model(model).is_some()))
        };
        self.pools.iter().map(|(_, model)| has(model)).collect()
    }

    pub(super) fn state(&self) -> NodeState {
        let pools = self.pools.iter();
        let slots = (self.devices)().into_iter();
        let (kept, tokens_per_second) = self.kept.report();
        NodeState {
            node: self.options.id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            format: JOB_FORMAT,
            instance: self.instance,
            pools: pools
                .map(|(pool, model)| PoolState { pool: pool.as_str().into(), model: model.clone() })
                .collect(),
            slots: slots
                .map(|(label, readiness)| SlotState { label, readiness: without_paths(readiness) })
                .collect(),
            kept,
            tokens_per_second,
            draining: self.is_draining(),
            leaving: false,
        }
    }
}

/// The state of a device without what only this machine's log may show.
fn without_paths(mut readiness: Readiness) -> Readiness {
    match &mut readiness {
        Readiness::Ready(report) => {
            report.runtime.library.clear();
            report.runtime.fell_back = None;
        }
        Readiness::Restarting { reason } | Readiness::Down { reason, .. } => {
            *reason = "see the log of the node".into();
        }
        Readiness::Starting | Readiness::Stopping => {}
    }
    readiness
}
