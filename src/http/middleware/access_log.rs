//! What is known of a request while it is answered, and what is counted and logged of it in the end.
//!
//! Everybody who works on a request holds a [`RequestRecord`] of it; when the last one lets go, the request is counted, logged
//! and its tokens are taken from its key. A client that leaves drops whatever was being made for it, and the tallies with
//! it: that nothing was settled by then is what `client_gone` means. Requests that generate or were turned away are
//! logged at `info`; all others, which are mostly probes, at `debug`. Never what was said, and never a key.

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
        connections::{During, Place},
        error::ApiError,
        routes::{ROUTES, RouteLine, line},
    },
    job::TraceLink,
    metrics::{Metrics, Outcome},
    otel::RequestSpan,
    units::Millis,
};

/// Paths that are no route: one label for all, or anybody could make the metrics grow.
static OTHER: RouteLine = line("", "other", "");

/// The status of requests that nobody waited for, by nginx's example; never sent.
const CLIENT_GONE: u16 = 499;

/// A request that is being answered.
#[derive(Clone)]
pub(crate) struct RequestRecord(Rc<Visit>);

struct Visit {
    metrics: Arc<Metrics>,
    route: &'static RouteLine,
    method: Method,
    peer: Option<IpAddr>,
    id: RequestId,
    begun: Instant,
    /// Keeps the connection from being closed for a new one while the answer is due.
    _answer: Option<During>,
    key: OnceCell<Arc<Key>>,
    /// Where it is traced.
    span: RefCell<Option<RequestSpan>>,
    told: RefCell<Told>,
}

/// How it went.
struct Told {
    code: &'static str,
    status: Option<StatusCode>,
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
    /// Why its answers are complete, one for each that is.
    reasons: Vec<&'static str>,
    /// What the log may know and the client may not.
    detail: Option<String>,
}

impl RequestRecord {
    pub(crate) fn new(request: &ServiceRequest, metrics: Arc<Metrics>) -> Self {
        let told = Told {
            code: "client_gone",
            status: None,
            prompt_tokens: None,
            completion_tokens: None,
            reasons: Vec::new(),
            detail: None,
        };
        let route = route_of(request.path());
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let is_traced = route.method == "POST" && request.method() == Method::POST;
        let span = is_traced.then(|| RequestSpan::begin(route.path, header)).flatten();
        Self(Rc::new(Visit {
            metrics,
            route,
            span: RefCell::new(span),
            method: request.method().clone(),
            peer: request.peer_addr().map(|peer| peer.ip()),
            id: RequestId::of(request.headers()),
            begun: Instant::now(),
            _answer: request.conn_data::<Place>().map(Place::answer),
            key: OnceCell::new(),
            told: RefCell::new(told),
        }))
    }

    /// That of a request on its way.
    pub(crate) fn of(request: &impl HttpMessage) -> Option<Self> {
        request.extensions().get::<Self>().cloned()
    }

    /// Takes it from the request: whoever has it settles it.
    pub(crate) fn take(request: &impl HttpMessage) -> Option<Self> {
        request.extensions_mut().remove::<Self>()
    }

    /// The answer begins with this status.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.0.told.borrow_mut().status = Some(status);
    }

    /// The request was answered.
    pub(crate) fn settle(&self) {
        self.0.told.borrow_mut().code = "ok";
    }

    /// The request failed.
    pub(crate) fn settle_failed(&self, error: &ApiError) {
        let mut told = self.0.told.borrow_mut();
        told.code = error.code();
        told.detail = error.detail();
    }

    /// So much was generated for it. A request of several answers has one prompt.
    pub(crate) fn add_tokens(&self, prompt: usize, completion: usize) {
        let mut told = self.0.told.borrow_mut();
        told.prompt_tokens = Some(prompt);
        *told.completion_tokens.get_or_insert(0) += completion;
    }

    /// Where the spans of its jobs hang, if it is traced.
    pub(crate) fn trace(&self) -> Option<TraceLink> {
        self.0.span.borrow().as_ref().map(RequestSpan::link)
    }

    /// Tells its trace, if there is one, what it asks for and how its answer ends.
    pub(crate) fn tell_trace(&self, tell: impl FnOnce(&mut RequestSpan)) {
        self.0.span.borrow_mut().as_mut().map(tell);
    }

    /// An answer of it is complete.
    pub(crate) fn completed(&self, reason: &'static str) {
        self.0.told.borrow_mut().reasons.push(reason);
    }

    /// Whoever asks has shown this key.
    pub(crate) fn belongs_to(&self, key: &Arc<Key>) {
        // Access is checked once.
        let _ = self.0.key.set(Arc::clone(key));
    }

    pub(crate) fn key(&self) -> Option<&Arc<Key>> {
        self.0.key.get()
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.0.id
    }

    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.0.peer
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let told = self.told.get_mut();
        let outcome = Outcome { route: self.route.path, code: told.code };
        self.metrics.requests.get_or_create(&outcome).inc();
        let tokens = told.prompt_tokens.unwrap_or(0) + told.completion_tokens.unwrap_or(0);
        if let Some(key) = self.key.get() {
            key.spend_tokens(u32::try_from(tokens).unwrap_or(u32::MAX), Instant::now());
        }
        self.log();
        self.end_span();
    }
}

