//! Measures the worker's memory and frees what is unused.
//!
//! The heap is trimmed after every job, before its last frame: that takes a millisecond, and the supervisor uses the value in the
//! frame to detect leaks. The device's pool is trimmed after the last frame, as the policy demands: that may wait for the device,
//! and the client must not wait for it.

use std::time::Duration;

use crate::{
    device::{Pool, process_memory},
    job::{DeviceMemory, DevicePeak, Memory},
    trim_policy::TrimPolicy,
    units::Bytes,
};

/// Memory of a pool, as reports show it.
#[must_use]
pub fn device_memory(pool: &Pool) -> DeviceMemory {
    let figures = pool.stats();
    let (used, reserved, free) = (figures.in_use(), figures.reserved, figures.device_free);
    DeviceMemory { used, reserved, free, other: figures.device_other() }
}

/// Peak memory of a pool since the last reset, as reports show it.
#[must_use]
pub fn device_peak(pool: &Pool) -> DevicePeak {
    let figures = pool.stats();
    DevicePeak { used: figures.in_use_peak, reserved: figures.reserved_peak }
}

/// Measures memory and decides when to trim it.
#[derive(Debug)]
pub(super) struct MemoryTracker {
    pool: Option<Pool>,
    trim: TrimPolicy,
    /// Memory at the last measurement. Reused as the value before the next job, because measuring would delay its first token.
    idle: Memory,
    /// The parts of `idle` that the prefix cache and adapters take.
    prefix_cache: Bytes,
    adapters: Bytes,
    /// Whether a job has run since the pool was last trimmed. Without one there is nothing to trim.
    is_used: bool,
}

impl MemoryTracker {
    /// Starts with a first measurement.
    pub(super) fn new(pool: Option<Pool>, trim: TrimPolicy) -> Self {
        let (idle, none) = (Memory::default(), Bytes(0));
        let mut tracker = Self { pool, trim, idle, prefix_cache: none, adapters: none, is_used: true };
        tracker.settle();
        tracker
    }

    /// Memory while no job runs.
    pub(super) const fn idle(&self) -> Memory {
        self.idle
    }

    /// Starts a job: resets the pool's peaks.
    pub(super) fn begin(&mut self) {
        self.is_used = true;
        if let Some(pool) = &self.pool {
            pool.reset_peaks();
        }
    }

    /// Sets the size of the prefix cache for the next report.
    pub(super) const fn set_prefix_cache(&mut self, prefix_cache: Bytes) {
        self.prefix_cache = prefix_cache;
    }

    /// Sets the size of the adapters in memory for the next report.
    pub(super) const fn set_adapters(&mut self, adapters: Bytes) {
        self.adapters = adapters;
    }

    /// Peak of the pool since the job began.
    pub(super) fn peak(&self) -> Option<DevicePeak> {
        Some(device_peak(self.pool.as_ref()?))
    }

    /// Trims the heap, measures, and resets the peak of host memory.
    pub(super) fn settle(&mut self) -> Memory {
        process_memory::release_free_heap();
        process_memory::reset_peak();
        let process_memory::ProcessMemory { resident, anonymous, .. } = process_memory::memory();
        let (prefix_cache, adapters, device) = (self.prefix_cache, self.adapters, self.device());
        self.idle = Memory { resident, anonymous, prefix_cache, adapters, device };
        self.idle
    }

    fn device(&self) -> Option<DeviceMemory> {
        Some(device_memory(self.pool.as_ref()?))
    }

    /// The size to trim the pool to after `idle` without a job; `None` if no trim is due.
    pub(super) fn due(&self, idle: Duration) -> Option<Bytes> {
        self.trim.due(self.idle.device?.reserved, idle)
    }

    /// Whether a trim to `keep` would free buffers that captured graphs refer to.
    pub(super) fn needs_trim(&self, keep: Bytes) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.needs_trim(keep))
    }

    /// Trims the pool down to `keep` and measures.
    pub(super) fn trim_to(&mut self, keep: Bytes) -> Memory {
        if let Some(pool) = &self.pool {
            pool.trim(keep);
        }
        self.is_used = false;
        self.settle()
    }

    /// Idle time after which [`due`](Self::due) may change; `None` if it will not.
    pub(super) fn wait(&self) -> Option<Duration> {
        (self.is_used && self.pool.is_some()).then(|| self.trim.wait()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_pool_no_device_memory_is_reported_and_no_trim_is_due() {
        let mut tracker = MemoryTracker::new(None, "idle=1".parse().unwrap());
        tracker.begin();
        assert_eq!((tracker.idle().device, tracker.peak(), tracker.wait()), (None, None, None));
        assert_eq!(tracker.due(Duration::MAX), None);
        assert_eq!(tracker.trim_to(Bytes(0)).device, None);
    }
}
