//! Counters and histograms that the stages increment, rendered in the OpenMetrics text format.
//!
//! One value of [`Metrics`] lives as long as the server and is shared by all stages; incrementing never waits. Names
//! follow Prometheus' conventions: base units, `_total` on counters (added by the renderer).

mod cluster;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder, text::encode},
    metrics::{
        MetricType, TypedMetric,
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

pub use self::cluster::{ClusterMetrics, NodeLabel};
use crate::log_queue;

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route, for example `/v1/completions`.
    pub route: &'static str,
    /// `ok`, or the stable code of the error.
    pub code: &'static str,
}

/// Label of queue waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PriorityLabel {
    /// `interactive` or `batch`.
    pub priority: &'static str,
}

/// Label of draft tokens: their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DraftSourceLabel {
    /// `text` for prompt lookup, or `model` for a draft model.
    pub source: &'static str,
}

impl DraftSourceLabel {
    /// Prompt lookup: earlier text of prompt and answer.
    pub const TEXT: Self = Self { source: "text" };
    /// A draft model.
    pub const MODEL: Self = Self { source: "model" };
}

/// Labels of memory: process and kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemoryKind {
    /// `parent` or `worker`.
    pub process: &'static str,
    /// `resident`, `anonymous` or, of the last job, `peak_resident`; with a pool, `device_used`, `device_reserved`,
    /// `device_free`, `device_other` (neither free nor the pool's) and, of the last job, `device_peak_used` and `device_peak_reserved`.
    pub kind: &'static str,
    /// The device, if there are several.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// Labels of saved prompts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PromptFile {
    /// `save` or `restore`.
    pub action: &'static str,
    /// `ok` or `failed`.
    pub outcome: &'static str,
    /// Device of a restore, also of one after a worker was replaced; empty for a save.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// Label of requests with an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdapterLabel {
    /// `MODEL:NAME`; `other` once there are too many names.
    pub adapter: String,
}

/// Label of requests to resume a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResumeLabel {
    /// `resumed`; `not_found`, if the stream is unknown or forgotten; or `events_dropped`, if its events were too large to be kept.
    pub outcome: &'static str,
}

/// Label of graph nodes: their execution provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Provider {
    /// ONNX Runtime's name for it.
    pub provider: String,
    /// The device, if there are several.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// Label of worker exits: the reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExitReason {
    /// `not_started`, `start_failed`, `load_failed`, `crashed`, `poisoned`, `hung`, `protocol`, `recycled` or `shutdown`.
    pub reason: &'static str,
    /// The device, if there are several.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// Labels of sandbox tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SandboxTask {
    /// `constraint` or `template`.
    pub kind: &'static str,
    /// `ok`; `refused`; `time` or `memory`, the limit for which the process was killed; `busy`, if too many tasks wait; or
    /// `unavailable`.
    pub outcome: &'static str,
}

/// The label `device`. A single device has no label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OnDevice(Option<Arc<str>>);

impl From<Option<&str>> for OnDevice {
    fn from(name: Option<&str>) -> Self {
        Self(name.map(Into::into))
    }
}

impl EncodeLabelSet for OnDevice {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |name| ("device", &**name).encode(encoder.encode_label()))
    }
}

/// One metric per device.
#[derive(Clone, Debug)]
pub struct PerDevice<M>(Vec<(OnDevice, M)>);

impl<M: Default> PerDevice<M> {
    fn new(devices: &[OnDevice]) -> Self {
        Self(devices.iter().map(|device| (device.clone(), M::default())).collect())
    }
}

