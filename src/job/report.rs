//! What a worker reports about its device and its models, and the state of a device.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    ids::ModelId,
    memory::{DeviceMemory, Memory},
};
use crate::units::Bytes;

/// A worker's runtime and device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuntimeReport {
    /// Version of ONNX Runtime.
    pub runtime: String,
    /// Path of ONNX Runtime's library; for logs only.
    pub library: PathBuf,
    /// Name of the device: `the CPU`, or that of a GPU.
    pub device: String,
    /// Features of the GPU; `None` on a CPU.
    pub gpu: Option<GpuReport>,
    /// Why the CPU is used instead of a GPU; for logs only.
    pub fell_back: Option<String>,
    /// Compute threads.
    pub threads: usize,
    /// Memory without any model.
    pub memory: Memory,
}

/// Features of a GPU that an export depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReport {
    /// Supports bfloat16 besides float16.
    pub has_bfloat16: bool,
}

/// Number of graph nodes by execution provider and operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement(pub BTreeMap<String, BTreeMap<String, usize>>);

impl Placement {
    /// Number of nodes by execution provider.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(provider, operators)| (provider.as_str(), operators.values().sum()))
    }
}

/// Without the operators.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (provider, nodes)) in self.nodes().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{provider}: {nodes}")?;
        }
        Ok(())
    }
}

/// A loaded model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Where the session runs the nodes of the graph.
    pub placement: Placement,
    /// Maximum number of positions of prompt and answer together.
    pub capacity: usize,
    /// Threads for passes of one token, if they can be set.
    pub decode_threads: Option<usize>,
    /// Threads for longer passes.
    pub prefill_threads: Option<usize>,
    /// The draft model that is loaded with it.
    pub draft: Option<ModelId>,
    /// Time to load it and run it once.
    pub load_time: Duration,
    /// Memory before it was loaded.
    pub before: Memory,
    /// Memory after it was loaded and run once, with its draft model.
    pub after: Memory,
}

impl ModelReport {
    /// Memory that the model added to the worker.
    #[must_use]
    pub fn took(&self) -> Memory {
        let grown =
            |before: Option<Bytes>, after: Option<Bytes>| Some(Bytes(after?.0.saturating_sub(before?.0)));
        let on_device = |before: DeviceMemory, after: DeviceMemory| DeviceMemory {
            used: Bytes(after.used.0.saturating_sub(before.used.0)),
            reserved: Bytes(after.reserved.0.saturating_sub(before.reserved.0)),
            ..DeviceMemory::default()
        };
        Memory {
            resident: grown(self.before.resident, self.after.resident),
            anonymous: grown(self.before.anonymous, self.after.anonymous),
            prefix_cache: Bytes(0),
            adapters: Bytes(0),
            device: self.before.device.zip(self.after.device).map(|(before, after)| on_device(before, after)),
        }
    }
}

/// A ready worker and its loaded models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotReport {
    /// Its runtime and device.
    pub runtime: RuntimeReport,
    /// Loaded models in loading order.
    pub models: Vec<(ModelId, ModelReport)>,
    /// Memory after the last job or trim.
    pub memory: Memory,
}

impl SlotReport {
    /// The report of a loaded model.
    #[must_use]
    pub fn model(&self, id: &ModelId) -> Option<&ModelReport> {
        self.models.iter().find(|(loaded, _)| loaded == id).map(|(_, report)| report)
    }
}

/// Whether a device can run jobs.
#[expect(clippy::large_enum_variant, reason = "there is one of it, and it is read in place")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Readiness {
    /// The first worker is loading its model. New requests are rejected.
    Starting,
    /// A worker is ready. Models that are not loaded are loaded on demand.
    Ready(SlotReport),
    /// A worker that was ready has ended and is being replaced. The queue accepts requests.
    Restarting {
        /// Why the last worker ended.
        reason: String,
    },
    /// Workers keep failing. New requests are rejected; queued ones wait until their deadlines.
    Down {
        /// Why the last worker failed.
        reason: String,
        /// Time until the next attempt; `None` if there will be none.
        retry_in: Option<Duration>,
    },
    /// The server is shutting down.
    Stopping,
}

impl Readiness {
    /// One word for programs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready(_) => "ready",
            Self::Restarting { .. } => "restarting",
            Self::Down { .. } => "down",
            Self::Stopping => "stopping",
        }
    }
}
