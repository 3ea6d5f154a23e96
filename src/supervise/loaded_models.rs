//! Which models the worker has loaded, and which ones to unload. Pure: callers pass the time and the load reports.
//!
//! The supervisor keeps this and not the worker, because the memory that a model took last time is useful for the next worker
//! as well.

use std::{cmp::Reverse, collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{KeepAlive, Memory, ModelId, ModelReport},
    units::Bytes,
};

/// A loaded model.
#[derive(Clone, Debug)]
struct LoadedModel {
    id: ModelId,
    report: ModelReport,
    used: Instant,
}

/// The models of one worker.
#[derive(Clone, Debug)]
pub(super) struct LoadedModels {
    /// In loading order.
    loaded: Vec<LoadedModel>,
    budget: Option<Bytes>,
    default_keep_alive: KeepAlive,
    keep_alive: HashMap<ModelId, KeepAlive>,
    /// Memory of each model at its last load, by this worker or an earlier one.
    took: HashMap<ModelId, ModelMemory>,
}

/// Memory that a model takes.
#[derive(Clone, Copy, Debug)]
struct ModelMemory {
    /// Host memory. Mapped weights count: a model whose pages are evicted and read again at every step is too slow to use.
    host: Option<Bytes>,
    /// Memory of the device's pool, if there is one.
    device: Option<Bytes>,
}

impl From<Memory> for ModelMemory {
    fn from(memory: Memory) -> Self {
        Self { host: memory.resident.max(memory.anonymous), device: memory.device.map(|device| device.used) }
    }
}

impl LoadedModels {
    /// No models yet. `budget` is the host memory for all of them.
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

    /// Loaded models in loading order.
    pub(super) fn reports(&self) -> Vec<(ModelId, ModelReport)> {
        self.loaded.iter().map(|loaded| (loaded.id.clone(), loaded.report.clone())).collect()
    }

    pub(super) fn ids(&self) -> Vec<ModelId> {
        self.loaded.iter().map(|loaded| loaded.id.clone()).collect()
    }

    /// Loaded models, the most recently used first.
    pub(super) fn by_use(&self) -> Vec<ModelId> {
        let mut loaded: Vec<&LoadedModel> = self.loaded.iter().collect();
        loaded.sort_by_key(|loaded| Reverse(loaded.used));
        loaded.into_iter().map(|loaded| loaded.id.clone()).collect()
    }

    /// Removes all models after a loss; returns them, the most recently used first.
    pub(super) fn take_all(&mut self) -> Vec<ModelId> {
        let models = self.by_use();
        self.loaded.clear();
        models
    }

    /// Notes that a model is loaded.
    pub(super) fn add(&mut self, id: ModelId, report: ModelReport, now: Instant) {
        self.remove(&id);
        self.took.insert(id.clone(), report.took().into());
        self.loaded.push(LoadedModel { id, report, used: now });
    }

    /// Notes that a model is unloaded; returns its report if it was loaded.
    pub(super) fn remove(&mut self, id: &ModelId) -> Option<ModelReport> {
        let index = self.loaded.iter().position(|loaded| loaded.id == *id)?;
        Some(self.loaded.remove(index).report)
    }

    /// Notes that a model was used until `now`.
    pub(super) fn touch(&mut self, id: &ModelId, now: Instant) {
        if let Some(loaded) = self.loaded.iter_mut().find(|loaded| loaded.id == *id) {
            loaded.used = now;
        }
    }

    /// Sets how long `id` stays loaded after each of its jobs.
    pub(super) fn keep(&mut self, id: &ModelId, keep_alive: KeepAlive) {
        self.keep_alive.insert(id.clone(), keep_alive);
    }

