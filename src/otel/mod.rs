//! OpenTelemetry spans of a request: the request itself, and below it queue, load, prefill, decode and trim.
//!
//! Several modules record spans: `http` the request, `executor` the phases of its job, `supervise` the trim after the answer. A
//! [`TraceLink`] in the job connects them. All spans go to one collector.
//!
//! A span is recorded when its phase has ended, never per token. Without a collector [`RequestSpan::begin`] reads one static and
//! returns `None`, and nothing else is done. Attributes follow the semantic conventions for HTTP and generative AI; they never
//! contain prompts or answers.

mod collector;
mod tracer;

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Array, Context, KeyValue, SpanId, TraceFlags, TraceId, Value,
    propagation::{Extractor, TextMapPropagator},
    trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer as _},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::Span};

pub use self::collector::{Collector, Options};
use self::tracer::TRACER;
use crate::job::{Finish, Job, Priority, TraceLink};

/// Span of a request, from its headers to the last byte of its answer.
#[derive(Debug)]
pub struct RequestSpan(Span);

/// Gives the propagator access to the request's headers.
struct RequestHeaders<'a, F>(F, std::marker::PhantomData<&'a ()>);

impl<'a, F: Fn(&str) -> Option<&'a str>> Extractor for RequestHeaders<'a, F> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0(key)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

impl RequestSpan {
    /// Begins the span of a `POST` to `route`, below the client's span if `header` returns a `traceparent`. `None` without a
    /// collector, and for requests that are not sampled. The client decides on sampling, else the settings.
    pub fn begin<'a>(route: &'static str, header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let tracer = TRACER.get()?;
        let head = RequestHeaders(header, std::marker::PhantomData);
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &head);
        let attributes = [KeyValue::new("http.request.method", "POST"), KeyValue::new("http.route", route)];
        let span = tracer.span_builder(format!("POST {route}")).with_kind(SpanKind::Server);
        let span = span.with_attributes(attributes).start_with_context(tracer, &parent);
        span.span_context().is_sampled().then_some(Self(span))
    }

    /// The parent for spans below this one.
    #[must_use]
    pub fn link(&self) -> TraceLink {
        let context = self.0.span_context();
        TraceLink {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            state: context.trace_state().header(),
        }
    }

    /// Sets an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Sets an attribute with several values.
    pub fn set_all(&mut self, name: &'static str, values: &[&'static str]) {
        let values = values.iter().map(|value| (*value).into()).collect();
        self.0.set_attribute(KeyValue::new(name, Value::Array(Array::String(values))));
    }

    /// Sets the error code of the request. `is_fault`: the server caused it and not the client.
    pub fn fail(&mut self, code: &'static str, is_fault: bool) {
        self.set("error.type", code);
        if is_fault {
            self.0.set_status(Status::error(code));
        }
    }
}

/// Phase of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queue,
    Load,
    Prefill,
    Decode,
    Trim,
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Load => "load",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Trim => "trim",
        }
    }
}

/// Records the phases of a job as spans. Dropping it ends the current phase.
#[derive(Debug)]
pub struct JobSpans {
    link: TraceLink,
    phase: Phase,
    since: SystemTime,
    attributes: Vec<KeyValue>,
    /// Number of prompt tokens.
    prompt: usize,
    /// Number of answer tokens, once it is complete.
    written: Option<usize>,
    failed: bool,
    is_over: bool,
}

impl JobSpans {
    /// Begins the queue phase; `None` for a job that is not traced.
    #[must_use]
    pub fn begin(job: &Job, priority: Priority) -> Option<Self> {
        let link = job.trace.clone()?;
        let id = i64::try_from(job.id.0).unwrap_or(i64::MAX);
        let attributes = vec![
            KeyValue::new("eka.job.id", id),
            KeyValue::new("eka.priority", priority.as_str()),
            KeyValue::new("gen_ai.request.model", job.model.0.clone()),
        ];
        let (phase, since) = (Phase::Queue, SystemTime::now());
        let prompt = job.prompt.len();
        Some(Self { link, phase, since, attributes, prompt, written: None, failed: false, is_over: false })
    }

    /// The job has left the queue.
    pub fn started(&mut self) {
        self.enter(Phase::Prefill);
    }

    /// Its model is being loaded.
    pub fn loading(&mut self) {
        // Discards the prefill phase, because nothing was read yet.
        (self.phase, self.since) = (Phase::Load, SystemTime::now());
    }

    /// Its model is loaded.
    pub fn loaded(&mut self) {
        self.enter(Phase::Prefill);
    }

    /// The first token was generated.
    pub fn first_token(&mut self) {
        self.enter(Phase::Decode);
    }

    /// The job has ended without an error. The time after the last token was spent on freeing memory.
    pub fn ended(&mut self, finish: &Finish) {
        let now = SystemTime::now();
        let spent = match self.phase {
            Phase::Decode => finish.timings.decode,
            _ => finish.timings.prefill,
        };
        self.written = Some(finish.usage.completion_tokens);
        let until = (self.since + spent).min(now);
        self.end_phase(until);
        (self.phase, self.since) = (Phase::Trim, until);
        self.end_phase(now);
        self.is_over = true;
    }

    /// The job has failed.
    pub fn failed(&mut self) {
        self.failed = true;
    }

    fn enter(&mut self, phase: Phase) {
        let now = SystemTime::now();
        self.end_phase(now);
        (self.phase, self.since) = (phase, now);
    }

    fn end_phase(&self, until: SystemTime) {
        let status = if self.failed { Status::error("") } else { Status::Unset };
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let own = match self.phase {
            Phase::Queue | Phase::Load => None,
            Phase::Prefill => Some(KeyValue::new("gen_ai.usage.input_tokens", whole(self.prompt))),
            Phase::Decode => self.written.map(|n| KeyValue::new("gen_ai.usage.output_tokens", whole(n))),
            Phase::Trim => Some(KeyValue::new("eka.memory", "host")),
        };
        let attributes = self.attributes.iter().cloned().chain(own).collect();
        record(&self.link, self.phase, (self.since, until), attributes, status);
    }
}

impl Drop for JobSpans {
    fn drop(&mut self) {
        if !self.is_over {
            self.end_phase(SystemTime::now());
        }
    }
}

/// Records a trim of device memory that followed a job, took this long, and ended now.
pub fn trimmed(link: &TraceLink, took: Duration) {
    let now = SystemTime::now();
    let attributes = vec![KeyValue::new("eka.memory", "device")];
    record(link, Phase::Trim, (now - took, now), attributes, Status::Unset);
}

fn record(
    link: &TraceLink,
    phase: Phase,
    (from, until): (SystemTime, SystemTime),
    attributes: Vec<KeyValue>,
    status: Status,
) {
    let Some(tracer) = TRACER.get() else { return };
    let parent = Context::new().with_remote_span_context(context_of(link));
    let span = tracer.span_builder(phase.name()).with_kind(SpanKind::Internal).with_start_time(from);
    let mut span = span.with_attributes(attributes).start_with_context(tracer, &parent);
    span.set_status(status);
    span.end_with_timestamp(until.max(from));
}

fn context_of(link: &TraceLink) -> SpanContext {
    let state = link.state.parse::<TraceState>().unwrap_or_default();
    let (trace, span) = (TraceId::from_bytes(link.trace_id), SpanId::from_bytes(link.span_id));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state)
}
