//! All errors of the HTTP API, and the table that maps them to statuses and codes.
//!
//! Bodies have OpenAI's shape, `{"error": {"message", "type", "code", "param"}}`, which existing clients display. Codes are
//! stable; messages may change.

use std::time::Duration;

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    http::{
        StatusCode,
        header::{self, HeaderName},
    },
};
use serde::Serialize;
use utoipa::ToSchema;

use super::field_error::FieldError;
use crate::{
    constraint::ConstraintError,
    executor::SubmitError,
    job::{Failure, Readiness},
    sandbox::SandboxError,
    text::TextError,
    units::{Bytes, Tokens},
};

/// Default of `Retry-After`.
const SOON: Duration = Duration::from_secs(5);

/// `Retry-After` when no worker will be restarted automatically.
const LATER: Duration = Duration::from_secs(60);

/// A model that is not served because its files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// The id of the model.
    pub id: String,
    /// The reason, for clients: without file paths.
    pub reason: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the request is not HTTP: {problem}")]
    NotHttp { problem: String },
    #[error("this is plain HTTP, but the port expects TLS; use https:// instead of http://")]
    PlainHttp,
    #[error("the request head did not arrive within {} s", limit.as_secs())]
    HeadTooSlow { limit: Duration },
    #[error("the request head is larger than 128 KiB or has more than 96 headers; send fewer headers")]
    HeadTooLarge,
    #[error("no route for {path}; GET / lists all routes")]
    NotFound { path: String },
    #[error("{what} is not supported by eka; {instead}")]
    NotImplemented { what: &'static str, instead: &'static str },
    #[error("method not allowed; this path allows {allow}")]
    MethodNotAllowed { allow: &'static str },
    #[error("the request body is larger than {limit} (server.body_limit_bytes)")]
    BodyTooLarge { limit: Bytes },
    #[error(
        "the request bodies of other clients use all {limit} of server.body_memory_bytes; retry later, or send a smaller body"
    )]
    BodyMemoryFull { limit: Bytes },
    #[error(
        "expected Content-Type application/json, {}; with curl, add -H 'Content-Type: application/json'",
        found.as_deref().map_or("found none".into(), |found| format!("found {found:?}"))
    )]
    NotJsonType { found: Option<String> },
    #[error("Content-Encoding {found:?} is not supported; send gzip or identity")]
    EncodingUnsupported { found: String },
    #[error("Content-Encoding is gzip, but the body is not valid gzip: {message}")]
    NotGzip { message: String },
    #[error(
        "host {host:?} is not allowed; use the server's IP address or localhost, or add the name to server.hosts"
    )]
    HostNotAllowed { host: String },
    #[error("the request body did not arrive within {} s", limit.as_secs())]
    BodyTooSlow { limit: Duration },
    #[error("cannot read the request body: {why}")]
    BodyBroken { why: &'static str },
    #[error("the request body is not valid JSON: {message}")]
    NotJson { message: String },
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("no saved prompt {name:?}; GET /admin/cache lists all")]
    SavedPromptNotFound { name: String },
    #[error(
        "no response {id:?} is stored, or no longer; responses are stored if server.stored_responses_bytes is set"
    )]
    ResponseNotFound { id: String },
    #[error("no stream {id:?} can be resumed here: {}", of_stream(*window))]
    StreamNotFound { id: String, window: Duration },
    #[error(
        "the events after {after} were dropped; the first kept event has the number {first}. Send the request again, or \
         raise server.resume_bytes"
    )]
    StreamEventsDropped { after: u64, first: u64 },
    #[error(
        "the stream was ended, because its client was away and its events took too much memory (server.resume_bytes); send the \
         request again"
    )]
    StreamTooLong,
    #[error("no node {name:?} reports to this gateway; GET /v1/slot lists all nodes")]
    NodeNotFound { name: String },
    #[error("no model {asked:?}; available models: {served}")]
    ModelNotFound { asked: String, served: String },
    #[error("model {model:?} has no adapter {asked:?}; {}", of_model(served))]
    AdapterNotFound { model: String, asked: String, served: String },
    #[error("model {:?} is not available: {}", .0.id, .0.reason)]
    ModelUnavailable(Unavailable),
    #[error(
        "admin endpoints accept local requests only, not through a proxy and not from web pages of other origins; or use an \
         admin key"
    )]
    NotFromHere,
    #[error("missing API key; send `Authorization: Bearer KEY` or `X-Api-Key: KEY`")]
    NoKey,
    #[error("invalid API key; ask the server's operator for a valid one")]
    WrongKey,
    #[error("admin endpoints require a key with `admin = true` in auth.keys_file")]
    NotAdmin,
    #[error("this API key may not use model {model:?}; it may use {allowed}")]
    ModelNotAllowed { model: String, allowed: String },
    #[error("requests from web pages of this origin are not allowed; add the origin to cors.origins")]
    OriginNotAllowed,
    #[error("rate limit of {whose} exceeded ({limit} {what} per minute); retry in {} s", whole_seconds(*wait))]
    RateLimited { whose: &'static str, what: &'static str, limit: u32, wait: Duration },
    // OpenAI's wording: LiteLLM, LangChain and others look for "maximum context length is" to shorten a conversation or to
    // choose another model.
    #[error(
        "This model's maximum context length is {capacity}. However, your messages resulted in {prompt}, which leaves no \
         room for an answer. Please reduce the length of the messages."
    )]
    NoRoom { prompt: Tokens, capacity: Tokens },
    #[error("{param} {source}")]
    Constraint { param: String, source: ConstraintError },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error("the model is being loaded")]
    Loading,
    #[error("no worker is running: {reason}")]
    WorkerDown { reason: String, retry_in: Option<Duration> },
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("internal error: {message}")]
    Internal { message: String },
}

