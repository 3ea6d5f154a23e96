//! The one table from error to status.
//!
//! Statuses and codes are decided by the variants below and by nothing else: never by what a message says. Bodies have
//! OpenAI's shape, `{"error": {"message", "type", "code", "param"}}`, so that existing clients show them. `code` is
//! what a program may rely on; messages may change.

use std::time::Duration;

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    http::{StatusCode, header},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::field_error::FieldError;
use crate::{
    constraint::ConstraintError,
    executor::SubmitError,
    job::Failure,
    sandbox::SandboxError,
    text::TextError,
    units::{Bytes, Tokens},
};

/// When to come back, where nothing better is known.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// When to come back to workers that nobody will start again without looking.
const LATER: Duration = Duration::from_secs(60);

/// A model that is not served because its files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// What requests call it.
    pub id: String,
    /// What is wrong, for clients: without paths of this machine.
    pub reason: String,
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the request is not HTTP: {problem}")]
    NotHttp { problem: String },
    #[error("the head of the request did not arrive within {} s", limit.as_secs())]
    HeadTooSlow { limit: Duration },
    #[error("the head of the request is larger than 128 KiB or has more than 96 lines; send fewer headers")]
    HeadTooLarge,
    #[error("nothing is served under {path}; GET / lists what is")]
    NotFound { path: String },
    #[error("this path takes {allow} only")]
    MethodNotAllowed { allow: &'static str },
    #[error("the body is larger than {limit}, the limit of this server (server.body_limit_bytes)")]
    BodyTooLarge { limit: Bytes },
    #[error(
        "the bodies of other requests hold all of the {limit} that server.body_memory_bytes allows; retry later, or send a \
         smaller body"
    )]
    BodyMemoryFull { limit: Bytes },
    #[error(
        "expected Content-Type application/json, {}; with curl, add -H 'Content-Type: application/json'",
        found.as_deref().map_or("found none".into(), |found| format!("found {found:?}"))
    )]
    NotJsonType { found: Option<String> },
    #[error("Content-Encoding {found:?} is not supported; send gzip or identity")]
    EncodingUnsupported { found: String },
    #[error("the body is not valid gzip, though its Content-Encoding says so: {message}")]
    NotGzip { message: String },
    #[error(
        "this server does not answer to the name {host:?}; call it by its address or as localhost, or add the name to \
         server.hosts"
    )]
    HostNotAllowed { host: String },
    #[error("the body did not arrive within {} s", limit.as_secs())]
    BodyTooSlow { limit: Duration },
    #[error("the body could not be read: {why}")]
    BodyBroken { why: &'static str },
    #[error("the body is not JSON: {message}")]
    NotJson { message: String },
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("there is no saved prompt {name:?} here; GET /admin/cache lists those that there are")]
    SavedPromptNotFound { name: String },
    #[error("there is no model {asked:?} here; this server serves {served}")]
    ModelNotFound { asked: String, served: String },
    #[error("model {:?} is not available: {}", .0.id, .0.reason)]
    ModelUnavailable(Unavailable),
    #[error(
        "admin endpoints accept local requests only, not through a proxy and not from web pages of other origins; or use an \
         admin key"
    )]
    NotFromHere,
    #[error("this server wants an API key: send `Authorization: Bearer KEY` or `X-Api-Key: KEY`")]
    NoKey,
    #[error("this API key is not known here; ask whoever runs the server for one")]
    WrongKey,
    #[error("this path is for whoever runs the server: send a key that has `admin = true` in auth.keys_file")]
    NotAdmin,
    #[error("this API key may not use model {model:?}; it may use {allowed}")]
    ModelNotAllowed { model: String, allowed: String },
    #[error("requests from web pages of this origin are not allowed; add the origin to cors.origins")]
    OriginNotAllowed,
    #[error("{whose} has used up its {limit} {what} a minute; the next is free in {} s", whole_seconds(*wait))]
    RateLimited { whose: &'static str, what: &'static str, limit: u32, wait: Duration },
    #[error("the prompt is empty; a model continues at least one token")]
    EmptyPrompt,
    // OpenAI's words: LiteLLM, LangChain and others know by "maximum context length is" when to shorten a conversation or to
    // ask a model with more room.
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
    #[error("an internal task failed: {message}")]
    Internal { message: String },
}

