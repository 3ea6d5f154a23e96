//! What the metrics say of one device's workers.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::{
    job::{Memory, MemoryReport, ModelId, ModelReport},
    metrics::{ExitReason, MemoryKind, Metrics, OnDevice, PromptFile, Provider},
    units::Bytes,
};

/// The figures of one device.
pub(super) struct Figures {
    metrics: Arc<Metrics>,
    device: OnDevice,
    /// What has nodes in the metrics.
    providers: Mutex<Vec<Provider>>,
    pub(super) ready: Gauge,
    pub(super) starts: Counter,
    pub(super) resumed: Counter,
    pub(super) load_seconds: Gauge<f64, AtomicU64>,
}

impl Figures {
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

    /// A worker has ended.
    pub(super) fn exit(&self, reason: &'static str) {
        self.ready.set(0);
        let reason = ExitReason { reason, device: self.device.clone() };
        self.metrics.worker_exits.get_or_create(&reason).inc();
    }

    /// A saved prompt was restored, or could not be.
    pub(super) fn restored(&self, outcome: &'static str) {
        let restore = PromptFile { action: "restore", outcome, device: self.device.clone() };
        self.metrics.saved_prompts.get_or_create(&restore).inc();
    }

    /// What is held between two jobs.
    pub(super) fn show_memory(&self, memory: Memory) {
        self.show("resident", memory.resident);
        self.show("anonymous", memory.anonymous);
        self.show("prefix_cache", Some(memory.prefix_cache));
        self.show("device_used", memory.device.map(|device| device.used));
        self.show("device_reserved", memory.device.map(|device| device.reserved));
        self.show("device_free", memory.device.and_then(|device| device.free));
        self.show("device_other", memory.device.and_then(|device| device.other));
    }

    /// What a job has left, and the most that it held.
    pub(super) fn show_job(&self, memory: &MemoryReport) {
        self.show_memory(memory.after);
        self.show("peak_resident", memory.peak_resident);
        self.show("device_peak_used", memory.device_peak.map(|peak| peak.used));
        self.show("device_peak_reserved", memory.device_peak.map(|peak| peak.reserved));
    }

    /// Where the nodes of all loaded graphs run.
    pub(super) fn show_nodes(&self, models: &[(ModelId, ModelReport)]) {
        let nodes = &self.metrics.graph_nodes;
        let mut shown = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of other devices stay.
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

    fn show(&self, kind: &'static str, bytes: Option<Bytes>) {
        if let Some(bytes) = bytes {
            let kind = MemoryKind { process: "worker", kind, device: self.device.clone() };
            self.metrics.memory.get_or_create(&kind).set(i64::try_from(bytes.0).unwrap_or(i64::MAX));
        }
    }
}
