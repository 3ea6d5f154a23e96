//! Metrics of one device's workers.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::{
    job::{Memory, MemoryReport, ModelId, ModelReport},
    metrics::{ExitReason, MemoryKind, Metrics, OnDevice, PromptFile, Provider},
    units::Bytes,
};

/// Metrics of one device's workers.
pub(super) struct WorkerMetrics {
    metrics: Arc<Metrics>,
    device: OnDevice,
    /// Label sets of `eka_graph_nodes` that belong to this device.
    providers: Mutex<Vec<Provider>>,
    pub(super) ready: Gauge,
    pub(super) starts: Counter,
    pub(super) resumed: Counter,
    pub(super) load_seconds: Gauge<f64, AtomicU64>,
}

impl WorkerMetrics {
    pub(super) fn new(metrics: Arc<Metrics>, device: OnDevice) -> Self {
        Self {
            ready: metrics.worker_ready.of(&device),
            starts: metrics.worker_starts.of(&device),
            resumed: metrics.jobs_resumed.of(&device),
            load_seconds: metrics.model_load_seconds.of(&device),
            metrics,
            device,
            providers: Mutex::default(),
        }
    }

    /// Counts the end of a worker.
    pub(super) fn count_exit(&self, reason: &'static str) {
        self.ready.set(0);
        let reason = ExitReason { reason, device: self.device.clone() };
        self.metrics.worker_exits.get_or_create(&reason).inc();
    }

    /// Counts an attempt to restore a saved prompt.
    pub(super) fn count_restore(&self, outcome: &'static str) {
        let restore = PromptFile { action: "restore", outcome, device: self.device.clone() };
        self.metrics.saved_prompts.get_or_create(&restore).inc();
    }

    /// Sets the memory gauges between two jobs.
    pub(super) fn set_memory(&self, memory: Memory) {
        self.set_bytes("resident", memory.resident);
        self.set_bytes("anonymous", memory.anonymous);
        self.set_bytes("prefix_cache", Some(memory.prefix_cache));
        self.set_bytes("device_used", memory.device.map(|device| device.used));
        self.set_bytes("device_reserved", memory.device.map(|device| device.reserved));
        self.set_bytes("device_free", memory.device.and_then(|device| device.free));
        self.set_bytes("device_other", memory.device.and_then(|device| device.other));
    }

    /// Sets the gauges for the memory peaks of a job.
    pub(super) fn set_peaks(&self, memory: &MemoryReport) {
        self.set_bytes("peak_resident", memory.peak_resident);
        self.set_bytes("device_peak_used", memory.device_peak.map(|peak| peak.used));
        self.set_bytes("device_peak_reserved", memory.device_peak.map(|peak| peak.reserved));
    }

    /// Sets how many graph nodes of all loaded models each execution provider runs.
    pub(super) fn set_graph_nodes(&self, models: &[(ModelId, ModelReport)]) {
        let nodes = &self.metrics.graph_nodes;
        let mut shown = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        // Removes this device's values only.
        for provider in shown.drain(..) {
            nodes.remove(&provider);
        }
        for (_, report) in models {
            for (provider, count) in report.placement.nodes() {
                let provider = Provider { provider: provider.to_owned(), device: self.device.clone() };
                nodes.get_or_create(&provider).inc_by(i64::try_from(count).unwrap_or(i64::MAX));
                shown.push(provider);
            }
        }
    }

    fn set_bytes(&self, kind: &'static str, bytes: Option<Bytes>) {
        if let Some(bytes) = bytes {
            let kind = MemoryKind { process: "worker", kind, device: self.device.clone() };
            self.metrics.memory.get_or_create(&kind).set(i64::try_from(bytes.0).unwrap_or(i64::MAX));
        }
    }
}
