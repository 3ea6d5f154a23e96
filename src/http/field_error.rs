//! What can be wrong with a field of a request.

/// What is wrong with a field.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FieldError {
    #[error("{param} is required")]
    Missing { param: String },
    #[error("{param} is empty; send at least one token")]
    EmptyPrompt { param: String },
    #[error("{param} has the wrong type: {message}")]
    Type { param: String, message: String },
    #[error("{param} is {found}, outside {range}")]
    Range { param: String, found: String, range: String },
    #[error("{param}: {message}")]
    Value { param: String, message: String },
    #[error("{param} and {other} are mutually exclusive; send one of them")]
    Conflict { param: String, other: String },
    #[error("{param} requires {requirement}")]
    Requires { param: String, requirement: &'static str },
    #[error("{param} is not supported with this value; leave it out{instead}")]
    Unsupported { param: String, instead: String },
    #[error(
        "unknown field {param}; leave it out or correct its name (with the setting server.unknown_fields = warn, unknown \
         fields are ignored)"
    )]
    Unknown { param: String },
}

impl FieldError {
    pub(crate) fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Value { param: param.into(), message: message.into() }
    }

    /// `param` and `other` were both sent.
    pub(crate) fn conflict(param: impl Into<String>, other: impl Into<String>) -> Self {
        Self::Conflict { param: param.into(), other: other.into() }
    }

    /// `param` needs another field, written as JSON, which was not sent.
    pub(crate) fn requires(param: impl Into<String>, requirement: &'static str) -> Self {
        Self::Requires { param: param.into(), requirement }
    }

    /// The stable code.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing_field",
            Self::EmptyPrompt { .. } => "empty_prompt",
            Self::Type { .. } => "invalid_type",
            Self::Range { .. } | Self::Value { .. } | Self::Conflict { .. } | Self::Requires { .. } => {
                "invalid_value"
            }
            Self::Unsupported { .. } => "unsupported_field",
            Self::Unknown { .. } => "unknown_field",
        }
    }

    /// The field, with its path.
    pub(crate) fn param(&self) -> &str {
        match self {
            Self::Missing { param }
            | Self::EmptyPrompt { param }
            | Self::Type { param, .. }
            | Self::Range { param, .. }
            | Self::Value { param, .. }
            | Self::Conflict { param, .. }
            | Self::Requires { param, .. }
            | Self::Unsupported { param, .. }
            | Self::Unknown { param } => param,
        }
    }
}