impl ApiError {
    /// The status and the code of each error.
    fn row(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::NotHttp { .. } => (S::BAD_REQUEST, "malformed_http"),
            Self::PlainHttp => (S::BAD_REQUEST, "tls_required"),
            Self::HeadTooSlow { .. } => (S::REQUEST_TIMEOUT, "head_too_slow"),
            Self::HeadTooLarge => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::NotFound { .. } => (S::NOT_FOUND, "not_found"),
            Self::NotImplemented { .. } => (S::NOT_IMPLEMENTED, "not_implemented"),
            Self::MethodNotAllowed { .. } => (S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::BodyTooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyMemoryFull { .. } => (S::SERVICE_UNAVAILABLE, "body_memory_full"),
            Self::NotJsonType { .. } => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::EncodingUnsupported { .. } => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding"),
            Self::NotGzip { .. } => (S::BAD_REQUEST, "invalid_gzip"),
            Self::HostNotAllowed { .. } => (S::FORBIDDEN, "host_not_allowed"),
            Self::BodyTooSlow { .. } => (S::REQUEST_TIMEOUT, "body_too_slow"),
            Self::BodyBroken { .. } => (S::BAD_REQUEST, "body_broken"),
            Self::NotJson { .. } => (S::BAD_REQUEST, "invalid_json"),
            Self::Field(field) => (S::BAD_REQUEST, field.code()),
            Self::SavedPromptNotFound { .. } => (S::NOT_FOUND, "saved_prompt_not_found"),
            Self::ResponseNotFound { .. } => (S::NOT_FOUND, "response_not_found"),
            Self::StreamNotFound { .. } => (S::NOT_FOUND, "stream_not_found"),
            Self::StreamEventsDropped { .. } => (S::GONE, "stream_events_dropped"),
            Self::StreamTooLong => (S::INSUFFICIENT_STORAGE, "stream_too_long"),
            Self::NodeNotFound { .. } => (S::NOT_FOUND, "node_not_found"),
            Self::ModelNotFound { .. } => (S::NOT_FOUND, "model_not_found"),
            Self::AdapterNotFound { .. } => (S::NOT_FOUND, "adapter_not_found"),
            Self::ModelUnavailable(_) => (S::SERVICE_UNAVAILABLE, "model_unavailable"),
            Self::NotFromHere => (S::FORBIDDEN, "not_from_here"),
            Self::NoKey | Self::WrongKey => (S::UNAUTHORIZED, "invalid_api_key"),
            Self::NotAdmin => (S::FORBIDDEN, "admin_key_required"),
            Self::ModelNotAllowed { .. } => (S::FORBIDDEN, "model_not_allowed"),
            Self::OriginNotAllowed => (S::FORBIDDEN, "origin_not_allowed"),
            Self::RateLimited { .. } => (S::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            Self::NoRoom { .. } => (S::BAD_REQUEST, "context_length_exceeded"),
            Self::Constraint { .. } => (S::BAD_REQUEST, "invalid_constraint"),
            Self::Sandbox(SandboxError::Busy) => (S::TOO_MANY_REQUESTS, "preparation_busy"),
            Self::Sandbox(SandboxError::Unavailable { .. }) => {
                (S::SERVICE_UNAVAILABLE, "preparation_unavailable")
            }
            Self::Text(text) => text_row(text),
            Self::Loading => (S::SERVICE_UNAVAILABLE, "not_ready"),
            Self::WorkerDown { .. } => (S::SERVICE_UNAVAILABLE, "worker_down"),
            Self::Submit(SubmitError::Busy { .. }) => (S::TOO_MANY_REQUESTS, "queue_full"),
            Self::Submit(SubmitError::Stopped) => (S::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::Failure(failure) => failure_row(failure),
            Self::Internal { .. } => (S::INTERNAL_SERVER_ERROR, "internal_error"),
        }
    }

    /// Why a server in this state is not ready; `None` if it is.
    pub(crate) fn not_ready(readiness: &Readiness) -> Option<Self> {
        let down = |reason: &String, retry_in| Self::WorkerDown { reason: reason.clone(), retry_in };
        match readiness {
            Readiness::Ready(_) => None,
            Readiness::Starting => Some(Self::Loading),
            Readiness::Restarting { reason } => Some(down(reason, Some(SOON))),
            Readiness::Down { reason, retry_in } => Some(down(reason, *retry_in)),
            Readiness::Stopping => Some(SubmitError::Stopped.into()),
        }
    }

    /// The code, which is stable.
    pub(crate) fn code(&self) -> &'static str {
        self.row().1
    }

    /// The field at fault, if any.
    pub(crate) fn param(&self) -> Option<&str> {
        match self {
            Self::Field(field) => Some(field.param()),
            Self::ModelNotFound { .. }
            | Self::AdapterNotFound { .. }
            | Self::ModelUnavailable(_)
            | Self::ModelNotAllowed { .. } => Some("model"),
            Self::SavedPromptNotFound { .. } | Self::Failure(Failure::SavedPrompt { .. }) => Some("name"),
            Self::Constraint { param, .. } => Some(param),
            Self::Text(
                TextError::ConstraintUnsupported | TextError::TooLong { .. } | TextError::Encode { .. },
            ) => None,
            Self::Text(TextError::TemplateUnsupported { .. }) => Some("messages"),
            Self::Text(text) if text.is_client_error() => Some("messages"),
            _ => None,
        }
    }

    /// When to retry the same request.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Submit(SubmitError::Busy { retry_after: wait, .. }) | Self::RateLimited { wait, .. } => {
                Some(*wait)
            }
            Self::WorkerDown { retry_in, .. } | Self::Failure(Failure::NoWorker { retry_in, .. }) => {
                Some(retry_in.unwrap_or(LATER))
            }
            Self::Loading
            | Self::BodyMemoryFull { .. }
            | Self::Sandbox(_)
            | Self::Submit(SubmitError::Stopped)
            | Self::Failure(Failure::ShuttingDown) => Some(SOON),
            _ => None,
        }
    }

    /// The header that the status requires, or that says what to send instead.
    const fn header(&self) -> Option<(HeaderName, &'static str)> {
        match self {
            Self::MethodNotAllowed { allow } => Some((header::ALLOW, allow)),
            Self::EncodingUnsupported { .. } => Some((header::ACCEPT_ENCODING, "gzip, identity")),
            Self::NoKey => Some((header::WWW_AUTHENTICATE, r#"Bearer realm="eka""#)),
            Self::WrongKey => {
                Some((header::WWW_AUTHENTICATE, r#"Bearer realm="eka", error="invalid_token""#))
            }
            _ => None,
        }
    }

    /// The message for the client. Messages of files, libraries and processes may contain paths and go to the log only.
    fn message(&self) -> String {
        match self.public() {
            Some(public) => format!("{public}; see the server's log"),
            None => shortened(self.to_string()),
        }
    }

    /// The full message for the log, if the client gets a shortened one.
    pub(crate) fn detail(&self) -> Option<String> {
        self.public().is_some().then(|| self.to_string())
    }

    /// The message for the client, if the full one is for the log only.
    fn public(&self) -> Option<String> {
        let message = match self {
            Self::Text(text) if text.names_a_file() => "the model's files cannot be used".into(),
            Self::WorkerDown { retry_in: Some(_), .. }
            | Self::Failure(Failure::NoWorker { retry_in: Some(_), .. }) => {
                "no worker is running; a new one is being started".into()
            }
            Self::WorkerDown { retry_in: None, .. }
            | Self::Failure(Failure::NoWorker { retry_in: None, .. }) => {
                "no worker is running, and it will not be restarted automatically".into()
            }
            Self::Failure(Failure::Model { model, .. }) => format!("model {model} cannot be loaded"),
            Self::Failure(Failure::Adapter { name, .. }) => format!("adapter {name:?} cannot be loaded"),
            Self::Failure(Failure::Device { .. }) => "device error".into(),
            Self::Failure(Failure::OutOfMemory { .. }) => {
                "out of device memory; shorten the prompt or request fewer tokens".into()
            }
            Self::Failure(Failure::SavedFile { name, .. }) => {
                format!("cannot read or write the file of saved prompt {name:?}")
            }
            Self::Failure(Failure::WorkerLost { .. }) => "the worker process was lost".into(),
            Self::Sandbox(SandboxError::Unavailable { .. }) => {
                "cannot compile schemas or render chat templates now; retry later, or send a plain `prompt`"
                    .into()
            }
            Self::Internal { .. } => "internal error".into(),
            _ => return None,
        };
        Some(message)
    }

    /// The body of the answer, and the last event of a stream that fails.
    pub(crate) fn body(&self) -> ErrorBody {
        let (status, code) = self.row();
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let param = self.param().map(|param| shortened(param.to_owned()));
        ErrorBody {
            error: ErrorDetails { message: self.message(), kind, code, param, status: status.as_u16() },
        }
    }
}

/// The body of an error, in OpenAI's shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorDetails,
}

/// Why a request failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetails {
    /// For people; may change.
    pub(crate) message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// For programs; does not change.
    #[schema(examples("queue_full", "invalid_value", "context_length_exceeded"))]
    pub(crate) code: &'static str,
    /// The path of the field at fault.
    #[schema(required)]
    pub(crate) param: Option<String>,
    #[serde(skip)]
    pub(crate) status: u16,
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.row().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status_code());
        if let Some(wait) = self.retry_after() {
            response.insert_header((header::RETRY_AFTER, whole_seconds(wait).to_string()));
        }
        if let Some(header) = self.header() {
            response.insert_header(header);
        }
        response.json(self.body())
    }
}

