//! How to start a worker, and the limits that its supervisor enforces.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use super::watchdog::Budgets;
use crate::{
    job::{KeepAlive, ModelId},
    units::Bytes,
    wire::{DraftModel, WorkerSpec},
};

/// How to start a worker, and the limits that its supervisor enforces.
///
/// On Linux a worker is killed when the thread that started it ends (`PR_SET_PDEATHSIG`), so it never outlives this process.
/// Hence the thread that polls the future of a [`WorkerPool`](super::WorkerPool) must not end before the workers.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Device name in logs and metrics; `None` for a single device.
    pub label: Option<String>,
    /// The executable, usually this program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Sent as the first frame.
    pub spec: WorkerSpec,
    /// Models that the worker can load. The first worker loads the first one; the others are loaded on demand.
    pub models: Vec<ModelSource>,
    /// Memory limit for all loaded models together; `None` means no limit.
    pub model_memory: Option<Bytes>,
    /// How long an unused model stays loaded by default.
    pub keep_alive: KeepAlive,
    /// How long a worker may stay silent.
    pub budgets: Budgets,
    /// When a healthy worker is replaced.
    pub recycle: Recycle,
    /// File that keeps the measured speed of each model between runs.
    pub speed_file: Option<PathBuf>,
    /// Free memory of the machine; `None` if the system does not report it.
    pub available_memory: fn() -> Option<Bytes>,
}

impl WorkerConfig {
    pub(super) fn source(&self, model: &ModelId) -> Option<&ModelSource> {
        self.models.iter().find(|source| source.id == *model)
    }
}

/// Where a model is loaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// The id that jobs use.
    pub id: ModelId,
    /// Directory with its files.
    pub dir: PathBuf,
    /// Draft model for speculative decoding.
    pub draft: Option<DraftModel>,
    /// Size of its files and its draft model's files: the memory estimate before the first load.
    pub on_disk: Bytes,
}

/// When a healthy worker is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recycle {
    /// After this many jobs.
    pub after_jobs: Option<u64>,
    /// After this time.
    pub after: Option<Duration>,
    /// When its memory after a trim exceeds what its models took by this much.
    pub growth: Bytes,
    /// After every job: for drivers that hang after long use.
    pub between_requests: bool,
}
