//! Counters and histograms that the stages increment, rendered in the OpenMetrics text format.
//!
//! One value of [`Metrics`] lives as long as the server and is shared by all stages; incrementing never waits. Names
//! follow Prometheus' conventions: base units, `_total` on counters (added by the renderer).

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

use crate::log_queue;

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// The route, for example `/v1/completions`.
    pub route: &'static str,
    /// `ok`, or the stable code of the error.
    pub code: &'static str,
}

/// Whose wait a figure is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Waiter {
    /// `interactive` or `batch`.
    pub priority: &'static str,
}

/// Who guessed tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Guesser {
    /// `text`, what the text at hand said before, or `model`, a draft model.
    pub source: &'static str,
}

impl Guesser {
    /// The text at hand.
    pub const TEXT: Self = Self { source: "text" };
    /// A draft model.
    pub const MODEL: Self = Self { source: "model" };
}

/// Which process a figure is about, and which kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemoryKind {
    /// `parent` or `worker`.
    pub process: &'static str,
    /// `resident`, `anonymous` or, of the last job, `peak_resident`; with a pool, `device_used`, `device_reserved`,
    /// `device_free`, `device_other` (neither free nor the pool's) and, of the last job, `device_peak_used` and `device_peak_reserved`.
    pub kind: &'static str,
    /// Whose.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// What was done with a saved prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PromptFile {
    /// `save` or `restore`.
    pub action: &'static str,
    /// `ok` or `failed`.
    pub outcome: &'static str,
    /// Where it was restored, also of its own accord after a worker was replaced; a save is nobody's.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// What computes nodes of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Provider {
    /// ONNX Runtime's name for it.
    pub provider: String,
    /// Whose.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// Why a worker process ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExitReason {
    /// `crashed`, `exited`, `load_failed`, `protocol`, `poisoned` or `shutdown`.
    pub reason: &'static str,
    /// Whose.
    #[prometheus(flatten)]
    pub device: OnDevice,
}

/// What a sandbox process was asked, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SandboxTask {
    /// `constraint` or `template`.
    pub kind: &'static str,
    /// `ok`; `refused`, with a reason; `time` and `memory`, the limits for which the process was killed; `busy`, for want of a
    /// place; or `unavailable`.
    pub outcome: &'static str,
}

/// Which of several devices a figure is about, as the label `device`. Where there is but one it has no name, and there is no
/// such label.
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

/// A figure of each device.
#[derive(Clone, Debug)]
pub struct PerDevice<M>(Vec<(OnDevice, M)>);

impl<M: Default> PerDevice<M> {
    fn new(devices: &[OnDevice]) -> Self {
        Self(devices.iter().map(|device| (device.clone(), M::default())).collect())
    }
}

impl<M: Clone + Default> PerDevice<M> {
    /// That of one device; one that nobody sees for a device that is not known.
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

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    /// Jobs waiting in the queue.
    pub queue_jobs: Gauge,
    /// Prompt tokens of the jobs waiting in the queue.
    pub queue_prompt_tokens: Gauge,
    /// Jobs running: at most one for each device.
    pub slot_busy: Gauge,
    /// From accepted to taken off the queue, by priority.
    pub queue_wait: Family<Waiter, Histogram, fn() -> Histogram>,
    /// From accepted to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of one answer.
    pub inter_token_latency: Histogram,
    /// From accepted to the end.
    pub job_duration: Histogram,
    /// Prompt tokens of finished jobs.
    pub prompt_tokens: Counter,
    /// Of these, tokens that were kept from an earlier job.
    pub prompt_tokens_cached: Counter,
    /// Tokens that were guessed and computed along with others, by who guessed.
    pub draft_tokens: Family<Guesser, Counter>,
    /// Of these, tokens that the answer then had.
    pub draft_tokens_accepted: Family<Guesser, Counter>,
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Answered requests by route and code.
    pub requests: Family<Outcome, Counter>,
    /// Whether a worker is up and has the model loaded: 0 or 1.
    pub worker_ready: PerDevice<Gauge>,
    /// Worker processes started.
    pub worker_starts: PerDevice<Counter>,
    /// Jobs taken up again on another worker.
    pub jobs_resumed: PerDevice<Counter>,
    /// Worker processes ended, by reason.
    pub worker_exits: Family<ExitReason, Counter>,
    /// Seconds that the last load of the model took.
    pub model_load_seconds: PerDevice<Gauge<f64, AtomicU64>>,
    /// Prompts that were put into files, and read from them.
    pub saved_prompts: Family<PromptFile, Counter>,
    /// Schemas and conversations given to sandbox processes, by what came of them.
    pub sandbox_tasks: Family<SandboxTask, Counter>,
    /// Sandbox processes started; all but the first few replace one that was killed.
    pub sandbox_starts: Counter,
    /// Nodes of the loaded graphs by what computes them.
    pub graph_nodes: Family<Provider, Gauge>,
    /// Memory of the processes.
    pub memory: Family<MemoryKind, Gauge>,
    /// Spans of traces that did not reach the collector.
    pub trace_spans_dropped: Counter,
    /// Log lines of this process that were dropped, because stderr was not read.
    pub log_lines_dropped: Counter,
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
    /// All at zero, for one device.
    #[must_use]
    pub fn new() -> Self {
        Self::for_devices(&[])
    }

