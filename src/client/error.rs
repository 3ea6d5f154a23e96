//! Why a request failed.

use reqwest::StatusCode;
use serde_json::Value;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is invalid, or needs TLS.
    #[error("invalid server URL {url:?}: {reason}; expected a URL such as http://127.0.0.1:8110")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The API key has characters that a header cannot contain.
    #[error("invalid API key: only visible ASCII can be sent in a header")]
    Key,
    /// The HTTP client cannot be created.
    #[error("cannot create an HTTP client: {0}")]
    Setup(#[source] reqwest::Error),
    /// The server cannot be reached, or the connection broke.
    #[error("no answer from {url}: {}", innermost(.source))]
    Unreachable {
        /// URL of the request.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answered with an error status.
    #[error("{status}{}: {message}", .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's error code.
        code: Option<String>,
        /// The server's error message.
        message: String,
    },
    /// An event of the stream reports an error.
    #[error("{}: {message}", .code.as_deref().unwrap_or("failed during the answer"))]
    Failed {
        /// The server's error code.
        code: Option<String>,
        /// The server's error message.
        message: String,
    },
    /// The stream ended without `[DONE]`.
    #[error("the answer ended early: {0}")]
    Truncated(String),
    /// The answer is not valid.
    #[error("invalid answer: {0}")]
    Invalid(String),
}

impl ClientError {
    /// A short name for statistics: the server's error code, the status, or the kind of network failure.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            Self::Refused { code: Some(code), .. } | Self::Failed { code: Some(code), .. } => code.clone(),
            Self::Refused { status, .. } => format!("http_{status}"),
            Self::Failed { .. } => "failed".into(),
            Self::Unreachable { source, .. } if source.is_timeout() => "timeout".into(),
            Self::Unreachable { source, .. } if source.is_connect() => "connect".into(),
            Self::Unreachable { .. } | Self::Truncated(_) => "cut".into(),
            Self::Invalid(_) => "garbled".into(),
            Self::Url { .. } | Self::Key | Self::Setup(_) => "client".into(),
        }
    }

    /// An error answer; `body` may be an error document of OpenAI's API.
    pub(super) fn of_response(status: StatusCode, body: &str) -> Self {
        let document: Value = serde_json::from_str(body).unwrap_or_default();
        let (code, message) = code_and_message(&document["error"]);
        let beginning = || body.chars().take(200).collect::<String>();
        Self::Refused { status: status.as_u16(), code, message: message.unwrap_or_else(beginning) }
    }

    /// An event whose `error` field is set.
    pub(super) fn of_event(error: &Value) -> Self {
        let (code, message) = code_and_message(error);
        Self::Failed { code, message: message.unwrap_or_else(|| error.to_string()) }
    }
}

/// Code and message of OpenAI's error object. Some servers send only text, or a number as the code.
fn code_and_message(error: &Value) -> (Option<String>, Option<String>) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let code = text(&error["code"]).or_else(|| text(&error["type"]));
    (code, text(&error["message"]).or_else(|| text(error)))
}

/// The last cause, usually the operating system's error.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_is_counted_by_the_servers_code() {
        let refused = |body: &str| ClientError::of_response(StatusCode::TOO_MANY_REQUESTS, body).code();
        assert_eq!(refused(r#"{"error": {"code": "queue_full", "message": "m"}}"#), "queue_full");
        assert_eq!(refused(r#"{"error": {"code": 429, "message": "m", "type": "too_many"}}"#), "too_many");
        assert_eq!(refused("<html>"), "http_429");
    }
}
