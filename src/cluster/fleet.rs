//! The nodes as a gateway sees them: their slots by number, and what they can run.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::messages::{NodeState, SlotState};
use crate::job::{Readiness, SlotReport};

/// A node that reports every second is away after this.
const AWAY: Duration = Duration::from_millis(3500);

/// The slots of a node that is away can be given to a new node after this, so that the list does not grow.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// A slot of a node. Its place in the list is the number that `/v1/slot` shows.
#[derive(Clone, Debug)]
struct FleetSlot {
    node: String,
    label: Option<String>,
    readiness: Readiness,
    seen: Instant,
    pools: BTreeSet<String>,
    is_away: bool,
    is_draining: bool,
}

/// All slots that a gateway has seen.
#[derive(Debug)]
pub(super) struct Fleet {
    slots: Mutex<Vec<FleetSlot>>,
    readiness: watch::Sender<Readiness>,
}

impl Fleet {
    pub(super) fn new() -> Self {
        let readiness = watch::Sender::new(Readiness::Starting);
        Self { slots: Mutex::default(), readiness }
    }

    /// Whether a node is ready, with the models of all.
    pub(super) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Takes a node's report.
    pub(super) fn note(&self, state: NodeState, now: Instant) {
        let mut slots = self.slots();
        let pools: BTreeSet<String> = state.pools.iter().map(|one| one.pool.clone()).collect();
        let mut kept = Vec::new();
        for (number, slot) in state.slots.into_iter().enumerate() {
            let label = label(&slot, number);
            let at = place(&mut slots, (&state.node, &label), now);
            let entry = FleetSlot {
                node: state.node.clone(),
                label,
                readiness: slot.readiness,
                seen: now,
                pools: pools.clone(),
                is_away: state.leaving,
                is_draining: state.draining,
            };
            match slots.get_mut(at) {
                Some(place) => *place = entry,
                None => slots.push(entry),
            }
            kept.push(at);
        }
        drop(slots);
        self.publish();
    }

    /// Marks nodes that have not reported for some time; returns their names.
    pub(super) fn mark_away(&self, now: Instant) -> Vec<String> {
        let mut gone = BTreeSet::new();
        for slot in self.slots().iter_mut().filter(|slot| !slot.is_away) {
            if now.saturating_duration_since(slot.seen) > AWAY {
                slot.is_away = true;
                gone.insert(slot.node.clone());
            }
        }
        if !gone.is_empty() {
            self.publish();
        }
        gone.into_iter().collect()
    }

    /// The number of a node's slot; the first one if its label is unknown.
    pub(super) fn slot_of(&self, node: &str) -> usize {
        self.slots().iter().position(|slot| slot.node == node).unwrap_or_default()
    }

    /// Number of slots, and of those that can take jobs.
    pub(super) fn counts(&self) -> (usize, usize) {
        let slots = self.slots();
        (slots.len(), slots.iter().filter(|slot| is_live(slot)).count())
    }

    /// Number of nodes that report.
    pub(super) fn nodes(&self) -> usize {
        let present = self.slots();
        let present = present.iter().filter(|slot| !slot.is_away);
        present.map(|slot| &slot.node).collect::<BTreeSet<_>>().len()
    }

    /// Whether a node can run the jobs of a pool, loading the model if necessary. A node that is away may come back, and before the
    /// first node nothing is known.
    pub(super) fn serves(&self, pool: &str) -> bool {
        let slots = self.slots();
        slots.is_empty() || slots.iter().any(|slot| slot.pools.contains(pool))
    }

    /// The state of each slot by its name.
    pub(super) fn devices(&self) -> Vec<(String, Readiness)> {
        let away = || Readiness::Down { reason: "the node does not report".into(), retry_in: None };
        let named = |slot: &FleetSlot| {
            let label = slot.label.as_ref().map(|label| format!("/{label}")).unwrap_or_default();
            let state = if slot.is_away { away() } else { slot.readiness.clone() };
            (format!("{}{label}", slot.node), state)
        };
        self.slots().iter().map(named).collect()
    }

    fn publish(&self) {
        let merged = merged(&self.slots());
        self.readiness.send_if_modified(|state| {
            // A fleet that was never ready is starting, not restarting.
            if matches!((&*state, &merged), (Readiness::Starting, Readiness::Restarting { .. })) {
                return false;
            }
            let changed = *state != merged;
            *state = merged;
            changed
        });
    }

    fn slots(&self) -> MutexGuard<'_, Vec<FleetSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn label(slot: &SlotState, number: usize) -> Option<String> {
    slot.label.clone().or_else(|| (number > 0).then(|| number.to_string()))
}

/// Where a slot belongs: its old place, that of a forgotten slot, or the end.
fn place(slots: &mut [FleetSlot], (node, label): (&str, &Option<String>), now: Instant) -> usize {
    let own = slots.iter().position(|slot| slot.node == node && slot.label == *label);
    let forgotten = |slot: &FleetSlot| slot.is_away && now.saturating_duration_since(slot.seen) > FORGOTTEN;
    own.or_else(|| slots.iter().position(forgotten)).unwrap_or(slots.len())
}

fn is_live(slot: &FleetSlot) -> bool {
    !slot.is_away && !slot.is_draining && matches!(slot.readiness, Readiness::Ready(_))
}

/// Ready if a slot is, with the loaded models of all slots.
fn merged(slots: &[FleetSlot]) -> Readiness {
    let mut all: Option<SlotReport> = None;
    for slot in slots.iter().filter(|slot| !slot.is_away) {
        let Readiness::Ready(report) = &slot.readiness else { continue };
        let all = all.get_or_insert_with(|| SlotReport { models: Vec::new(), ..report.clone() });
        let news = report.models.iter().filter(|(id, _)| all.models.iter().all(|(known, _)| known != id));
        let news: Vec<_> = news.cloned().collect();
        all.models.extend(news);
    }
    all.map_or_else(|| Readiness::Restarting { reason: "no node is ready".into() }, Readiness::Ready)
}