    /// Models to unload before `wanted` is loaded, the least recently used first, so that neither the budget nor `device_room`
    /// (free memory of the device) is exceeded. The size of `wanted` is what it took last time, else `on_disk`. A model larger
    /// than the budget is loaded alone, because rejecting it would fail all its jobs.
    pub(super) fn to_evict(
        &self,
        wanted: &ModelId,
        on_disk: Bytes,
        device_room: Option<Bytes>,
    ) -> Vec<ModelId> {
        let size =
            |id, of: fn(&ModelMemory) -> Option<Bytes>| self.took.get(id).and_then(of).map(|size| size.0);
        let on_host = |id| size(id, |took| took.host);
        let on_device = |id| size(id, |took| took.device);
        let loaded: u64 = self.loaded.iter().filter_map(|loaded| on_host(&loaded.id)).sum();
        let mut host_lacks = self
            .budget
            .map_or(0, |max| (on_host(wanted).unwrap_or(on_disk.0) + loaded).saturating_sub(max.0));
        let mut device_lacks =
            device_room.map_or(0, |room| on_device(wanted).unwrap_or(on_disk.0).saturating_sub(room.0));
        let mut oldest: Vec<&LoadedModel> =
            self.loaded.iter().filter(|loaded| loaded.id != *wanted).collect();
        oldest.sort_by_key(|loaded| loaded.used);
        let mut evicted = Vec::new();
        for LoadedModel { id, .. } in oldest {
            if host_lacks == 0 && device_lacks == 0 {
                break;
            }
            host_lacks = host_lacks.saturating_sub(on_host(id).unwrap_or(0));
            device_lacks = device_lacks.saturating_sub(on_device(id).unwrap_or(0));
            evicted.push(id.clone());
        }
        evicted
    }

    /// A model whose keep-alive time has passed.
    pub(super) fn expired(&self, now: Instant) -> Option<ModelId> {
        let expired = self.loaded.iter().find(|loaded| self.expires(loaded).is_some_and(|at| at <= now))?;
        Some(expired.id.clone())
    }

    /// When the next keep-alive time ends.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.loaded.iter().filter_map(|loaded| self.expires(loaded)).min()
    }

    /// Anonymous memory of all loaded models.
    pub(super) fn anonymous(&self) -> Option<Bytes> {
        let taken = |loaded: &LoadedModel| Some(loaded.report.took().anonymous?.0);
        self.loaded.iter().map(taken).sum::<Option<u64>>().map(Bytes)
    }

    fn expires(&self, loaded: &LoadedModel) -> Option<Instant> {
        match self.keep_alive.get(&loaded.id).unwrap_or(&self.default_keep_alive) {
            KeepAlive::Forever => None,
            KeepAlive::For(duration) => loaded.used.checked_add(*duration),
        }
    }
}

/// Memory that the device's pool can still allocate, within its limit and the device's free memory. `None` without a pool,
/// or when neither bound is known.
pub(super) fn device_room(limit: Option<Bytes>, held: Memory) -> Option<Bytes> {
    let device = held.device?;
    // Reserved but unused memory counts as free: the pool gives it back on demand.
    let unused = device.reserved.0.saturating_sub(device.used.0);
    let limit = limit.map(|limit| limit.0.saturating_sub(device.used.0));
    let free = device.free.map(|free| free.0.saturating_add(unused));
    limit.into_iter().chain(free).min().map(Bytes)
}

/// Whether an unload freed at least 95% of what the load took, on host and device. Up to 16 MiB may remain, because the heap
/// varies by that much. Unknown values count as freed.
pub(super) fn is_returned(took: Memory, before: Memory, after: Memory) -> bool {
    const NOISE: u64 = 16 << 20;
    let is_back = |of: fn(Memory) -> Option<Bytes>| {
        let (Some(took), Some(before), Some(after)) = (of(took), of(before), of(after)) else { return true };
        let returned = before.0.saturating_sub(after.0);
        took.0.saturating_sub(returned) <= (took.0 / 20).max(NOISE)
    };
    is_back(|memory| memory.lasting()) && is_back(|memory| Some(memory.device?.used))
}

