//! Counters and histograms that the stages increment, rendered in the OpenMetrics text format.
//!
//! One value of [`Metrics`] lives as long as the server and is shared by all stages; incrementing never waits. Names
//! follow Prometheus' conventions: base units, `_total` on counters (added by the renderer).

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

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

/// Which process a figure is about, and which kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemoryKind {
    /// `parent` or `worker`.
    pub process: &'static str,
    /// `resident`, `anonymous` or, of the last job, `peak_resident`; with a pool, `device_used`, `device_reserved`,
    /// `device_free` and, of the last job, `device_peak_used` and `device_peak_reserved`.
    pub kind: &'static str,
}

/// What computes nodes of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Provider {
    /// ONNX Runtime's name for it.
    pub provider: String,
}

/// Why a worker process ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExitReason {
    /// `crashed`, `exited`, `load_failed`, `protocol`, `poisoned` or `shutdown`.
    pub reason: &'static str,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    /// Jobs waiting in the queue.
    pub queue_jobs: Gauge,
    /// Prompt tokens of the jobs waiting in the queue.
    pub queue_prompt_tokens: Gauge,
    /// Jobs running: 0 or 1.
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
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Answered requests by route and code.
    pub requests: Family<Outcome, Counter>,
    /// Whether a worker is up and has the model loaded: 0 or 1.
    pub worker_ready: Gauge,
    /// Worker processes started.
    pub worker_starts: Counter,
    /// Jobs taken up again on another worker.
    pub jobs_resumed: Counter,
    /// Worker processes ended, by reason.
    pub worker_exits: Family<ExitReason, Counter>,
    /// Seconds that the last load of the model took.
    pub model_load_seconds: Gauge<f64, AtomicU64>,
    /// Nodes of the loaded graphs by what computes them.
    pub graph_nodes: Family<Provider, Gauge>,
    /// Memory of the processes.
    pub memory: Family<MemoryKind, Gauge>,
    /// Spans of traces that did not reach the collector.
    pub trace_spans_dropped: Counter,
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
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
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
            generated_tokens: Counter::default(),
            requests: Family::default(),
            worker_ready: Gauge::default(),
            worker_starts: Counter::default(),
            jobs_resumed: Counter::default(),
            worker_exits: Family::default(),
            model_load_seconds: Gauge::default(),
            graph_nodes: Family::default(),
            memory: Family::default(),
            trace_spans_dropped: Counter::default(),
        }
        .registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("queue_jobs", "Jobs waiting in the queue", self.queue_jobs.clone());
        let help = "Prompt tokens of the jobs waiting in the queue";
        r.register("queue_prompt_tokens", help, self.queue_prompt_tokens.clone());
        r.register("slot_busy", "Jobs running: 0 or 1", self.slot_busy.clone());
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
        let help = "Nodes of the loaded graphs by execution provider";
        r.register("graph_nodes", help, self.graph_nodes.clone());
        let help = "Memory of the parent and the worker process";
        r.register_with_unit("memory", help, Unit::Bytes, self.memory.clone());
        let help = "Spans of traces that did not reach the collector";
        r.register("trace_spans_dropped", help, self.trace_spans_dropped.clone());
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

    #[test]
    fn what_was_counted_is_rendered_under_the_conventional_names() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&Outcome { route: "/v1/completions", code: "ok" }).inc();
        metrics.queue_wait.get_or_create(&Waiter { priority: "batch" }).observe(0.25);
        metrics.memory.get_or_create(&MemoryKind { process: "worker", kind: "resident" }).set(4096);
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
