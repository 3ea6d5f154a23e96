//! The memory limit for the bodies of all requests together.
//!
//! A body is counted as it arrives, not by its `Content-Length`: a client that announces megabytes and sends nothing must not
//! block others. The first [`FREE`] bytes of each body are not counted, so that ordinary requests are served while large ones
//! use up the limit; the number of connections bounds them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::error::ApiError;
use crate::units::Bytes;

/// Bytes of each body that are not counted.
const FREE: u64 = 64 << 10;

/// The memory of all bodies.
#[derive(Clone, Debug)]
pub(crate) struct BodyMemory {
    used: Arc<AtomicU64>,
    limit: Bytes,
}

/// The memory of one body; released when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    memory: BodyMemory,
    /// Bytes held, including those that are not counted.
    held: u64,
}

impl BodyMemory {
    pub(crate) fn new(limit: Bytes) -> Self {
        Self { used: Arc::default(), limit }
    }

    /// The share of a new body.
    pub(crate) fn share(&self) -> Share {
        Share { memory: self.clone(), held: 0 }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Reserves `more` bytes.
    ///
    /// # Errors
    /// [`ApiError::BodyMemoryFull`] when other bodies hold too much of the memory.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), ApiError> {
        let held = self.held.saturating_add(more as u64);
        let counted = held.saturating_sub(FREE) - self.held.saturating_sub(FREE);
        let limit = self.memory.limit;
        let add = |used: u64| used.checked_add(counted).filter(|used| *used <= limit.0);
        let added = self.memory.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.map_err(|_| ApiError::BodyMemoryFull { limit })?;
        self.held = held;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.held.saturating_sub(FREE), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn bodies_share_one_limit_and_release_what_they_hold() {
        let memory = BodyMemory::new(Bytes::mib(4));
        let mut first = memory.share();
        first.grow(3 * MIB).unwrap();
        let mut second = memory.share();
        let refused = second.grow(2 * MIB).unwrap_err();
        assert_eq!(refused.code(), "body_memory_full");
        assert!(refused.to_string().contains("4.00 MiB"), "{refused}");
        drop(first);
        second.grow(2 * MIB).unwrap();
        drop(second);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_small_body_is_read_while_large_ones_hold_all_memory() {
        let memory = BodyMemory::new(Bytes::mib(1));
        let mut large = memory.share();
        large.grow(MIB + (64 << 10)).unwrap();
        memory.share().grow(64 << 10).unwrap();
        memory.share().grow((64 << 10) + 1).unwrap_err();
    }
}
