//! The nodes as a gateway sees them: their slots by number, what they can run, and which prompts they keep.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use super::{messages::NodeState, prefixes::BLOCK};
use crate::job::{Readiness, SlotReport};

/// A node that reports every second is away after this.
const AWAY: Duration = Duration::from_millis(3500);

/// The slots of a node that is away can be given to a new node after this, so that the list does not grow.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// A slot of a node. Its place in the list is the number that `/v1/slot` shows.
#[derive(Clone, Debug)]
struct FleetSlot {
    node: String,
    /// Its number on the node.
    number: usize,
    label: Option<String>,
    readiness: Readiness,
    seen: Instant,
    pools: BTreeSet<String>,
    is_away: bool,
    is_draining: bool,
}

/// What a node says of itself besides its slots.
#[derive(Clone, Debug)]
struct FleetNode {
    instance: u64,
    /// The instance before. A node that has restarted does not report under it again.
    before: Option<u64>,
    kept: HashSet<u64>,
    tokens_per_second: Option<f64>,
}

/// A node that keeps the beginning of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Holder {
    pub(super) node: String,
    /// How long it would take another node to read it; `None` if no node has measured that.
    pub(super) saves: Option<Duration>,
}

/// A node for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeCounts {
    pub(super) node: String,
    pub(super) is_away: bool,
    /// Slots that can take jobs.
    pub(super) live: usize,
    /// The numbers of its slots in the list.
    pub(super) slots: Vec<usize>,
}

/// All slots that a gateway has seen.
#[derive(Debug)]
pub(super) struct Fleet {
    slots: Mutex<Vec<FleetSlot>>,
    nodes: Mutex<BTreeMap<String, FleetNode>>,
    readiness: watch::Sender<Readiness>,
}

impl Fleet {
    pub(super) fn new() -> Self {
        let readiness = watch::Sender::new(Readiness::Starting);
        Self { slots: Mutex::default(), nodes: Mutex::default(), readiness }
    }

    /// Whether a node is ready, with the models of all.
    pub(super) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Takes a node's report; `false` if another process reports under the same name.
    pub(super) fn note(&self, state: NodeState, now: Instant) -> bool {
        let mut slots = self.slots();
        let pools: BTreeSet<String> = state.pools.iter().map(|one| one.pool.clone()).collect();
        for (number, slot) in state.slots.into_iter().enumerate() {
            put(
                &mut slots,
                FleetSlot {
                    node: state.node.clone(),
                    number,
                    label: slot.label.or_else(|| (number > 0).then(|| number.to_string())),
                    readiness: slot.readiness,
                    seen: now,
                    pools: pools.clone(),
                    is_away: state.leaving,
                    is_draining: state.draining,
                },
            );
        }
        drop(slots);
        self.publish();
        let mut nodes = self.nodes();
        let known = nodes.get(&state.node);
        let is_double = known.is_some_and(|known| known.before == Some(state.instance));
        let before = match known {
            Some(known) if known.instance != state.instance => Some(known.instance),
            known => known.and_then(|known| known.before),
        };
        let kept = state.kept.into_iter().flatten().collect();
        let node =
            FleetNode { instance: state.instance, before, kept, tokens_per_second: state.tokens_per_second };
        nodes.insert(state.node, node);
        !is_double
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
        let present: BTreeSet<String> =
            self.slots().iter().filter(|slot| !slot.is_away).map(|slot| slot.node.clone()).collect();
        self.nodes().retain(|node, _| present.contains(node));
        gone.into_iter().collect()
    }

    /// The place of a node's slot. A node that claims a job before its first report gets one.
    pub(super) fn slot_of(&self, node: &str, number: usize) -> usize {
        let mut slots = self.slots();
        let own = |slot: &FleetSlot| slot.node == node;
        let exact = slots.iter().position(|slot| own(slot) && slot.number == number);
        exact.or_else(|| slots.iter().position(own)).unwrap_or_else(|| {
            let slot = FleetSlot {
                node: node.to_owned(),
                number: 0,
                label: None,
                readiness: Readiness::Starting,
                seen: Instant::now(),
                pools: BTreeSet::new(),
                is_away: false,
                is_draining: false,
            };
            put(&mut slots, slot)
        })
    }

