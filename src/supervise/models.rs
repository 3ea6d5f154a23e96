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
    took: HashMap<ModelId, Took>,
}

/// What a model took.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// Of the host's memory. Mapped weights count: a model whose pages are dropped and read again at every step is not
    /// loaded in any useful sense.
    host: Option<Bytes>,
    /// Of its device's pool, where there is one.
    device: Option<Bytes>,
}

impl From<Memory> for Took {
    fn from(memory: Memory) -> Self {
        Self { host: memory.resident.max(memory.anonymous), device: memory.device.map(|device| device.used) }
    }
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
        self.took.insert(id.clone(), report.took().into());
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

    /// What has to leave before `wanted` is loaded, the least recently used first, so that neither the budget nor
    /// `device_room`, what its device has left, is exceeded. Its size is what it took the last time, else `on_disk`. One
    /// that is larger by itself gets the slot to itself: refusing it would answer nobody.
    pub(super) fn leaving_for(
        &self,
        wanted: &ModelId,
        on_disk: Bytes,
        device_room: Option<Bytes>,
    ) -> Vec<ModelId> {
        let size = |id, of: fn(&Took) -> Option<Bytes>| self.took.get(id).and_then(of).map(|size| size.0);
        let on_host = |id| size(id, |took| took.host);
        let on_device = |id| size(id, |took| took.device);
        let loaded: u64 = self.loaded.iter().filter_map(|loaded| on_host(&loaded.id)).sum();
        let mut host_lacks = self
            .budget
            .map_or(0, |most| (on_host(wanted).unwrap_or(on_disk.0) + loaded).saturating_sub(most.0));
        let mut device_lacks =
            device_room.map_or(0, |room| on_device(wanted).unwrap_or(on_disk.0).saturating_sub(room.0));
        let mut oldest: Vec<&Loaded> = self.loaded.iter().filter(|loaded| loaded.id != *wanted).collect();
        oldest.sort_by_key(|loaded| loaded.used);
        let mut leaving = Vec::new();
        for Loaded { id, .. } in oldest {
            if host_lacks == 0 && device_lacks == 0 {
                break;
            }
            host_lacks = host_lacks.saturating_sub(on_host(id).unwrap_or(0));
            device_lacks = device_lacks.saturating_sub(on_device(id).unwrap_or(0));
            leaving.push(id.clone());
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
}

/// What a device's pool may still hand out: of its limit, and of what is free on the device. `None` where there is no
/// pool, or nothing bounds it that is known.
pub(super) fn device_room(limit: Option<Bytes>, held: Memory) -> Option<Bytes> {
    let device = held.device?;
    // What is reserved and not in use is given back when something else needs it.
    let unused = device.reserved.0.saturating_sub(device.used.0);
    let limit = limit.map(|limit| limit.0.saturating_sub(device.used.0));
    let free = device.free.map(|free| free.0.saturating_add(unused));
    limit.into_iter().chain(free).min().map(Bytes)
}

/// Whether an unload gave back what the load had taken, on host and device, but for a twentieth. Small amounts say more
/// about the heap than about the model. What is not known is taken to be returned.
pub(super) fn is_returned(took: Memory, before: Memory, after: Memory) -> bool {
    const NOISE: u64 = 16 << 20;
    let is_back = |of: fn(Memory) -> Option<Bytes>| {
        let (Some(took), Some(before), Some(after)) = (of(took), of(before), of(after)) else { return true };
        let returned = before.0.saturating_sub(after.0);
        took.0.saturating_sub(returned) <= (took.0 / 20).max(NOISE)
    };
    is_back(|memory| memory.lasting()) && is_back(|memory| Some(memory.device?.used))
}

/// Rather than to wake up for nothing, a far future.
pub(super) const FAR: Duration = Duration::from_secs(1 << 30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{DeviceMemory, Placement};

    const GIB: u64 = 1 << 30;

    fn took(resident: u64) -> ModelReport {
        let memory =
            |n| Memory { resident: Some(Bytes(n)), anonymous: Some(Bytes(n / 2)), ..Memory::default() };
        ModelReport {
            placement: Placement::default(),
            capacity: 64,
            decode_threads: None,
            prefill_threads: None,
            draft: None,
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
        assert_eq!(models.leaving_for(&"c".into(), Bytes(99 * GIB), None), []);
    }

    #[test]
    fn the_least_recently_used_leave_first_and_no_more_than_must() {
        let now = Instant::now();
        let mut models = models(Some(10 * GIB), &[("a", 4 * GIB), ("b", 3 * GIB), ("c", 3 * GIB)], now);
        models.touch(&"a".into(), now + Duration::from_secs(9));
        assert_eq!(models.leaving_for(&"d".into(), Bytes(3 * GIB), None), ids(&["b"]));
        assert_eq!(models.leaving_for(&"d".into(), Bytes(4 * GIB), None), ids(&["b", "c"]));
        assert_eq!(
            models.leaving_for(&"d".into(), Bytes(99 * GIB), None),
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
        assert_eq!(models.leaving_for(&"a".into(), Bytes(1), None), ids(&["b"]));
    }

    #[test]
    fn a_device_that_lacks_room_makes_models_leave_whatever_the_host_has() {
        let now = Instant::now();
        let mut models = models(None, &[], now);
        for (second, id) in (0..).zip(["a", "b", "c"]) {
            let mut report = took(1);
            let device = |used| Some(DeviceMemory { used: Bytes(used), ..DeviceMemory::default() });
            (report.before.device, report.after.device) = (device(GIB), device(3 * GIB));
            models.add(id.into(), report, now + Duration::from_secs(second));
        }
        let leaving = |room| models.leaving_for(&"d".into(), Bytes(3 * GIB), Some(Bytes(room)));
        assert_eq!(leaving(3 * GIB), []);
        assert_eq!(leaving(GIB), ids(&["a"]));
        assert_eq!(leaving(GIB - 1), ids(&["a", "b"]));
    }

    #[test]
    fn room_on_a_device_is_bounded_by_the_limit_and_by_what_is_free() {
        let device = DeviceMemory { used: Bytes(3), reserved: Bytes(5), free: Some(Bytes(10)), other: None };
        let held = Memory { device: Some(device), ..Memory::default() };
        assert_eq!(device_room(None, held), Some(Bytes(12)));
        assert_eq!(device_room(Some(Bytes(9)), held), Some(Bytes(6)));
        assert_eq!(device_room(Some(Bytes(2)), held), Some(Bytes(0)));
        let unknown = Memory { device: Some(DeviceMemory { free: None, ..device }), ..held };
        assert_eq!(device_room(None, unknown), None);
        assert_eq!(device_room(Some(Bytes(9)), Memory::default()), None, "there is no pool");
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
