//! Errors in the shape of each API.

use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ErrorBody, ErrorDetails};

/// The shape of a route's errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ErrorShape {
    /// `{"error": {"message", "type", "param", "code"}}`.
    #[default]
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`.
    Anthropic,
    /// `{"error": message}`.
    Ollama,
}

impl ErrorShape {
    /// The body of an error; `None` for OpenAI's shape, which errors have already.
    pub(crate) fn body(self, ErrorBody { error }: &ErrorBody) -> Option<String> {
        match self {
            Self::OpenAi => None,
            Self::Anthropic => {
                let ErrorDetails { message, code, param, status, .. } = error;
                let details = AnthropicDetails {
                    kind: anthropic_kind(*status),
                    message,
                    code,
                    param: param.as_deref(),
                };
                serde_json::to_string(&AnthropicError { kind: "error", error: details }).ok()
            }
            Self::Ollama => {
                serde_json::to_string(&OllamaError { error: &error.message, code: error.code }).ok()
            }
        }
    }
}

/// An error in Anthropic's shape.
#[derive(Serialize, ToSchema)]
pub(crate) struct AnthropicError<'a> {
    /// Always `error`.
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicDetails<'a>,
}

/// Why a request failed.
#[derive(Serialize, ToSchema)]
struct AnthropicDetails<'a> {
    /// Anthropic's type of the error.
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    /// For programs; does not change.
    code: &'static str,
    /// The path of the field at fault.
    #[schema(required)]
    param: Option<&'a str>,
}

/// An error in Ollama's shape.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaError<'a> {
    error: &'a str,
    /// For programs; does not change.
    code: &'static str,
}

/// Anthropic's type of an error with this status.
const fn anthropic_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}
