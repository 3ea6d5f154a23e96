//! Exact statistics of a pool.

use super::backend::{Backend, BackendStats, BlockKind};
use crate::units::Bytes;

/// Statistics of a pool at one moment.
///
/// Invariant: `held = weights + scratch + cached`, and `held` is never above the pool's limit. Sizes are those of blocks; only
/// `requested` is before rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// In use for weights.
    pub weights: Bytes,
    /// In use for everything else.
    pub scratch: Bytes,
    /// Sum of the requested sizes, before rounding up to blocks; spilled blocks included.
    pub requested: Bytes,
    /// Free, and cached for the next request.
    pub cached: Bytes,
    /// Device memory of the pool: weights, scratch and cached together.
    pub held: Bytes,
    /// In use on the host because the device had no room.
    pub spilled: Bytes,
    /// Greatest sum of weights, scratch and spilled since the last reset of peaks.
    pub in_use_peak: Bytes,
    /// Greatest `held` since the last reset of peaks.
    pub held_peak: Bytes,
    /// Allocations since the pool was created.
    pub allocations: u64,
    /// Allocations that reused a free block.
    pub reuses: u64,
    /// Allocations in host memory.
    pub spills: u64,
    /// Number of blocks in use.
    pub blocks: usize,
    /// Free blocks that were found to be written to, if the pool checks: a bug of their former owner.
    pub writes_after_free: u64,
    /// Memory that the pool takes by the device's count: more than `held` if the device allocates larger pieces.
    pub reserved: Bytes,
    /// Greatest `reserved` since the last reset of peaks.
    pub reserved_peak: Bytes,
    /// Free on the device, for any program; `None` if unknown.
    pub device_free: Option<Bytes>,
    /// Total memory of the device; `None` if unknown.
    pub device_total: Option<Bytes>,
}

impl PoolStats {
    /// Bytes of blocks in use, on the device or spilled.
    #[must_use]
    pub fn in_use(&self) -> Bytes {
        self.weights + self.scratch + self.spilled
    }

    /// Device memory that is neither free nor the pool's: contexts, kernels, libraries' workspaces and other programs; `None` if
    /// unknown.
    #[must_use]
    pub fn device_other(&self) -> Option<Bytes> {
        let (Bytes(total), Bytes(free)) = self.device_total.zip(self.device_free)?;
        Some(Bytes(total.saturating_sub(free).saturating_sub(self.reserved.0)))
    }
}

/// The running sums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    weights: usize,
    scratch: usize,
    spilled: usize,
    requested: usize,
    in_use_peak: usize,
    held_peak: usize,
    allocations: u64,
    pub(super) reuses: u64,
    spills: u64,
    pub(super) writes_after_free: u64,
}

impl Counters {
    /// Counts a block of `size` bytes that is allocated for a request of `requested` bytes.
    pub(super) fn note_allocation(&mut self, kind: BlockKind, size: usize, requested: usize) {
        *self.sum(kind) += size;
        self.requested += requested;
        self.allocations += 1;
        self.spills += u64::from(kind == BlockKind::Spill);
        self.in_use_peak = self.in_use_peak.max(self.in_use());
    }

    /// Counts the block as freed.
    pub(super) fn note_free(&mut self, kind: BlockKind, size: usize, requested: usize) {
        *self.sum(kind) -= size;
        self.requested -= requested;
    }

    fn sum(&mut self, kind: BlockKind) -> &mut usize {
        match kind {
            BlockKind::Weights => &mut self.weights,
            BlockKind::Scratch => &mut self.scratch,
            BlockKind::Spill => &mut self.spilled,
        }
    }

    fn in_use(&self) -> usize {
        self.weights + self.scratch + self.spilled
    }

    pub(super) fn weights(&self) -> usize {
        self.weights
    }

    /// In use on the device.
    pub(super) fn on_device(&self) -> usize {
        self.weights + self.scratch
    }

    /// Updates the peak of `held`; must be called when it has grown.
    pub(super) fn note_held(&mut self, cached: usize) {
        self.held_peak = self.held_peak.max(self.on_device() + cached);
    }

    pub(super) fn reset_peaks(&mut self, cached: usize) {
        self.in_use_peak = self.in_use();
        self.held_peak = self.on_device() + cached;
    }

    pub(super) fn stats(&self, cached: usize, blocks: usize, backend: &impl Backend) -> PoolStats {
        let BackendStats { reserved, reserved_peak, device_free, device_total } = backend.held();
        let known = |n: usize| (device_total > 0).then(|| Bytes::from(n));
        PoolStats {
            weights: self.weights.into(),
            scratch: self.scratch.into(),
            requested: self.requested.into(),
            cached: cached.into(),
            held: (self.on_device() + cached).into(),
            spilled: self.spilled.into(),
            in_use_peak: self.in_use_peak.into(),
            held_peak: self.held_peak.into(),
            allocations: self.allocations,
            reuses: self.reuses,
            spills: self.spills,
            blocks,
            writes_after_free: self.writes_after_free,
            reserved: reserved.into(),
            reserved_peak: reserved_peak.into(),
            device_free: known(device_free),
            device_total: known(device_total),
        }
    }
}
