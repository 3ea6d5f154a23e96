//! Export of spans: a bounded queue, a thread that sends batches, and a count of dropped spans.
//!
//! A request never waits for the collector. Spans that find the queue full, and batches that the collector does not accept, are
//! dropped and counted. The log reports the first failed export and the first one that works again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter,
        SpanProcessor,
    },
};

use super::tracer::TRACER;
use crate::{metrics::Metrics, units::Ratio};

/// Spans in the queue: those of about three hundred requests.
const MAX_WAITING: usize = 2048;

/// Spans per batch.
const BATCH: usize = 512;

/// Time between two batches.
const SEND_EVERY: Duration = Duration::from_secs(1);

/// Time limit of an export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the export.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of the collector, for OTLP over HTTP.
    pub endpoint: String,
    /// Share of requests to trace if the client does not decide.
    pub sample_ratio: Ratio,
    /// Service name in the spans.
    pub service_name: String,
}

/// The connection of this process to its collector.
#[derive(Debug)]
pub struct Collector(SdkTracerProvider);

impl Collector {
    /// Starts the export for the whole process; a second call has no effect. The collector does not have to be running.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn start(options: Options, metrics: Arc<Metrics>) -> Result<Self, ExporterBuildError> {
        let sender = opentelemetry_otlp::SpanExporter::builder().with_http();
        let sender = sender.with_endpoint(options.endpoint).with_timeout(EXPORT_TIMEOUT);
        let sender = sender.with_protocol(Protocol::HttpBinary).build()?;
        let counts = Arc::new(SpanCounts {
            waiting: AtomicUsize::new(0),
            is_failing: AtomicBool::new(false),
            metrics,
        });
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(SEND_EVERY)
            .build();
        let sender = Counted { inner: sender, counts: Arc::clone(&counts) };
        let batches = BatchSpanProcessor::builder(sender).with_batch_config(batch).build();
        let sampler = Sampler::TraceIdRatioBased(options.sample_ratio.get());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(options.service_name).with_attribute(version);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_span_processor(Bounded { inner: batches, counts })
            .build();
        let _ = TRACER.set(provider.tracer("eka"));
        Ok(Self(provider))
    }

    /// Sends the remaining spans, for at most `patience`.
    pub fn finish(self, patience: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(patience) {
            tracing::warn!("cannot export the last spans: {error}");
        }
    }
}

/// Counts waiting and dropped spans.
#[derive(Debug)]
struct SpanCounts {
    waiting: AtomicUsize,
    /// The last export failed.
    is_failing: AtomicBool,
    metrics: Arc<Metrics>,
}

impl SpanCounts {
    fn lost(&self, spans: usize) {
        self.metrics.trace_spans_dropped.inc_by(spans as u64);
    }

    fn sent(&self, spans: usize, outcome: &OTelSdkResult) {
        if let Err(error) = outcome {
            self.lost(spans);
            if !self.is_failing.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    event = "trace_export_failed",
                    "trace export failed, spans are dropped and counted in eka_trace_spans_dropped_total: {error}"
                );
            }
        } else if self.is_failing.swap(false, Ordering::Relaxed) {
            tracing::info!(event = "trace_export_recovered", "trace export works again");
        }
    }
}

/// Drops and counts spans that find the queue full.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    counts: Arc<SpanCounts>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.counts.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost(1);
        } else {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Exports spans, and counts those that fail.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    counts: Arc<SpanCounts>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let outcome = self.inner.export(batch).await;
        self.counts.waiting.fetch_sub(spans, Ordering::Relaxed);
        self.counts.sent(spans, &outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> Result<(), OTelSdkError> {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
