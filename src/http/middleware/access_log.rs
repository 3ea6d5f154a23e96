//! Counts and logs every request when it is finished.
//!
//! Everything that works on a request holds a [`RequestRecord`]; when the last one is dropped, the request is counted and
//! logged, and its tokens are charged to its key. When a client disconnects, its handler or stream is dropped and the records
//! with it: a record without an outcome means `client_gone`. Generating and refused requests and unknown routes are logged at
//! `info`, all others, mostly probes, at `debug`. Prompts, answers and keys are never logged.

use std::{
    cell::{OnceCell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use actix_web::{HttpMessage, ResponseError, dev::ServiceRequest, http::Method, http::StatusCode};

use super::request_id::RequestId;
use crate::{
    auth::Key,
    http::{
        connections::{ActivityGuard, ConnectionHandle},
        error::ApiError,
        route_info::{NO_ROUTE, RouteInfo},
    },
    job::TraceLink,
    metrics::{Metrics, RequestLabels},
    otel::RequestSpan,
    units::Millis,
};

/// The logged status of requests whose client has disconnected, as in nginx; never sent.
const CLIENT_GONE: u16 = 499;

/// The record of a request while it is answered; clones share it.
#[derive(Clone)]
pub(crate) struct RequestRecord(Rc<Record>);

struct Record {
    metrics: Arc<Metrics>,
    route: &'static RouteInfo,
    method: Method,
    peer: Option<IpAddr>,
    id: RequestId,
    begun: Instant,
    /// Protects the connection from being closed for a new one.
    _answer: Option<ActivityGuard>,
    key: OnceCell<Arc<Key>>,
    /// The span, if the request is traced.
    span: RefCell<Option<RequestSpan>>,
    result: RefCell<RequestResult>,
}

/// How the request was answered.
struct RequestResult {
    code: &'static str,
    status: Option<StatusCode>,
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
    /// The finish reason of each complete choice.
    reasons: Vec<&'static str>,
    /// The field of the request at fault.
    param: Option<String>,
    /// Details for the log that clients must not see.
    detail: Option<String>,
}

/// Longest name of a field in the log, in characters: it comes from the client.
const MAX_PARAM: usize = 128;

impl RequestRecord {
    pub(crate) fn new(route: &'static RouteInfo, request: &ServiceRequest, metrics: Arc<Metrics>) -> Self {
        let result = RequestResult {
            code: "client_gone",
            status: None,
            prompt_tokens: None,
            completion_tokens: None,
            reasons: Vec::new(),
            param: None,
            detail: None,
        };
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let is_traced = route.method == Method::POST && request.method() == Method::POST;
        let span = is_traced.then(|| RequestSpan::begin(route.path, header)).flatten();
        Self(Rc::new(Record {
            metrics,
            route,
            span: RefCell::new(span),
            method: request.method().clone(),
            peer: request.peer_addr().map(|peer| peer.ip()),
            id: RequestId::of(request.headers()),
            begun: Instant::now(),
            _answer: ConnectionHandle::of(request.request()).map(|connection| connection.answer()),
            key: OnceCell::new(),
            result: RefCell::new(result),
        }))
    }

    /// The record of a request.
    pub(crate) fn of(request: &impl HttpMessage) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Takes the record from the request; the caller sets the outcome.
    pub(crate) fn take(request: &impl HttpMessage) -> Option<Self> {
        request.extensions_mut().remove::<Self>()
    }

    /// Sets the status of the answer.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.0.result.borrow_mut().status = Some(status);
    }

    /// Sets the outcome to success.
    pub(crate) fn settle(&self) {
        self.0.result.borrow_mut().code = "ok";
    }

    /// Sets the outcome to an error.
    pub(crate) fn settle_failed(&self, error: &ApiError) {
        let mut result = self.0.result.borrow_mut();
        result.code = error.code();
        result.detail = error.detail();
        result.param = error.param().map(|param| param.chars().take(MAX_PARAM).collect());
    }

    /// Adds the tokens of a choice; `prompt` is 0 if another choice of the same prompt counts them.
    pub(crate) fn add_tokens(&self, prompt: usize, completion: usize) {
        let mut result = self.0.result.borrow_mut();
        *result.prompt_tokens.get_or_insert(0) += prompt;
        *result.completion_tokens.get_or_insert(0) += completion;
    }

    /// The parent of its jobs' spans, if the request is traced.
    pub(crate) fn trace(&self) -> Option<TraceLink> {
        self.0.span.borrow().as_ref().map(RequestSpan::link)
    }

    /// Sets attributes of the span, if the request is traced.
    pub(crate) fn trace_with(&self, set: impl FnOnce(&mut RequestSpan)) {
        self.0.span.borrow_mut().as_mut().map(set);
    }

    /// Adds the finish reason of a complete choice.
    pub(crate) fn completed(&self, reason: &'static str) {
        self.0.result.borrow_mut().reasons.push(reason);
    }

    /// Records the API key of the request.
    pub(crate) fn belongs_to(&self, key: &Arc<Key>) {
        // Access is checked once.
        let _ = self.0.key.set(Arc::clone(key));
    }

    pub(crate) fn key(&self) -> Option<&Arc<Key>> {
        self.0.key.get()
    }

    pub(crate) fn route(&self) -> &'static RouteInfo {
        self.0.route
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.0.id
    }

    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.0.peer
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let result = self.result.get_mut();
        let labels = RequestLabels { route: self.route.path, code: result.code };
        self.metrics.requests.get_or_create(&labels).inc();
        let tokens = result.prompt_tokens.unwrap_or(0) + result.completion_tokens.unwrap_or(0);
        if let Some(key) = self.key.get() {
            key.spend_tokens(u32::try_from(tokens).unwrap_or(u32::MAX), Instant::now());
        }
        self.log();
        self.end_span();
    }
}

