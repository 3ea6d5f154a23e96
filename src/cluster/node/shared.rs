//! What the tasks of a node share.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::runs::Runs;
use crate::{
    cluster::{
        broker::Broker,
        jetstream::TicketStream,
        messages::{JOB_FORMAT, NodeState, PoolState, SlotState},
        options::Options,
        subjects::Pool,
    },
    executor::Executor,
    job::{ModelId, Readiness},
    metrics::Metrics,
};

/// Gives the state of each device, with its name if there are several.
pub type Devices = Arc<dyn Fn() -> Vec<(Option<String>, Readiness)> + Send + Sync>;

/// What the tasks of a node share.
pub(super) struct Shared {
    pub(super) broker: Broker,
    pub(super) stream: TicketStream,
    pub(super) options: Options,
    pub(super) pools: Vec<(Pool, ModelId)>,
    pub(super) executor: Executor,
    pub(super) devices: Devices,
    pub(super) metrics: Arc<Metrics>,
    pub(super) runs: Runs,
    /// A slot may have become free.
    pub(super) freed: Notify,
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

    pub(super) fn state(&self) -> NodeState {
        let pools = self.pools.iter();
        let slots = (self.devices)().into_iter();
        NodeState {
            node: self.options.id.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            format: JOB_FORMAT,
            pools: pools
                .map(|(pool, model)| PoolState { pool: pool.as_str().into(), model: model.clone() })
                .collect(),
            slots: slots
                .map(|(label, readiness)| SlotState { label, readiness: without_paths(readiness) })
                .collect(),
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
