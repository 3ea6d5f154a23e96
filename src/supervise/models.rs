//! Which models the worker holds, and which have to go. Pure: it is told the time and what was loaded.
//!
//! The parent keeps this and not the worker: a worker may be gone at any moment, and what a model took the last time is
//! worth knowing for the next one.

use std::{cmp::Reverse, collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{KeepAlive, Memory, ModelId, ModelReport},
    units::Bytes,
};

/// A model that is loaded.
#[derive(Clone, Debug)]
struct Loaded {
    id: ModelId,
    report: ModelReport,
    used: Instant,
}

/// The models of one slot.
#[derive(Clone, Debug)]
pub(super) struct Models {
    /// In the order of loading.
    loaded: Vec<Loaded>,
    budget: Option<Bytes>,
    default_keep_alive: KeepAlive,
    keep_alive: HashMap<ModelId, KeepAlive>,
    /// What each took when it was last loaded, by this worker or one before.
    took: HashMap<ModelId, Bytes>,
}

impl Models {
    /// Nothing loaded.
    pub(super) fn new(budget: Option<Bytes>, default_keep_alive: KeepAlive) -> Self {
        Self {
            loaded: Vec::new(),
            budget,
            default_keep_alive,
            keep_alive: HashMap::new(),
            took: HashMap::new(),
        }
    }

    pub(super) fn is_loaded(&self, id: &ModelId) -> bool {
        self.loaded.iter().any(|loaded| loaded.id == *id)
    }

    /// What is loaded, in the order of loading.
    pub(super) fn reports(&self) -> Vec<(ModelId, ModelReport)> {
        self.loaded.iter().map(|loaded| (loaded.id.clone(), loaded.report.clone())).collect()
    }

    pub(super) fn ids(&self) -> Vec<ModelId> {
        self.loaded.iter().map(|loaded| loaded.id.clone()).collect()
    }

    /// What is loaded, the last used first.
    pub(super) fn by_use(&self) -> Vec<ModelId> {
        let mut loaded: Vec<&Loaded> = self.loaded.iter().collect();
        loaded.sort_by_key(|loaded| Reverse(loaded.used));
        loaded.into_iter().map(|loaded| loaded.id.clone()).collect()
    }

    /// The worker is gone, and all of it with it: what it had, the last used first.
    pub(super) fn take_all(&mut self) -> Vec<ModelId> {
        let had = self.by_use();
        self.loaded.clear();
        had
    }

    /// Notes that a model is loaded.
    pub(super) fn add(&mut self, id: ModelId, report: ModelReport, now: Instant) {
        self.remove(&id);
        if let Some(size) = size(report.took()) {
            self.took.insert(id.clone(), size);
        }
        self.loaded.push(Loaded { id, report, used: now });
    }

    /// Notes that a model is no longer loaded; what it had taken, if it was.
    pub(super) fn remove(&mut self, id: &ModelId) -> Option<ModelReport> {
        let place = self.loaded.iter().position(|loaded| loaded.id == *id)?;
        Some(self.loaded.remove(place).report)
    }

    /// Notes that a model was used until `now`.
    pub(super) fn touch(&mut self, id: &ModelId, now: Instant) {
        if let Some(loaded) = self.loaded.iter_mut().find(|loaded| loaded.id == *id) {
            loaded.used = now;
        }
    }

    /// From now on, `id` stays for so long after each of its jobs.
    pub(super) fn keep(&mut self, id: &ModelId, keep_alive: KeepAlive) {
        self.keep_alive.insert(id.clone(), keep_alive);
    }

    /// What has to leave before `wanted` is loaded, the least recently used first. Its size is what it took the last time,
    /// else `on_disk`. One that is larger than the budget by itself gets the slot to itself: refusing it would answer
    /// nobody.
    pub(super) fn leaving_for(&self, wanted: &ModelId, on_disk: Bytes) -> Vec<ModelId> {
        let Some(budget) = self.budget else { return Vec::new() };
        let mut needed = self.size_of(wanted).unwrap_or(on_disk).0;
        needed +=
            self.loaded.iter().filter_map(|loaded| self.size_of(&loaded.id)).map(|size| size.0).sum::<u64>();
        let mut oldest: Vec<&Loaded> = self.loaded.iter().filter(|loaded| loaded.id != *wanted).collect();
        oldest.sort_by_key(|loaded| loaded.used);
        let mut leaving = Vec::new();
        for loaded in oldest {
            if needed <= budget.0 {
                break;
            }
            needed -= self.size_of(&loaded.id).map_or(0, |size| size.0);
            leaving.push(loaded.id.clone());
        }
        leaving
    }

    /// A model that nobody has used for as long as it was to be kept.
    pub(super) fn expired(&self, now: Instant) -> Option<ModelId> {
        let expired = self.loaded.iter().find(|loaded| self.expires(loaded).is_some_and(|at| at <= now))?;
        Some(expired.id.clone())
    }

    /// When the next model is to leave.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.loaded.iter().filter_map(|loaded| self.expires(loaded)).min()
    }

    /// What all loaded models took of anonymous memory.
    pub(super) fn anonymous(&self) -> Option<Bytes> {
        let taken = |loaded: &Loaded| Some(loaded.report.took().anonymous?.0);
        self.loaded.iter().map(taken).sum::<Option<u64>>().map(Bytes)
    }

    fn expires(&self, loaded: &Loaded) -> Option<Instant> {
        match self.keep_alive.get(&loaded.id).unwrap_or(&self.default_keep_alive) {
            KeepAlive::Forever => None,
            KeepAlive::For(duration) => loaded.used.checked_add(*duration),
        }
    }

    fn size_of(&self, id: &ModelId) -> Option<Bytes> {
        self.took.get(id).copied()
    }
}

