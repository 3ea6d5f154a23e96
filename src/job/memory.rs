//! What a worker's memory comes to, in figures that travel.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::units::Bytes;

/// The worker's memory around one job. `None` where the operating system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// When the job arrived.
    pub before: Memory,
    /// Greatest resident size while it ran; the operating system keeps no peak of anonymous memory.
    pub peak_resident: Option<Bytes>,
    /// When it was over and its memory given back; that of the device to its pool, which is trimmed once the answer is out.
    pub after: Memory,
    /// Most that its pool held of the device while it ran; `None` where there is no pool.
    pub device_peak: Option<DevicePeak>,
}

/// Most that a pool held of its device's memory during a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DevicePeak {
    /// In use: weights, cache and work.
    pub used: Bytes,
    /// Taken from the device, in use or not.
    pub reserved: Bytes,
}

/// What a pool holds of its device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceMemory {
    /// In use: weights, cache and work.
    pub used: Bytes,
    /// Taken from the device, in use or not.
    pub reserved: Bytes,
    /// Free on the device, for anybody; `None` where it does not say.
    pub free: Option<Bytes>,
    /// Neither free nor the pool's: contexts, kernels, libraries' workspaces, and whatever other programs hold; `None` where
    /// the device does not say.
    pub other: Option<Bytes>,
}

/// What a process holds of the host's memory, and of its device's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Resident set: anonymous pages and mapped files together.
    pub resident: Option<Bytes>,
    /// Anonymous pages alone: what cannot be dropped and read again from a file.
    pub anonymous: Option<Bytes>,
    /// Of these, or of the device's: keys and values that are kept for prompts that begin alike.
    pub prefix_cache: Bytes,
    /// The device's, where it comes from a pool: on a GPU.
    pub device: Option<DeviceMemory>,
}

impl Memory {
    /// Anonymous pages but for what is kept for prompts that begin alike, which a trim gives back: what must not grow.
    #[must_use]
    pub fn lasting(&self) -> Option<Bytes> {
        // A pool has bounds of its own.
        let kept = if self.device.is_none() { self.prefix_cache } else { Bytes(0) };
        self.anonymous.map(|anonymous| Bytes(anonymous.0.saturating_sub(kept.0)))
    }
}