fn text_row(error: &TextError) -> (StatusCode, &'static str) {
    use StatusCode as S;
    match error {
        TextError::NoTemplate { .. } => (S::BAD_REQUEST, "no_chat_template"),
        TextError::ConstraintUnsupported => (S::BAD_REQUEST, "constraint_unsupported"),
        TextError::TemplateRefused { .. } => (S::BAD_REQUEST, "messages_refused"),
        TextError::TooLong { .. } => (S::BAD_REQUEST, "context_length_exceeded"),
        TextError::TemplateFailed { .. } => (S::BAD_REQUEST, "chat_template_failed"),
        TextError::TemplateSteps { .. } | TextError::TemplateLimit { .. } => {
            (S::BAD_REQUEST, "chat_template_limit")
        }
        TextError::TemplateUnsupported { .. } => (S::NOT_IMPLEMENTED, "chat_template_unsupported"),
        TextError::Encode { .. } => (S::BAD_REQUEST, "not_encodable"),
        TextError::Manifest(_)
        | TextError::Read { .. }
        | TextError::Json { .. }
        | TextError::Tokenizer { .. }
        | TextError::TemplateFile { .. } => (S::SERVICE_UNAVAILABLE, "model_files"),
    }
}

fn failure_row(failure: &Failure) -> (StatusCode, &'static str) {
    use StatusCode as S;
    match failure {
        Failure::Context { .. } => (S::BAD_REQUEST, "context_length_exceeded"),
        Failure::UnknownToken { .. } => (S::BAD_REQUEST, "unknown_token"),
        Failure::Model { .. } => (S::SERVICE_UNAVAILABLE, "model_load_failed"),
        Failure::Adapter { .. } => (S::SERVICE_UNAVAILABLE, "adapter_load_failed"),
        Failure::NanLogits { .. } => (S::SERVICE_UNAVAILABLE, "model_damaged"),
        Failure::NoEmbeddings => (S::NOT_IMPLEMENTED, "embeddings_unsupported"),
        Failure::Constraint { .. } => (S::BAD_REQUEST, "constraint_failed"),
        Failure::Device { .. } => (S::INTERNAL_SERVER_ERROR, "device_error"),
        // Not a 5xx: clients retry those automatically, and the same request would need as much memory again.
        Failure::OutOfMemory { .. } => (S::PAYLOAD_TOO_LARGE, "out_of_memory"),
        Failure::SavedPrompt { .. } => (S::CONFLICT, "saved_prompt_unusable"),
        Failure::SavedFile { .. } => (S::INTERNAL_SERVER_ERROR, "saved_prompt_failed"),
        Failure::WorkerLost { .. } => (S::BAD_GATEWAY, "worker_lost"),
        Failure::NoWorker { .. } => (S::SERVICE_UNAVAILABLE, "worker_down"),
        Failure::QueueTimeout { .. } => (S::GATEWAY_TIMEOUT, "queue_timeout"),
        Failure::Deadline { .. } => (S::GATEWAY_TIMEOUT, "deadline_exceeded"),
        Failure::ShuttingDown => (S::SERVICE_UNAVAILABLE, "shutting_down"),
    }
}