    /// How many workers have ended for this reason, on all devices together.
    #[must_use]
    pub fn exits(&self, reason: &'static str) -> u64 {
        let devices = self.worker_starts.0.iter().map(|(device, _)| device.clone());
        let exits = devices.filter_map(|device| {
            let exits = self.worker_exits.get(&ExitReason { reason, device })?;
            Some(exits.get())
        });
        exits.sum()
    }

    /// All at zero, for several devices with these names, or for one without any.
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
            saved_prompts: Family::default(),
            sandbox_tasks: Family::default(),
            sandbox_starts: Counter::default(),
            graph_nodes: Family::default(),
            memory: Family::default(),
            trace_spans_dropped: Counter::default(),
            log_lines_dropped: log_queue::dropped(),
        }
        .registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("queue_jobs", "Jobs waiting in the queue", self.queue_jobs.clone());
        let help = "Prompt tokens of the jobs waiting in the queue";
        r.register("queue_prompt_tokens", help, self.queue_prompt_tokens.clone());
        r.register("slot_busy", "Jobs running: at most one for each device", self.slot_busy.clone());
        let seconds = Unit::Seconds;
        let help = "From accepted to taken off the queue, by priority";
        r.register_with_unit("queue_wait", help, seconds.clone(), self.queue_wait.clone());
        let help = "From accepted to the first token";
        r.register_with_unit("time_to_first_token", help, seconds.clone(), self.time_to_first_token.clone());
        let help = "Between two tokens of one answer";
        r.register_with_unit("inter_token_latency", help, seconds.clone(), self.inter_token_latency.clone());
        let help = "From accepted to the end";
        r.register_with_unit("job_duration", help, seconds, self.job_duration.clone());
        r.register("prompt_tokens", "Prompt tokens of finished jobs", self.prompt_tokens.clone());
        let help = "Prompt tokens of finished jobs that were kept from earlier ones";
        r.register("prompt_tokens_cached", help, self.prompt_tokens_cached.clone());
        for guesser in [Guesser::TEXT, Guesser::MODEL] {
            // From the start, as a rate of what is not there is none.
            for guessed in [&self.draft_tokens, &self.draft_tokens_accepted] {
                drop(guessed.get_or_create(&guesser));
            }
        }
        let help = "Tokens that were guessed and computed along with others, by who guessed";
        r.register("draft_tokens", help, self.draft_tokens.clone());
        let help = "Guessed tokens that the answer then had";
        r.register("draft_tokens_accepted", help, self.draft_tokens_accepted.clone());
        r.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        r.register("requests", "Answered requests by route and code", self.requests.clone());
        r.register(
            "worker_ready",
            "Whether a worker has the model loaded: 0 or 1",
            self.worker_ready.clone(),
        );
        r.register("worker_starts", "Worker processes started", self.worker_starts.clone());
        r.register("jobs_resumed", "Jobs taken up again on another worker", self.jobs_resumed.clone());
        r.register("worker_exits", "Worker processes ended, by reason", self.worker_exits.clone());
        let help = "Time that the last load of the model took";
        r.register_with_unit("model_load", help, Unit::Seconds, self.model_load_seconds.clone());
        let help = "Prompts put into files and read from them, by action and outcome";
        r.register("saved_prompts", help, self.saved_prompts.clone());
        let help = "Schemas and conversations given to sandbox processes, by kind and outcome";
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

    /// All figures in the OpenMetrics text format.
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
    fn several_devices_are_told_apart_by_a_label() {
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
    fn what_was_counted_is_rendered_under_the_conventional_names() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&Outcome { route: "/v1/completions", code: "ok" }).inc();
        metrics.queue_wait.get_or_create(&Waiter { priority: "batch" }).observe(0.25);
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
