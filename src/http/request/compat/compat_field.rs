//! What the tables of compatibility fields are made of.

use serde_json::Value;
use utoipa::openapi::{
    RefOr,
    schema::{ArrayBuilder, Object, ObjectBuilder, Schema, Type},
};

use crate::http::{
    field_error::FieldError,
    request::{
        json_type::JsonType,
        location::Location,
        schema::{described, nullable, only_null_beside},
    },
};

/// A field of another API, accepted at values that change nothing.
#[derive(Debug)]
pub(crate) struct CompatField {
    pub(crate) name: &'static str,
    pub(crate) accepted: Accepted,
    /// What to send instead: a clause to end an error with, or empty.
    hint: &'static str,
}

/// The values at which a field changes nothing in an answer.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// All of a JSON type: labels, hints for a cache, settings of a feature that is off.
    Any(JsonType),
    /// These, as JSON; numbers are compared by value.
    Values(&'static [&'static str]),
    /// An object whose fields all have accepted values.
    Object(&'static [CompatField]),
    /// An array of any of these strings.
    Items(&'static [&'static str]),
}

impl Accepted {
    /// Whether this value changes nothing.
    pub(super) fn allows(&self, value: &Value) -> bool {
        match self {
            Self::Any(json_type) => json_type.matches(value),
            Self::Values(values) => values.iter().any(|off| is_same(off, value)),
            Self::Object(fields) => value.as_object().is_some_and(|object| {
                object.iter().all(|(name, value)| value.is_null() || find(fields, name).allows(value))
            }),
            Self::Items(items) => value.as_array().is_some_and(|array| {
                array.iter().all(|item| item.as_str().is_some_and(|item| items.contains(&item)))
            }),
        }
    }
}

/// What the field `name` accepts; only null where `fields` has no such field.
fn find<'a>(fields: &'a [CompatField], name: &str) -> &'a Accepted {
    const NONE: &Accepted = &Accepted::Values(&[]);
    fields.iter().find(|field| field.name == name).map_or(NONE, |field| &field.accepted)
}

/// Whether `value` equals `off`, which is JSON. Fields that are null count as absent.
pub(crate) fn is_same(off: &str, value: &Value) -> bool {
    let off: Value = serde_json::from_str(off).unwrap_or_default();
    if let (Some(off), Some(value)) = (off.as_object(), value.as_object()) {
        return off.iter().eq(value.iter().filter(|(_, value)| !value.is_null()));
    }
    off == *value || (off.is_number() && off.as_f64() == value.as_f64())
}

impl CompatField {
    const fn new(name: &'static str, accepted: Accepted, hint: &'static str) -> Self {
        Self { name, accepted, hint }
    }

    /// Checks that `value` is accepted.
    pub(crate) fn check(&self, value: &Value, at: &Location) -> Result<(), FieldError> {
        match &self.accepted {
            accepted if accepted.allows(value) => Ok(()),
            Accepted::Any(json_type) => Err(at.wrong_type(json_type.described(), value)),
            _ => Err(FieldError::Unsupported { param: at.path().to_owned(), instead: self.instead() }),
        }
    }

    /// Which values are accepted and what to send instead, for an error that ends with "leave it out".
    fn instead(&self) -> String {
        let values = match self.accepted {
            Accepted::Values(values) if !values.is_empty() => format!(" or send {}", values.join(" or ")),
            Accepted::Object(_) => " or send {}".into(),
            Accepted::Items(_) => " or send []".into(),
            Accepted::Any(_) | Accepted::Values(_) => String::new(),
        };
        values + self.hint
    }

    /// Describes the field by the values that are accepted.
    pub(crate) fn schema(&self) -> RefOr<Schema> {
        let schema: RefOr<Schema> = match &self.accepted {
            Accepted::Any(JsonType::Array) => ArrayBuilder::new().into(),
            Accepted::Any(json_type) => Object::with_type(json_type.schema()).into(),
            Accepted::Values(values) => {
                let values = values.iter().map(|value| serde_json::from_str(value).unwrap_or_default());
                ObjectBuilder::new()
                    .schema_type(JsonType::Any.schema())
                    .enum_values(Some(values.collect::<Vec<Value>>()))
                    .into()
            }
            Accepted::Object(fields) => {
                let object = ObjectBuilder::new().schema_type(Type::Object);
                let object =
                    fields.iter().fold(object, |all, field| all.property(field.name, field.schema()));
                object.extensions(Some(only_null_beside())).into()
            }
            Accepted::Items(items) => {
                let item =
                    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(items.iter().copied()));
                ArrayBuilder::new().items(item).into()
            }
        };
        described(nullable(schema), "Accepted; these values change nothing in an answer.".into())
    }
}

/// A field that is off at `values`, which are JSON.
pub(crate) const fn off(
    name: &'static str,
    values: &'static [&'static str],
    hint: &'static str,
) -> CompatField {
    CompatField::new(name, Accepted::Values(values), hint)
}

/// A field that must be absent or null.
pub(super) const fn unsupported(name: &'static str, hint: &'static str) -> CompatField {
    CompatField::new(name, Accepted::Values(&[]), hint)
}

/// A field that changes nothing at any value of this type.
pub(super) const fn inert(name: &'static str, json_type: JsonType) -> CompatField {
    CompatField::new(name, Accepted::Any(json_type), "")
}

/// An object whose fields must all be off.
pub(super) const fn object(name: &'static str, fields: &'static [CompatField]) -> CompatField {
    CompatField::new(name, Accepted::Object(fields), "")
}

/// An array of any of these strings.
pub(super) const fn array(name: &'static str, items: &'static [&'static str]) -> CompatField {
    CompatField::new(name, Accepted::Items(items), "")
}
