//! What a worker holds of memory, and when it gives back.
//!
//! The heap gives back after every job, before its last frame: that takes a millisecond, and the figure in the frame is
//! what supervision judges the worker by. The device's pool is trimmed when the frame is out, as the policy says: that
//! may wait for the device, and nobody has to wait for it.

use std::time::Duration;

use crate::{
    device::{Pool, process_memory},
    job::{DeviceMemory, DevicePeak, Memory},
    trim_policy::TrimPolicy,
    units::Bytes,
};

/// What a pool holds now, as it is told.
#[must_use]
pub fn device_memory(pool: &Pool) -> DeviceMemory {
    let figures = pool.figures();
    let (used, reserved, free) = (figures.in_use(), figures.reserved, figures.device_free);
    DeviceMemory { used, reserved, free, other: figures.device_other() }
}

/// Most that a pool held since its peaks were new, as it is told.
#[must_use]
pub fn device_peak(pool: &Pool) -> DevicePeak {
    let figures = pool.figures();
    DevicePeak { used: figures.in_use_peak, reserved: figures.reserved_peak }
}

/// What is held, and the rules by which it is given back.
#[derive(Debug)]
pub(super) struct Holdings {
    pool: Option<Pool>,
    trim: TrimPolicy,
    /// What was held when it was last looked at, and so before the next job: asking again would delay the first token.
    idle: Memory,
    /// Of it, what is kept for prompts that begin alike.
    prefix_cache: Bytes,
    /// Whether something has happened since the pool was last trimmed.
    is_used: bool,
}

impl Holdings {
    /// Looks at what is held now.
    pub(super) fn new(pool: Option<Pool>, trim: TrimPolicy) -> Self {
        let (idle, prefix_cache) = (Memory::default(), Bytes(0));
        let mut holdings = Self { pool, trim, idle, prefix_cache, is_used: true };
        holdings.settle();
        holdings
    }

    /// What is held while nothing runs.
    pub(super) const fn idle(&self) -> Memory {
        self.idle
    }

    /// A job begins: the pool's peaks are its own.
    pub(super) fn begin(&mut self) {
        self.is_used = true;
        if let Some(pool) = &self.pool {
            pool.reset_peaks();
        }
    }

    /// So much is kept for prompts that begin alike; said with the next figures.
    pub(super) const fn keep(&mut self, prefix_cache: Bytes) {
        self.prefix_cache = prefix_cache;
    }

    /// Most that the pool held since the job began.
    pub(super) fn peak(&self) -> Option<DevicePeak> {
        Some(device_peak(self.pool.as_ref()?))
    }

    /// What is left when the heap has given back what is free; a new peak of the host's memory starts here.
    pub(super) fn settle(&mut self) -> Memory {
        process_memory::release_free_heap();
        process_memory::reset_peak();
        let process_memory::ProcessMemory { resident, anonymous, .. } = process_memory::memory();
        let (prefix_cache, device) = (self.prefix_cache, self.device());
        self.idle = Memory { resident, anonymous, prefix_cache, device };
        self.idle
    }

    fn device(&self) -> Option<DeviceMemory> {
        Some(device_memory(self.pool.as_ref()?))
    }

    /// Down to how much the policy says to trim, when nothing has run for `idle`, if anything is due.
    pub(super) fn due(&self, idle: Duration) -> Option<Bytes> {
        self.trim.due(self.idle.device?.reserved, idle)
    }

    /// Whether a trim to `keep` takes scratch away that captured runs have the addresses of.
    pub(super) fn has_to_trim(&self, keep: Bytes) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.has_to_trim(keep))
    }

    /// Gives back all that the pool does not use but for `keep`; what is held then.
    pub(super) fn trim_to(&mut self, keep: Bytes) -> Memory {
        if let Some(pool) = &self.pool {
            pool.trim(keep);
        }
        self.is_used = false;
        self.settle()
    }

    /// How long nothing must happen before [`due`](Self::due) can say something new; `None` when waiting
    /// makes no difference.
    pub(super) fn wait(&self) -> Option<Duration> {
        (self.is_used && self.pool.is_some()).then(|| self.trim.wait()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_pool_nothing_is_said_of_a_device_and_nothing_is_due() {
        let mut holdings = Holdings::new(None, "idle=1".parse().unwrap());
        holdings.begin();
        assert_eq!((holdings.idle().device, holdings.peak(), holdings.wait()), (None, None, None));
        assert_eq!(holdings.due(Duration::MAX), None);
        assert_eq!(holdings.trim_to(Bytes(0)).device, None);
    }
}
