//! The types of JSON values, as errors and schemas name them.

use serde_json::Value;
use utoipa::openapi::schema::{SchemaType, Type};

/// A type of JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonType {
    String,
    Number,
    Boolean,
    Array,
    Object,
    Any,
}

impl JsonType {
    /// With its article, for an error.
    pub(crate) const fn described(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Boolean => "a boolean",
            Self::Array => "an array",
            Self::Object => "an object",
            Self::Any => "any value",
        }
    }

    /// The type of a value; `None` for null.
    pub(crate) const fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null => None,
            Value::Bool(_) => Some(Self::Boolean),
            Value::Number(_) => Some(Self::Number),
            Value::String(_) => Some(Self::String),
            Value::Array(_) => Some(Self::Array),
            Value::Object(_) => Some(Self::Object),
        }
    }

    pub(crate) fn matches(self, value: &Value) -> bool {
        matches!(self, Self::Any) || Self::of(value) == Some(self)
    }

    /// As JSON Schema names it.
    pub(super) fn schema(self) -> SchemaType {
        match self {
            Self::String => Type::String.into(),
            Self::Number => Type::Number.into(),
            Self::Boolean => Type::Boolean.into(),
            Self::Array => Type::Array.into(),
            Self::Object => Type::Object.into(),
            Self::Any => SchemaType::AnyValue,
        }
    }
}
