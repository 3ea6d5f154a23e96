//! The types of JSON values, as errors and schemas name them.

use serde_json::Value;
use utoipa::openapi::schema::{SchemaType, Type};

/// A type of JSON value.
#[derive(Clone, Copy, Debug)]
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

    pub(crate) fn matches(self, value: &Value) -> bool {
        match self {
            Self::String => value.is_string(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::Array => value.is_array(),
            Self::Object => value.is_object(),
            Self::Any => true,
        }
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
