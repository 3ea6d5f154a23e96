//! Memory of a worker and of its device.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::units::Bytes;

/// The worker's memory before, during and after a job. `None` if the operating system does not report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// When the job arrived.
    pub before: Memory,
    /// Peak resident memory during the job. The operating system keeps no peak of anonymous memory.
    pub peak_resident: Option<Bytes>,
    /// After the job, once its memory was freed. Device memory is back in its pool, which is trimmed after the answer.
    pub after: Memory,
    /// Peak of the device's pool during the job; `None` without a pool.
    pub device_peak: Option<DevicePeak>,
}

/// Peak of a device's memory pool during a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DevicePeak {
    /// In use by weights, caches and scratch buffers.
    pub used: Bytes,
    /// Allocated from the device, whether in use or not.
    pub reserved: Bytes,
}

/// Memory that a pool holds on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceMemory {
    /// In use by weights, caches and scratch buffers.
    pub used: Bytes,
    /// Allocated from the device, whether in use or not.
    pub reserved: Bytes,
    /// Free on the device; `None` if the device does not report it.
    pub free: Option<Bytes>,
    /// Used by contexts, kernels, library workspaces and other programs; `None` if the device does not report it.
    pub other: Option<Bytes>,
}

/// Memory that a process holds on the host and on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Resident set: anonymous pages and mapped files.
    pub resident: Option<Bytes>,
    /// Anonymous pages, which the system cannot evict to a file.
    pub anonymous: Option<Bytes>,
    /// The prefix cache's part of these, or of the device's memory.
    pub prefix_cache: Bytes,
    /// The part of these that adapters take.
    pub adapters: Bytes,
    /// The device's pool; GPUs have one.
    pub device: Option<DeviceMemory>,
}

impl Memory {
    /// Anonymous memory without the prefix cache and adapters, which a trim frees. This must not grow over time.
    #[must_use]
    pub fn lasting(&self) -> Option<Bytes> {
        // The cache in a pool is not anonymous memory.
        let kept = if self.device.is_none() { self.prefix_cache } else { Bytes(0) };
        self.anonymous.map(|anonymous| Bytes(anonymous.0.saturating_sub(kept.0 + self.adapters.0)))
    }
}