impl<M: Clone + Default> PerDevice<M> {
    /// The metric of one device; an unregistered one for an unknown device.
    #[must_use]
    pub fn of(&self, device: &OnDevice) -> M {
        let known = self.0.iter().find(|(known, _)| known == device);
        known.map(|(_, figure)| figure.clone()).unwrap_or_default()
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for PerDevice<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (device, figure) in &self.0 {
            match device {
                OnDevice(Some(_)) => figure.encode(encoder.encode_family(device)?)?,
                // An empty set of labels would be written as such.
                OnDevice(None) => return figure.encode(encoder),
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// All metrics of the server.
pub struct Metrics {
    registry: Registry,
    /// Jobs waiting in the queue.
    pub queue_jobs: Gauge,
    /// Prompt tokens of the jobs waiting in the queue.
    pub queue_prompt_tokens: Gauge,
    /// Jobs running: at most one for each device.
    pub slot_busy: Gauge,
    /// Share of the context that the running jobs fill, from 0 to 1; set when the metrics are read.
    pub kv_cache_usage: Gauge<f64, AtomicU64>,
    /// Time from acceptance to the start of the job, by priority.
    pub queue_wait: Family<PriorityLabel, Histogram, fn() -> Histogram>,
    /// Time from acceptance to the first token.
    pub time_to_first_token: Histogram,
    /// Time between two tokens of an answer.
    pub inter_token_latency: Histogram,
    /// Time from acceptance to the end.
    pub job_duration: Histogram,
    /// Prompt tokens of finished jobs.
    pub prompt_tokens: Counter,
    /// Prompt tokens that the prefix cache provided.
    pub prompt_tokens_cached: Counter,
    /// Draft tokens that were verified, by source.
    pub draft_tokens: Family<DraftSourceLabel, Counter>,
    /// Draft tokens that were accepted, by source.
    pub draft_tokens_accepted: Family<DraftSourceLabel, Counter>,
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Answered requests by route and code.
    pub requests: Family<RequestLabels, Counter>,
    /// Whether a worker is up and has the model loaded: 0 or 1.
    pub worker_ready: PerDevice<Gauge>,
    /// Worker processes started.
    pub worker_starts: PerDevice<Counter>,
    /// Jobs resumed on another worker.
    pub jobs_resumed: PerDevice<Counter>,
    /// Worker processes ended, by reason.
    pub worker_exits: Family<ExitReason, Counter>,
    /// Seconds that the last load of the model took.
    pub model_load_seconds: PerDevice<Gauge<f64, AtomicU64>>,
    /// Requests with an adapter, by adapter.
    pub adapter_requests: Family<AdapterLabel, Counter>,
    /// Requests to resume a stream, by outcome.
    pub stream_resumes: Family<ResumeLabel, Counter>,
    /// Streams whose client did not return in time.
    pub streams_abandoned: Counter,
    /// Memory of the events of streams that can be resumed, in bytes.
    pub resumable_stream_bytes: Gauge,
    /// Prompts that were saved and restored.
    pub saved_prompts: Family<PromptFile, Counter>,
    /// Schemas and conversations processed by sandbox processes, by outcome.
    pub sandbox_tasks: Family<SandboxTask, Counter>,
    /// Sandbox processes started; all but the first few replace one that was killed.
    pub sandbox_starts: Counter,
    /// Nodes of the loaded graphs by execution provider.
    pub graph_nodes: Family<Provider, Gauge>,
    /// Memory of the processes.
    pub memory: Family<MemoryKind, Gauge>,
    /// Spans of traces that did not reach the collector.
    pub trace_spans_dropped: Counter,
    /// Log lines of this process that were dropped, because stderr was not read.
    pub log_lines_dropped: Counter,
    /// Metrics of a gateway or node of a cluster.
    pub cluster: ClusterMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero, for one device.
    #[must_use]
    pub fn new() -> Self {
        Self::for_devices(&[])
    }

    /// Number of workers that exited for this reason, on all devices.
    #[must_use]
    pub fn exits(&self, reason: &'static str) -> u64 {
        let devices = self.worker_starts.0.iter().map(|(device, _)| device.clone());
        let exits = devices.filter_map(|device| {
            let exits = self.worker_exits.get(&ExitReason { reason, device })?;
            Some(exits.get())
        });
        exits.sum()
    }

    /// All metrics at zero, for the named devices, or for a single one without a name.
    #[must_use]
    pub fn for_devices(names: &[String]) -> Self {
        let mut devices: Vec<_> = names.iter().map(|name| OnDevice::from(Some(name.as_str()))).collect();
        if devices.is_empty() {
            devices.push(OnDevice::default());
        }
        // 100 µs to 14 min, and 1 ms to 16 s: doubling buckets keep a percentile within a factor of two at both ends.
        let waits: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 24));
        let steps = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self {
            registry: Registry::with_prefix("eka"),
            queue_jobs: Gauge::default(),
            queue_prompt_tokens: Gauge::default(),
            slot_busy: Gauge::default(),
            kv_cache_usage: Gauge::default(),
            queue_wait: Family::new_with_constructor(waits),
            time_to_first_token: waits(),
            inter_token_latency: steps(),
            job_duration: waits(),
            prompt_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            draft_tokens: Family::default(),
            draft_tokens_accepted: Family::default(),
            generated_tokens: Counter::default(),
            requests: Family::default(),
            worker_ready: PerDevice::new(&devices),
            worker_starts: PerDevice::new(&devices),
            jobs_resumed: PerDevice::new(&devices),
            worker_exits: Family::default(),
            model_load_seconds: PerDevice::new(&devices),
            adapter_requests: Family::default(),
            stream_resumes: Family::default(),
            streams_abandoned: Counter::default(),
            resumable_stream_bytes: Gauge::default(),
            saved_prompts: Family::default(),
            sandbox_tasks: Family::default(),
            sandbox_starts: Counter::default(),
            graph_nodes: Family::default(),
            memory: Family::default(),
            trace_spans_dropped: Counter::default(),
            log_lines_dropped: log_queue::dropped(),
            cluster: ClusterMetrics::default(),
        }
        .registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("queue_jobs", "Jobs waiting in the queue", self.queue_jobs.clone());
        let help = "Prompt tokens of the jobs waiting in the queue";
        r.register("queue_prompt_tokens", help, self.queue_prompt_tokens.clone());
        r.register("slot_busy", "Jobs running: at most one for each device", self.slot_busy.clone());
        let help = "Share of the context that the longest running job of each slot fills: mean of the slots";
        r.register_with_unit(
            "kv_cache_usage",
            help,
            Unit::Other("ratio".into()),
            self.kv_cache_usage.clone(),
        );
        let seconds = Unit::Seconds;
        let help = "Time from acceptance to the start of the job, by priority";
        r.register_with_unit("queue_wait", help, seconds.clone(), self.queue_wait.clone());
        let help = "Time from acceptance to the first token";
        r.register_with_unit("time_to_first_token", help, seconds.clone(), self.time_to_first_token.clone());
        let help = "Time between two tokens of an answer";
        r.register_with_unit("inter_token_latency", help, seconds.clone(), self.inter_token_latency.clone());
        let help = "Time from acceptance to the end";
        r.register_with_unit("job_duration", help, seconds, self.job_duration.clone());
        r.register("prompt_tokens", "Prompt tokens of finished jobs", self.prompt_tokens.clone());
        let help = "Prompt tokens that the prefix cache provided";
        r.register("prompt_tokens_cached", help, self.prompt_tokens_cached.clone());
        for source in [DraftSourceLabel::TEXT, DraftSourceLabel::MODEL] {
            // Created at zero, because a rate needs the first sample.
            for tokens in [&self.draft_tokens, &self.draft_tokens_accepted] {
                drop(tokens.get_or_create(&source));
            }
        }
        let help = "Draft tokens that were verified, by source";
        r.register("draft_tokens", help, self.draft_tokens.clone());
        let help = "Draft tokens that were accepted, by source";
        r.register("draft_tokens_accepted", help, self.draft_tokens_accepted.clone());
        r.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        r.register("requests", "Answered requests by route and code", self.requests.clone());
        r.register(
            "worker_ready",
            "Whether a worker has the model loaded: 0 or 1",
            self.worker_ready.clone(),
        );
        r.register("worker_starts", "Worker processes started", self.worker_starts.clone());
        r.register("jobs_resumed", "Jobs resumed on another worker", self.jobs_resumed.clone());
        r.register("worker_exits", "Worker processes ended, by reason", self.worker_exits.clone());
        let help = "Time that the last load of the model took";
        r.register_with_unit("model_load", help, Unit::Seconds, self.model_load_seconds.clone());
        let help = "Requests with an adapter, by adapter";
        r.register("adapter_requests", help, self.adapter_requests.clone());
        let help = "Requests to resume a stream, by outcome";
        r.register("stream_resumes", help, self.stream_resumes.clone());
        let help = "Streams whose client did not return in time";
        r.register("streams_abandoned", help, self.streams_abandoned.clone());
        let help = "Memory of the events of streams that can be resumed";
        r.register_with_unit("resumable_streams", help, Unit::Bytes, self.resumable_stream_bytes.clone());
        let help = "Prompts saved and restored, by action and outcome";
        r.register("saved_prompts", help, self.saved_prompts.clone());
        let help = "Schemas and conversations processed by sandbox processes, by kind and outcome";
        r.register("sandbox_tasks", help, self.sandbox_tasks.clone());
        r.register("sandbox_starts", "Sandbox processes started", self.sandbox_starts.clone());
        let help = "Nodes of the loaded graphs by execution provider";
        r.register("graph_nodes", help, self.graph_nodes.clone());
        let help = "Memory of the parent and the worker process";
        r.register_with_unit("memory", help, Unit::Bytes, self.memory.clone());
        let help = "Spans of traces that did not reach the collector";
        r.register("trace_spans_dropped", help, self.trace_spans_dropped.clone());
        let help = "Log lines that were dropped because stderr was not read";
        r.register("log_lines_dropped", help, self.log_lines_dropped.clone());
        self
    }

    /// Shows the metrics of a cluster too.
    #[must_use]
    pub fn with_cluster(mut self) -> Self {
        self.cluster.add_to(&mut self.registry);
        self
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// Never in practice: writing to a `String` does not fail.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(device: Option<&str>) -> MemoryKind {
        MemoryKind { process: "worker", kind: "resident", device: device.into() }
    }

    #[test]
    fn several_devices_have_a_label() {
        let metrics = Metrics::for_devices(&["cpu:0".into(), "cuda:1".into()]);
        metrics.worker_starts.of(&Some("cuda:1").into()).inc();
        metrics.memory.get_or_create(&worker(Some("cuda:1"))).set(4096);
        let text = metrics.render().unwrap();
        for line in [
            "eka_worker_starts_total{device=\"cpu:0\"} 0",
            "eka_worker_starts_total{device=\"cuda:1\"} 1",
            "eka_memory_bytes{process=\"worker\",kind=\"resident\",device=\"cuda:1\"} 4096",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }

    #[test]
    fn metrics_are_rendered_with_conventional_names() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&RequestLabels { route: "/v1/completions", code: "ok" }).inc();
        metrics.queue_wait.get_or_create(&PriorityLabel { priority: "batch" }).observe(0.25);
        metrics.memory.get_or_create(&worker(None)).set(4096);
        let text = metrics.render().unwrap();
        for line in [
            "eka_requests_total{route=\"/v1/completions\",code=\"ok\"} 1",
            "eka_queue_wait_seconds_count{priority=\"batch\"} 1",
            "eka_memory_bytes{process=\"worker\",kind=\"resident\"} 4096",
            "eka_worker_starts_total 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }
}