/// Why a stream is not found, for a message.
fn of_stream(window: Duration) -> String {
    if window.is_zero() {
        return "streams are not kept, because server.resume_ms is 0; send the request again".into();
    }
    let ms = window.as_millis();
    format!(
        "it is unknown here, or it ended or lost its client more than {ms} ms ago (server.resume_ms); send the request again"
    )
}

/// The adapters of a model, for a message.
fn of_model(served: &str) -> String {
    match served {
        "" => "it has none: `eka export-adapter` adds one".into(),
        served => format!("its adapters: {served}"),
    }
}

/// Limits the length of text that an error quotes from the request.
fn shortened(mut text: String) -> String {
    const MAX_BYTES: usize = 2_000;
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        text.push('…');
    }
    text
}

/// Rounded up: a client that retries too early is refused again.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        assert_eq!(whole_seconds(Duration::from_secs(3)), 3);
        assert_eq!(whole_seconds(Duration::from_millis(3_001)), 4);
    }

    #[test]
    fn errors_that_the_client_can_fix_are_never_server_errors() {
        let prompt = Tokens(9);
        let fixable: [ApiError; 4] = [
            FieldError::EmptyPrompt { param: "prompt".into() }.into(),
            TextError::NoTemplate { id: "base".into() }.into(),
            Failure::Context { prompt, max_new: prompt, capacity: prompt }.into(),
            Failure::UnknownToken { id: 9, vocabulary: 4 }.into(),
        ];
        for error in fixable {
            assert!(error.status_code().is_client_error(), "{error}");
            assert_eq!(error.body().error.kind, "invalid_request_error");
        }
    }

    #[test]
    fn an_error_that_may_pass_has_retry_after() {
        let down = ApiError::WorkerDown {
            reason: "it crashed".into(),
            retry_in: Some(Duration::from_millis(2_500)),
        };
        let response = down.error_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers().get("retry-after").unwrap(), "3");
    }
}
