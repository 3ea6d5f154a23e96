//! Places in a request's body, and the errors that name them.

use serde_json::{Number, Value};

use super::{ignored_fields::Ignored, json_schema::JsonType};
use crate::{config::UnknownFields, http::field_error::FieldError};

/// A place in the body, and what happens to unknown fields there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Location {
    /// Such as `messages[2].content`; empty for the whole body.
    path: String,
    /// Collects fields that are ignored.
    ignored: Ignored,
    /// Whether unknown fields are ignored instead of refused.
    is_lenient: bool,
}

impl Location {
    /// The whole body, whose unknown fields are ignored or refused.
    pub(crate) fn body(unknown: UnknownFields) -> Self {
        Self { is_lenient: unknown == UnknownFields::Warn, ..Self::default() }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A field of the object at this place.
    pub(crate) fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, ..self.clone() }
    }

    /// An item of the array at this place.
    pub(crate) fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), ..self.clone() }
    }

    /// The fields that were ignored in this body so far.
    pub(crate) fn ignored(&self) -> Ignored {
        self.ignored.clone()
    }

    /// Refuses the field at this place, or notes it where unknown fields are ignored.
    pub(crate) fn refuse(&self, error: FieldError) -> Result<(), FieldError> {
        if !self.is_lenient {
            return Err(error);
        }
        self.ignore();
        Ok(())
    }

    /// Notes that the value at this place is ignored.
    pub(crate) fn ignore(&self) {
        self.ignored.note(&self.path);
    }

    pub(crate) fn missing(&self) -> FieldError {
        FieldError::Missing { param: self.path.clone() }
    }

    pub(crate) fn invalid(&self, message: impl Into<String>) -> FieldError {
        FieldError::value(&self.path, message)
    }

    /// `found` is not one of the strings that are supported here.
    pub(crate) fn unsupported(
        &self,
        found: &str,
        supported: impl Iterator<Item = &'static str>,
    ) -> FieldError {
        let supported: Vec<_> = supported.map(|name| format!("{name:?}")).collect();
        let supported = match supported.split_last() {
            Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            _ => supported.concat(),
        };
        self.invalid(format!("unsupported value {found:?}; expected {supported}"))
    }

    pub(crate) fn outside(&self, found: &Number, range: impl Into<String>) -> FieldError {
        FieldError::Range { param: self.path.clone(), found: found.to_string(), range: range.into() }
    }

    /// `found` is not `expected`, which has its article.
    pub(crate) fn wrong_type(&self, expected: &str, found: &Value) -> FieldError {
        let found = JsonType::of(found).map_or("null", JsonType::described);
        FieldError::Type { param: self.path.clone(), message: format!("expected {expected}, found {found}") }
    }
}
