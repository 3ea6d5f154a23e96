//! What the tasks of a gateway share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::mpsc::UnboundedSender;

use super::{mail::Mail, ticket_list::Tickets};
use crate::{
    cluster::{
        broker::Broker, fleet::Fleet, jetstream::TicketStream, messages::RunKey, options::Options,
        subjects::Pool,
    },
    executor::RemoteQueue,
    job::ModelId,
    metrics::Metrics,
};

/// What the tasks of a gateway share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) broker: Broker,
    pub(super) stream: TicketStream,
    pub(super) options: Options,
    pub(super) pools: BTreeMap<ModelId, Pool>,
    pub(super) queue: RemoteQueue,
    pub(super) fleet: Fleet,
    pub(super) tickets: Tickets,
    pub(super) owners: Mutex<HashMap<u64, OwnerHandle>>,
    pub(super) metrics: Arc<Metrics>,
}

/// How the tasks reach the owner of a group.
#[derive(Clone, Debug)]
pub(super) struct OwnerHandle {
    pub(super) mail: UnboundedSender<Mail>,
    /// The epoch that runs; 0 while none does.
    pub(super) epoch: Arc<AtomicU32>,
}

impl Shared {
    pub(super) fn owners(&self) -> MutexGuard<'_, HashMap<u64, OwnerHandle>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends mail to the owner of a group; `false` if it has ended.
    pub(super) fn mail(&self, group: u64, mail: Mail) -> bool {
        self.owners().get(&group).is_some_and(|owner| owner.mail.send(mail).is_ok())
    }

    /// Whether a run is the current one of its group.
    pub(super) fn is_current(&self, run: &RunKey) -> bool {
        let is_its_epoch = |owner: &OwnerHandle| owner.epoch.load(Ordering::Relaxed) == run.epoch;
        self.owners().get(&run.job).is_some_and(is_its_epoch)
    }
}
