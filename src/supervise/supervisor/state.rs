//! What a supervisor keeps from worker to worker.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::inbox::{CommandRequest, Inbox};
use crate::{
    job::{Memory, ModelId, Readiness, SlotReport},
    supervise::{
        job_run::JobRequest,
        learned_speed::Watchdogs,
        loaded_models::LoadedModels,
        restored_prompts::RestoredPrompts,
        startup::{ActiveWorker, Standby},
        worker_config::WorkerConfig,
        worker_metrics::WorkerMetrics,
    },
};

/// The supervisor's ends of its channels, and what it shares with other supervisors.
pub(in crate::supervise) struct Channels {
    pub(in crate::supervise) jobs: mpsc::Receiver<JobRequest>,
    pub(in crate::supervise) commands: mpsc::Receiver<CommandRequest>,
    pub(in crate::supervise) readiness: watch::Sender<Readiness>,
    pub(in crate::supervise) stop: CancellationToken,
    pub(in crate::supervise) replacements: Arc<Semaphore>,
}

/// Keeps one worker running and runs jobs on it.
pub(in crate::supervise) struct Supervisor {
    pub(super) config: Arc<WorkerConfig>,
    pub(super) models: LoadedModels,
    pub(super) restored: RestoredPrompts,
    /// Models that the next worker loads when it starts.
    pub(super) preload: Vec<ModelId>,
    /// The next worker, if it starts while the current one still runs.
    pub(super) standby: Option<Standby>,
    pub(super) watchdogs: Watchdogs,
    pub(super) metrics: WorkerMetrics,
    pub(super) inbox: Inbox,
    pub(super) commands: mpsc::Receiver<CommandRequest>,
    pub(super) readiness: watch::Sender<Readiness>,
    pub(super) stop: CancellationToken,
    /// Shared by all supervisors: a permit is needed to replace a worker.
    pub(super) replacements: Arc<Semaphore>,
    /// Held from the moment a replacement is due until the next worker is ready.
    pub(super) replacement_permit: Option<OwnedSemaphorePermit>,
    pub(super) ever_ready: bool,
    /// Consecutive workers that were lost without finishing a job.
    pub(super) failures: u32,
    /// Consecutive workers that were lost while loading a model.
    pub(super) load_losses: u32,
}

impl Supervisor {
    pub(in crate::supervise) fn new(
        config: WorkerConfig,
        metrics: WorkerMetrics,
        channels: Channels,
    ) -> Self {
        let Channels { jobs, commands, readiness, stop, replacements } = channels;
        let first = config.models.first().map(|source| source.id.clone()).unwrap_or_default();
        Self {
            models: LoadedModels::new(config.model_memory, config.keep_alive),
            restored: RestoredPrompts::default(),
            preload: vec![first],
            standby: None,
            config: Arc::new(config),
            watchdogs: Watchdogs::default(),
            metrics,
            inbox: Inbox::new(jobs),
            commands,
            readiness,
            stop,
            replacements,
            replacement_permit: None,
            ever_ready: false,
            failures: 0,
            load_losses: 0,
        }
    }

    pub(super) fn has_several_models(&self) -> bool {
        self.config.models.len() > 1
    }

    /// Publishes the worker's memory without waking those who wait for a change of state.
    pub(super) fn publish_memory(&self, memory: Memory) {
        self.metrics.set_memory(memory);
        self.readiness.send_if_modified(|state| {
            if let Readiness::Ready(report) = state {
                report.memory = memory;
            }
            false
        });
    }

    /// Publishes that `worker` is ready, with its models and its memory.
    pub(super) fn publish_ready(&self, worker: &ActiveWorker) {
        self.metrics.set_memory(worker.memory);
        self.metrics.set_graph_nodes(&self.models.reports());
        self.readiness.send_replace(Readiness::Ready(SlotReport {
            runtime: worker.runtime.clone(),
            models: self.models.reports(),
            memory: worker.memory,
        }));
    }
}