impl Record {
    fn log(&self) {
        let result = self.result.borrow();
        // A macro, because tracing wants the level at compile time.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.id.as_str(),
                    method = self.method.as_str(),
                    route = self.route.path,
                    status = result.status.map_or(CLIENT_GONE, |status| status.as_u16()),
                    code = result.code,
                    took_ms = Millis::from(self.begun.elapsed()).0,
                    tokens_in = result.prompt_tokens,
                    tokens_out = result.completion_tokens,
                    key = self.key.get().map(|key| key.name()),
                    peer = self.peer.map(tracing::field::display),
                    param = result.param.as_deref(),
                    detail = result.detail.as_deref(),
                    "request"
                )
            };
        }
        let is_unknown = result.status == Some(StatusCode::NOT_FOUND) && self.route.path == NO_ROUTE.path;
        if self.route.method == Method::POST || is_unknown || result.status.is_some_and(is_refusal) {
            log!(info);
        } else {
            log!(debug);
        }
    }

    /// Ends the request's span with its outcome.
    fn end_span(&mut self) {
        let (Some(mut span), result) = (self.span.take(), self.result.get_mut()) else { return };
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some(status) = result.status {
            span.set("http.response.status_code", i64::from(status.as_u16()));
        }
        if let (Some(prompt), Some(completion)) = (result.prompt_tokens, result.completion_tokens) {
            span.set("gen_ai.usage.input_tokens", whole(prompt));
            span.set("gen_ai.usage.output_tokens", whole(completion));
        }
        if !result.reasons.is_empty() {
            span.set_all("gen_ai.response.finish_reasons", &result.reasons);
        }
        if result.code != "ok" {
            let is_fault =
                result.status.is_none_or(|status| !status.is_client_error()) && result.code != "client_gone";
            span.fail(result.code, is_fault);
        }
        span.set("eka.request.id", self.id.as_str().to_owned());
    }
}

/// Counts and logs a request that was refused before it was parsed. Without any bytes there was no request: browsers open
/// spare connections.
pub(crate) fn log_unparsed(
    metrics: &Metrics,
    peer: Option<SocketAddr>,
    id: &RequestId,
    error: &ApiError,
    was_sent: bool,
) {
    if !was_sent {
        return;
    }
    metrics.requests.get_or_create(&RequestLabels { route: NO_ROUTE.path, code: error.code() }).inc();
    tracing::info!(
        request_id = id.as_str(),
        route = NO_ROUTE.path,
        status = error.status_code().as_u16(),
        code = error.code(),
        peer = peer.map(|peer| tracing::field::display(peer.ip())),
        "request"
    );
}

/// Whether the status means that access was refused.
fn is_refusal(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}