impl Visit {
    fn log(&self) {
        let told = self.told.borrow();
        // A macro, because a level is part of what is made once for each place in the code.
        macro_rules! say {
            ($say:ident) => {
                tracing::$say!(
                    request_id = self.id.as_str(),
                    method = self.method.as_str(),
                    route = self.route.path,
                    status = told.status.map_or(CLIENT_GONE, |status| status.as_u16()),
                    code = told.code,
                    took_ms = Millis::from(self.begun.elapsed()).0,
                    tokens_in = told.prompt_tokens,
                    tokens_out = told.completion_tokens,
                    key = self.key.get().map(|key| key.name()),
                    peer = self.peer.map(tracing::field::display),
                    detail = told.detail.as_deref(),
                    "request"
                )
            };
        }
        if self.route.method == "POST" || told.status.is_some_and(is_refusal) {
            say!(info);
        } else {
            say!(debug);
        }
    }
}

impl Visit {
    /// The request's span ends with what became of it.
    fn end_span(&mut self) {
        let (Some(mut span), told) = (self.span.take(), self.told.get_mut()) else { return };
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some(status) = told.status {
            span.tell("http.response.status_code", i64::from(status.as_u16()));
        }
        if let (Some(prompt), Some(completion)) = (told.prompt_tokens, told.completion_tokens) {
            span.tell("gen_ai.usage.input_tokens", whole(prompt));
            span.tell("gen_ai.usage.output_tokens", whole(completion));
        }
        if !told.reasons.is_empty() {
            span.tell_all("gen_ai.response.finish_reasons", &told.reasons);
        }
        if told.code != "ok" {
            let is_fault =
                told.status.is_none_or(|status| !status.is_client_error()) && told.code != "client_gone";
            span.fail(told.code, is_fault);
        }
        span.tell("eka.request.id", self.id.as_str().to_owned());
    }
}

/// Counts and logs a request of which no more is known than that it was refused; where nothing was sent at all, which is what
/// browsers' spare connections look like, there was none.
pub(crate) fn refused_unread(
    metrics: &Metrics,
    peer: Option<SocketAddr>,
    id: &RequestId,
    error: &ApiError,
    was_sent: bool,
) {
    if !was_sent {
        return;
    }
    metrics.requests.get_or_create(&Outcome { route: OTHER.path, code: error.code() }).inc();
    tracing::info!(
        request_id = id.as_str(),
        route = OTHER.path,
        status = error.status_code().as_u16(),
        code = error.code(),
        peer = peer.map(|peer| tracing::field::display(peer.ip())),
        "request"
    );
}

/// Somebody was turned away.
fn is_refusal(status: StatusCode) -> bool {
    [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

fn route_of(path: &str) -> &'static RouteLine {
    let is = |route: &str| match route.split_once('{') {
        Some((prefix, rest)) => {
            let suffix = rest.split_once('}').map_or("", |(_, suffix)| suffix);
            path.starts_with(prefix) && path.ends_with(suffix)
        }
        None => path == route,
    };
    ROUTES.iter().find(|route| is(route.path)).unwrap_or(&OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_labels_and_everything_else_has_one() {
        assert_eq!(route_of("/v1/completions").path, "/v1/completions");
        assert_eq!(route_of("/v1/models").path, "/v1/models");
        assert_eq!(route_of("/v1/models/demo").path, "/v1/models/{id}");
        assert_eq!(route_of("/admin/models/demo/unload").path, "/admin/models/{id}/unload");
        assert_eq!(route_of("/v1/completions/../secret").path, "other");
        assert_eq!(route_of("/wp-login.php").path, "other");
    }
}