    /// Number of slots, and of those that can take jobs.
    pub(super) fn counts(&self) -> (usize, usize) {
        let slots = self.slots();
        (slots.len(), slots.iter().filter(|slot| is_live(slot)).count())
    }

    /// The nodes that are known, by name.
    pub(super) fn nodes_by_name(&self) -> Vec<NodeCounts> {
        let mut nodes: BTreeMap<String, NodeCounts> = BTreeMap::new();
        for (place, slot) in self.slots().iter().enumerate() {
            let empty = || NodeCounts { node: slot.node.clone(), is_away: true, live: 0, slots: Vec::new() };
            let node = nodes.entry(slot.node.clone()).or_insert_with(empty);
            node.is_away &= slot.is_away;
            node.live += usize::from(is_live(slot));
            node.slots.push(place);
        }
        nodes.into_values().collect()
    }

    /// The names of nodes that report and can run the jobs of a pool; of any pool with `None`.
    pub(super) fn present(&self, pool: Option<&str>) -> Vec<String> {
        let slots = self.slots();
        let wanted = |slot: &&FleetSlot| !slot.is_away && pool.is_none_or(|pool| slot.pools.contains(pool));
        let names: BTreeSet<&String> = slots.iter().filter(wanted).map(|slot| &slot.node).collect();
        names.into_iter().cloned().collect()
    }

    /// Whether a node can run the jobs of a pool, loading the model if necessary. A node that is away may come back, and before the
    /// first node nothing is known.
    pub(super) fn serves(&self, pool: &str) -> bool {
        let slots = self.slots();
        slots.is_empty() || slots.iter().any(|slot| slot.pools.contains(pool))
    }

    /// Whether any node keeps prompts, so that a gateway without one need not hash its own.
    pub(super) fn keeps_prompts(&self) -> bool {
        let nodes = self.nodes();
        nodes.len() > 1 && nodes.values().any(|node| !node.kept.is_empty())
    }

    /// The node that keeps the longest beginning of a prompt, given as a chain of hashes.
    pub(super) fn holder(&self, pool: &str, chain: &[u64]) -> Option<Holder> {
        let live: BTreeSet<String> = {
            let slots = self.slots();
            let live = slots.iter().filter(|slot| is_live(slot) && slot.pools.contains(pool));
            live.map(|slot| slot.node.clone()).collect()
        };
        let nodes = self.nodes();
        let blocks =
            |node: &FleetNode| chain.iter().rposition(|hash| node.kept.contains(hash)).map(|at| at + 1);
        let kept = nodes.iter().filter(|(name, _)| live.contains(*name));
        let kept = kept.filter_map(|(name, node)| Some((blocks(node)?, name)));
        let (blocks, node) = kept.max_by_key(|(blocks, _)| *blocks)?;
        let speeds: Vec<f64> = nodes.values().filter_map(|node| node.tokens_per_second).collect();
        Some(Holder { node: node.clone(), saves: reading_time(blocks * BLOCK, &speeds) })
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

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, FleetNode>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a slot at its old place, at that of a forgotten slot, or at the end; returns the place.
fn put(slots: &mut Vec<FleetSlot>, slot: FleetSlot) -> usize {
    let own = slots.iter().position(|other| (&other.node, other.number) == (&slot.node, slot.number));
    let is_forgotten =
        |other: &FleetSlot| other.is_away && slot.seen.saturating_duration_since(other.seen) > FORGOTTEN;
    let place = own.or_else(|| slots.iter().position(is_forgotten)).unwrap_or(slots.len());
    match slots.get_mut(place) {
        Some(old) => *old = slot,
        None => slots.push(slot),
    }
    place
}

fn is_live(slot: &FleetSlot) -> bool {
    !slot.is_away && !slot.is_draining && matches!(slot.readiness, Readiness::Ready(_))
}

/// The time in which a node with the mean of these speeds reads this number of tokens.
fn reading_time(tokens: usize, speeds: &[f64]) -> Option<Duration> {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let mean = speeds.iter().sum::<f64>() / number(speeds.len());
    // A speed that another process reports may be anything.
    Duration::try_from_secs_f64(number(tokens) / mean).ok()
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

#[cfg(test)]
mod tests;