/// Mapped weights count: a model whose pages are dropped and read again at every step is not loaded in any useful sense.
fn size(took: Memory) -> Option<Bytes> {
    took.resident.max(took.anonymous)
}

/// Whether an unload gave back what the load had taken, but for a twentieth. Small amounts say more about the heap than
/// about the model.
pub(super) fn is_returned(took: Memory, before: Memory, after: Memory) -> bool {
    const NOISE: u64 = 16 << 20;
    let (Some(took), Some(before), Some(after)) = (took.lasting(), before.lasting(), after.lasting()) else {
        return true;
    };
    let returned = before.0.saturating_sub(after.0);
    took.0.saturating_sub(returned) <= (took.0 / 20).max(NOISE)
}

/// Rather than to wake up for nothing, a far future.
pub(super) const FAR: Duration = Duration::from_secs(1 << 30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Placement;

    const GIB: u64 = 1 << 30;

    fn took(resident: u64) -> ModelReport {
        let memory =
            |n| Memory { resident: Some(Bytes(n)), anonymous: Some(Bytes(n / 2)), ..Memory::default() };
        ModelReport {
            placement: Placement::default(),
            capacity: 64,
            load_time: Duration::ZERO,
            before: memory(GIB),
            after: memory(GIB + resident),
        }
    }

    fn models(budget: Option<u64>, loaded: &[(&str, u64)], now: Instant) -> Models {
        let mut models = Models::new(budget.map(Bytes), KeepAlive::Forever);
        for (i, (id, size)) in (0..).zip(loaded) {
            models.add((*id).into(), took(*size), now + Duration::from_secs(i));
        }
        models
    }

    fn ids(ids: &[&str]) -> Vec<ModelId> {
        ids.iter().map(|id| (*id).into()).collect()
    }

    #[test]
    fn without_a_budget_nothing_has_to_leave() {
        let models = models(None, &[("a", 9 * GIB), ("b", 9 * GIB)], Instant::now());
        assert_eq!(models.leaving_for(&"c".into(), Bytes(99 * GIB)), []);
    }

    #[test]
    fn the_least_recently_used_leave_first_and_no_more_than_must() {
        let now = Instant::now();
        let mut models = models(Some(10 * GIB), &[("a", 4 * GIB), ("b", 3 * GIB), ("c", 3 * GIB)], now);
        models.touch(&"a".into(), now + Duration::from_secs(9));
        assert_eq!(models.leaving_for(&"d".into(), Bytes(3 * GIB)), ids(&["b"]));
        assert_eq!(models.leaving_for(&"d".into(), Bytes(4 * GIB)), ids(&["b", "c"]));
        assert_eq!(
            models.leaving_for(&"d".into(), Bytes(99 * GIB)),
            ids(&["b", "c", "a"]),
            "it is alone then"
        );
    }

    #[test]
    fn what_a_model_took_the_last_time_is_believed_and_not_its_files() {
        let now = Instant::now();
        let mut models = models(Some(10 * GIB), &[("a", 6 * GIB)], now);
        models.remove(&"a".into()).unwrap();
        models.add("b".into(), took(5 * GIB), now);
        assert_eq!(models.leaving_for(&"a".into(), Bytes(1)), ids(&["b"]));
    }

    #[test]
    fn a_model_leaves_when_its_own_time_is_over_and_not_at_another_ones() {
        let (now, seconds) = (Instant::now(), Duration::from_secs);
        let mut models = models(None, &[("a", 1), ("b", 1)], now);
        assert_eq!((models.expired(now + seconds(1 << 20)), models.next_expiry()), (None, None));
        models.keep(&"a".into(), KeepAlive::For(seconds(60)));
        assert_eq!(models.next_expiry(), Some(now + seconds(60)));
        models.touch(&"a".into(), now + seconds(30));
        assert_eq!(models.expired(now + seconds(89)), None);
        assert_eq!(models.expired(now + seconds(90)), Some("a".into()));
        models.keep(&"a".into(), KeepAlive::Forever);
        assert_eq!(models.expired(now + seconds(90)), None);
    }

    #[test]
    fn a_worker_that_is_gone_holds_nothing_and_what_it_had_is_told_once() {
        let now = Instant::now();
        let mut models = models(None, &[("a", 1), ("b", 1), ("c", 1)], now);
        models.touch(&"a".into(), now + Duration::from_secs(9));
        assert_eq!(models.take_all(), ids(&["a", "c", "b"]));
        assert!(models.ids().is_empty() && !models.is_loaded(&"b".into()));
        assert_eq!(models.take_all(), []);
    }

    #[test]
    fn an_unload_must_give_back_all_but_a_twentieth_or_a_little() {
        let memory = |n| Memory { anonymous: Some(Bytes(n)), ..Memory::default() };
        let returned =
            |took, returned| is_returned(memory(took), memory(9 * GIB), memory(9 * GIB - returned));
        assert!(returned(GIB, GIB) && returned(GIB, GIB - GIB / 20));
        assert!(!returned(GIB, GIB - GIB / 16));
        assert!(returned(16 << 20, 0), "that is noise");
        assert!(is_returned(Memory::default(), Memory::default(), Memory::default()), "nothing is known");
    }
}
