//! The way to the collector: a bounded queue, a thread of its own that sends what is in it, and a count of what is lost.
//!
//! A request never waits for the collector: what finds the queue full, and what the collector does not take, is lost and
//! counted. The log says once that it is so, and once that it is over.

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

use super::TRACER;
use crate::{metrics::Metrics, units::Ratio};

/// Spans that wait to be sent: of some three hundred requests.
const MOST_WAITING: usize = 2048;

/// Spans in one message.
const BATCH: usize = 512;

/// Between two messages.
const SEND_EVERY: Duration = Duration::from_secs(1);

/// How long the collector may take for a message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Options {
    /// The URL that takes them, by OTLP over HTTP.
    pub endpoint: String,
    /// How many of the requests are traced whose clients do not say.
    pub sample_ratio: Ratio,
    /// What the spans call this server.
    pub service_name: String,
}

/// The collector that this process sends its spans to.
#[derive(Debug)]
pub struct Collector(SdkTracerProvider);

impl Collector {
    /// Begins to send; there is one for the process, and a second one changes nothing. The collector need not be there.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn start(options: Options, metrics: Arc<Metrics>) -> Result<Self, ExporterBuildError> {
        let sender = opentelemetry_otlp::SpanExporter::builder().with_http();
        let sender = sender.with_endpoint(options.endpoint).with_timeout(PATIENCE);
        let sender = sender.with_protocol(Protocol::HttpBinary).build()?;
        let books =
            Arc::new(SpanCounts { waiting: AtomicUsize::new(0), is_away: AtomicBool::new(false), metrics });
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(SEND_EVERY)
            .build();
        let sender = Counted { inner: sender, books: Arc::clone(&books) };
        let batches = BatchSpanProcessor::builder(sender).with_batch_config(batch).build();
        let sampler = Sampler::TraceIdRatioBased(options.sample_ratio.get());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(options.service_name).with_attribute(version);
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_span_processor(Bounded { inner: batches, books })
            .build();
        let _ = TRACER.set(provider.tracer("eka"));
        Ok(Self(provider))
    }

    /// Sends what is left, for as long as `patience`.
    pub fn finish(self, patience: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(patience) {
            tracing::warn!("the last spans did not reach the collector: {error}");
        }
    }
}

/// What is on its way, and what is lost.
#[derive(Debug)]
struct SpanCounts {
    waiting: AtomicUsize,
    /// The last message did not reach the collector.
    is_away: AtomicBool,
    metrics: Arc<Metrics>,
}

impl SpanCounts {
    fn lost(&self, spans: usize) {
        self.metrics.trace_spans_dropped.inc_by(spans as u64);
    }

    fn sent(&self, spans: usize, outcome: &OTelSdkResult) {
        if let Err(error) = outcome {
            self.lost(spans);
            if !self.is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    event = "trace_export_failed",
                    "trace export failed, spans are dropped and counted in eka_trace_spans_dropped_total: {error}"
                );
            }
        } else if self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!(event = "trace_export_recovered", "trace export works again");
        }
    }
}

/// Takes no more spans than there is room for, so that those which are lost can be counted.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    books: Arc<SpanCounts>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.books.waiting.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            self.books.waiting.fetch_sub(1, Ordering::Relaxed);
            self.books.lost(1);
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

/// Sends spans, and counts those that do not arrive.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    books: Arc<SpanCounts>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let outcome = self.inner.export(batch).await;
        self.books.waiting.fetch_sub(spans, Ordering::Relaxed);
        self.books.sent(spans, &outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> Result<(), OTelSdkError> {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