impl ApiError {
    /// The table.
    fn row(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::NotHttp { .. } => (S::BAD_REQUEST, "malformed_http"),
            Self::HeadTooSlow { .. } => (S::REQUEST_TIMEOUT, "head_too_slow"),
            Self::HeadTooLarge => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::NotFound { .. } => (S::NOT_FOUND, "not_found"),
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
            Self::ModelNotFound { .. } => (S::NOT_FOUND, "model_not_found"),
            Self::ModelUnavailable(_) => (S::SERVICE_UNAVAILABLE, "model_unavailable"),
            Self::NotFromHere => (S::FORBIDDEN, "not_from_here"),
            Self::NoKey | Self::WrongKey => (S::UNAUTHORIZED, "invalid_api_key"),
            Self::NotAdmin => (S::FORBIDDEN, "admin_key_required"),
            Self::ModelNotAllowed { .. } => (S::FORBIDDEN, "model_not_allowed"),
            Self::OriginNotAllowed => (S::FORBIDDEN, "origin_not_allowed"),
            Self::RateLimited { .. } => (S::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            Self::EmptyPrompt => (S::BAD_REQUEST, "empty_prompt"),
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

    /// The stable code.
    pub(crate) fn code(&self) -> &'static str {
        self.row().1
    }

    /// The request's field that is at fault, if one is.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Field(field) => Some(field.param()),
            Self::ModelNotFound { .. } | Self::ModelUnavailable(_) | Self::ModelNotAllowed { .. } => {
                Some("model")
            }
            Self::EmptyPrompt => Some("prompt"),
            Self::SavedPromptNotFound { .. } | Self::Failure(Failure::SavedPrompt { .. }) => Some("name"),
            Self::Constraint { param, .. } => Some(param),
            Self::Text(TextError::NoTable | TextError::TooLong { .. } | TextError::Encode { .. }) => None,
            Self::Text(TextError::TemplateUnsupported { .. }) => Some("messages"),
            Self::Text(TextError::NoTools { .. }) => Some("tools"),
            Self::Text(text) if text.is_the_clients() => Some("messages"),
            _ => None,
        }
    }

    /// When the same request may succeed.
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

    /// What the client is told. What files, libraries and processes say may name paths of this machine and is for the log.
    fn message(&self) -> String {
        match self.public() {
            Some(public) => format!("{public}; the log of the server says why"),
            None => shortened(self.to_string()),
        }
    }

    /// What the log says besides, if the client was not told everything.
    pub(crate) fn detail(&self) -> Option<String> {
        self.public().is_some().then(|| self.to_string())
    }

    /// What may be told of errors that others worded.
    fn public(&self) -> Option<String> {
        let told = match self {
            Self::Text(text) if text.names_a_file() => "the model's files cannot be used".into(),
            Self::WorkerDown { retry_in: Some(_), .. }
            | Self::Failure(Failure::NoWorker { retry_in: Some(_), .. }) => {
                "no worker is running; the next one is being started".into()
            }
            Self::WorkerDown { retry_in: None, .. }
            | Self::Failure(Failure::NoWorker { retry_in: None, .. }) => {
                "no worker is running, and none will be started".into()
            }
            Self::Failure(Failure::Model { model, .. }) => format!("model {model} cannot be loaded"),
            Self::Failure(Failure::Device { .. }) => "the device failed".into(),
            Self::Failure(Failure::OutOfMemory { .. }) => {
                "the device has no room for this request; shorten the prompt or ask for fewer new tokens"
                    .into()
            }
            Self::Failure(Failure::SavedFile { name, .. }) => {
                format!("the file of saved prompt {name:?} cannot be written or read")
            }
            Self::Failure(Failure::WorkerLost { .. }) => "the worker process was lost".into(),
            Self::Sandbox(SandboxError::Unavailable { .. }) => {
                "schemas and conversations cannot be prepared now; retry later, or send a plain `prompt`"
                    .into()
            }
            Self::Internal { .. } => "an internal task failed".into(),
            _ => return None,
        };
        Some(told)
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
        ErrorBody { error: ErrorDetails { message: self.message(), kind, code, param } }
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
        match self {
            Self::MethodNotAllowed { allow } => {
                response.insert_header((header::ALLOW, *allow));
            }
            Self::EncodingUnsupported { .. } => {
                response.insert_header((header::ACCEPT_ENCODING, "gzip, identity"));
            }
            Self::NoKey => {
                response.insert_header((header::WWW_AUTHENTICATE, r#"Bearer realm="eka""#));
            }
            Self::WrongKey => {
                let challenge = r#"Bearer realm="eka", error="invalid_token""#;
                response.insert_header((header::WWW_AUTHENTICATE, challenge));
            }
            _ => {}
        }
        response.json(self.body())
    }
}

fn text_row(error: &TextError) -> (StatusCode, &'static str) {
    match error {
        TextError::NoTemplate { .. } => (StatusCode::BAD_REQUEST, "no_chat_template"),
        TextError::NoTools { .. } => (StatusCode::BAD_REQUEST, "tools_unsupported"),
        TextError::NoTable => (StatusCode::BAD_REQUEST, "constraint_unsupported"),
        TextError::Messages { .. } => (StatusCode::BAD_REQUEST, "messages_refused"),
        TextError::TooLong { .. } => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
        TextError::Template { .. } => (StatusCode::BAD_REQUEST, "chat_template_failed"),
        TextError::TemplateSteps { .. } | TextError::TemplateLimit { .. } => {
            (StatusCode::BAD_REQUEST, "chat_template_limit")
        }
        TextError::TemplateUnsupported { .. } => (StatusCode::NOT_IMPLEMENTED, "chat_template_unsupported"),
        TextError::Encode { .. } => (StatusCode::BAD_REQUEST, "not_encodable"),
        TextError::Manifest(_)
        | TextError::Read { .. }
        | TextError::Json { .. }
        | TextError::Tokenizer { .. }
        | TextError::TemplateFile { .. } => (StatusCode::SERVICE_UNAVAILABLE, "model_files"),
    }
}

fn failure_row(failure: &Failure) -> (StatusCode, &'static str) {
    match failure {
        Failure::Context { .. } => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
        Failure::UnknownToken { .. } => (StatusCode::BAD_REQUEST, "unknown_token"),
        Failure::Model { .. } => (StatusCode::SERVICE_UNAVAILABLE, "model_load_failed"),
        Failure::NoNumber { .. } => (StatusCode::SERVICE_UNAVAILABLE, "model_damaged"),
        Failure::Constraint { .. } => (StatusCode::BAD_REQUEST, "constraint_failed"),
        Failure::Device { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "device_error"),
        // Not one of 5xx: clients send those again by themselves, and the same request needs as much the next time.
        Failure::OutOfMemory { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "out_of_memory"),
        Failure::SavedPrompt { .. } => (StatusCode::CONFLICT, "saved_prompt_unusable"),
        Failure::SavedFile { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "saved_prompt_failed"),
        Failure::WorkerLost { .. } => (StatusCode::BAD_GATEWAY, "worker_lost"),
        Failure::NoWorker { .. } => (StatusCode::SERVICE_UNAVAILABLE, "worker_down"),
        Failure::QueueTimeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "queue_timeout"),
        Failure::Deadline { .. } => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
        Failure::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
    }
}

/// An error repeats what was sent, which may be megabytes.
fn shortened(mut text: String) -> String {
    const MOST: usize = 2_000;
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.push('…');
    }
    text
}

/// Rounded up, for a client that comes back too early is refused again.
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
    fn what_the_client_can_mend_is_never_a_server_error() {
        let prompt = Tokens(9);
        let mendable: [ApiError; 4] = [
            ApiError::EmptyPrompt,
            TextError::NoTemplate { id: "base".into() }.into(),
            Failure::Context { prompt, max_new: prompt, capacity: prompt }.into(),
            Failure::UnknownToken { id: 9, vocabulary: 4 }.into(),
        ];
        for error in mendable {
            assert!(error.status_code().is_client_error(), "{error}");
            assert_eq!(error.body().error.kind, "invalid_request_error");
        }
    }

    #[test]
    fn whoever_should_come_back_is_told_when() {
        let down =
            ApiError::WorkerDown { reason: "it fell".into(), retry_in: Some(Duration::from_millis(2_500)) };
        let response = down.error_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers().get("retry-after").unwrap(), "3");
    }
}