/// A timer that never fires in practice.
pub(super) const FAR_FUTURE: Duration = Duration::from_secs(1 << 30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::DeviceMemory;

    const GIB: u64 = 1 << 30;

    fn took(resident: u64) -> ModelReport {
        let memory =
            |n| Memory { resident: Some(Bytes(n)), anonymous: Some(Bytes(n / 2)), ..Memory::default() };
        ModelReport { before: memory(GIB), after: memory(GIB + resident), ..ModelReport::default() }
    }

    fn models(budget: Option<u64>, loaded: &[(&str, u64)], now: Instant) -> LoadedModels {
        let mut models = LoadedModels::new(budget.map(Bytes), KeepAlive::Forever);
        for (i, (id, size)) in (0..).zip(loaded) {
            models.add((*id).into(), took(*size), now + Duration::from_secs(i));
        }
        models
    }

    fn ids(ids: &[&str]) -> Vec<ModelId> {
        ids.iter().map(|id| (*id).into()).collect()
    }

    #[test]
    fn without_a_budget_no_model_is_evicted() {
        let models = models(None, &[("a", 9 * GIB), ("b", 9 * GIB)], Instant::now());
        assert_eq!(models.to_evict(&"c".into(), Bytes(99 * GIB), None), []);
    }

    #[test]
    fn the_least_recently_used_are_evicted_first_and_no_more_than_needed() {
        let now = Instant::now();
        let mut models = models(Some(10 * GIB), &[("a", 4 * GIB), ("b", 3 * GIB), ("c", 3 * GIB)], now);
        models.touch(&"a".into(), now + Duration::from_secs(9));
        assert_eq!(models.to_evict(&"d".into(), Bytes(3 * GIB), None), ids(&["b"]));
        assert_eq!(models.to_evict(&"d".into(), Bytes(4 * GIB), None), ids(&["b", "c"]));
        assert_eq!(
            models.to_evict(&"d".into(), Bytes(99 * GIB), None),
            ids(&["b", "c", "a"]),
            "it is loaded alone"
        );
    }

    #[test]
    fn the_measured_size_of_a_model_is_used_rather_than_its_file_size() {
        let now = Instant::now();
        let mut models = models(Some(10 * GIB), &[("a", 6 * GIB)], now);
        models.remove(&"a".into()).unwrap();
        models.add("b".into(), took(5 * GIB), now);
        assert_eq!(models.to_evict(&"a".into(), Bytes(1), None), ids(&["b"]));
    }

    #[test]
    fn a_full_device_evicts_models_even_if_the_host_has_room() {
        let now = Instant::now();
        let mut models = models(None, &[], now);
        for (second, id) in (0..).zip(["a", "b", "c"]) {
            let mut report = took(1);
            let device = |used| Some(DeviceMemory { used: Bytes(used), ..DeviceMemory::default() });
            (report.before.device, report.after.device) = (device(GIB), device(3 * GIB));
            models.add(id.into(), report, now + Duration::from_secs(second));
        }
        let evicted = |room| models.to_evict(&"d".into(), Bytes(3 * GIB), Some(Bytes(room)));
        assert_eq!(evicted(3 * GIB), []);
        assert_eq!(evicted(GIB), ids(&["a"]));
        assert_eq!(evicted(GIB - 1), ids(&["a", "b"]));
    }

    #[test]
    fn room_on_a_device_is_bounded_by_its_limit_and_by_its_free_memory() {
        let device = DeviceMemory { used: Bytes(3), reserved: Bytes(5), free: Some(Bytes(10)), other: None };
        let held = Memory { device: Some(device), ..Memory::default() };
        assert_eq!(device_room(None, held), Some(Bytes(12)));
        assert_eq!(device_room(Some(Bytes(9)), held), Some(Bytes(6)));
        assert_eq!(device_room(Some(Bytes(2)), held), Some(Bytes(0)));
        let unknown = Memory { device: Some(DeviceMemory { free: None, ..device }), ..held };
        assert_eq!(device_room(None, unknown), None);
        assert_eq!(device_room(Some(Bytes(9)), Memory::default()), None, "without a pool");
    }

    #[test]
    fn each_model_expires_after_its_own_keep_alive_time() {
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
    fn after_a_loss_all_models_are_returned_once() {
        let now = Instant::now();
        let mut models = models(None, &[("a", 1), ("b", 1), ("c", 1)], now);
        models.touch(&"a".into(), now + Duration::from_secs(9));
        assert_eq!(models.take_all(), ids(&["a", "c", "b"]));
        assert!(models.ids().is_empty() && !models.is_loaded(&"b".into()));
        assert_eq!(models.take_all(), []);
    }

    #[test]
    fn an_unload_must_free_all_but_a_twentieth_or_some_noise() {
        let memory = |n| Memory { anonymous: Some(Bytes(n)), ..Memory::default() };
        let returned =
            |took, returned| is_returned(memory(took), memory(9 * GIB), memory(9 * GIB - returned));
        assert!(returned(GIB, GIB) && returned(GIB, GIB - GIB / 20));
        assert!(!returned(GIB, GIB - GIB / 16));
        assert!(returned(16 << 20, 0), "heap noise");
        assert!(
            is_returned(Memory::default(), Memory::default(), Memory::default()),
            "unknown values count as freed"
        );
    }
}
