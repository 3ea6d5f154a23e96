//! The types of JSON values, and edits of JSON schemas.

use serde_json::{Map, Value, json};

/// The named schemas that a schema refers to.
pub(crate) type Schemas = Map<String, Value>;

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
        self == Self::Any || Self::of(value) == Some(self)
    }

    /// The schema of any value of this type.
    pub(crate) fn schema(self) -> Value {
        match self {
            Self::Any => json!({}),
            Self::Array => json!({ "type": "array", "items": {} }),
            // The last word of the description is JSON Schema's name.
            typed => json!({ "type": typed.described().rsplit(' ').next() }),
        }
    }
}

/// Sets a keyword; null leaves it out.
pub(crate) fn with(mut schema: Value, keyword: &str, value: impl Into<Value>) -> Value {
    match value.into() {
        Value::Null => {}
        value => schema[keyword] = value,
    }
    schema
}

/// Sets the description, if there is one.
pub(super) fn described(schema: Value, description: String) -> Value {
    with(schema, "description", Some(description).filter(|text| !text.is_empty()))
}

/// Also allows `null`.
pub(crate) fn nullable(mut schema: Value) -> Value {
    if let Some(Value::Array(schemas)) = schema.get_mut("oneOf") {
        schemas.push(json!({ "type": "null" }));
        return schema;
    }
    if schema.get("$ref").is_some() {
        return json!({ "oneOf": [schema, { "type": "null" }] });
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.insert(0, Value::Null);
    }
    let typed = schema.get("type").map(|name| json!([name, "null"]));
    with(schema, "type", typed)
}

/// Allows further properties only where they are null, which is the same as absent.
pub(super) fn only_null_beside(schema: Value) -> Value {
    with(schema, "unevaluatedProperties", json!({ "type": "null" }))
}
