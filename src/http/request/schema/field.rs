//! A field of a request: its type, and its meaning when it is absent.
//!
//! A bare type is a required field. `null` is the same as absent.

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    compat_field::is_same,
    json_schema::{JsonType, Schemas, described, nullable, with},
    location::Location,
    types::FieldType,
};
use crate::http::field_error::FieldError;

/// How a field is read from its object and described there.
pub(crate) trait FieldSpec {
    /// The Rust type of the field.
    type Value;

    /// Reads the field's value; `None` where the object has none.
    fn take(self, value: Option<Value>, at: impl FnOnce() -> Location) -> Result<Self::Value, FieldError>;

    /// Describes the field.
    fn describe(&self, schemas: &mut Schemas) -> Value;

    fn is_required(&self) -> bool;
}

impl<T: FieldType> FieldSpec for T {
    type Value = T::Value;

    fn take(self, value: Option<Value>, at: impl FnOnce() -> Location) -> Result<T::Value, FieldError> {
        match value {
            None | Some(Value::Null) => Err(at().missing()),
            Some(value) => self.read(value, &at()),
        }
    }

    fn describe(&self, schemas: &mut Schemas) -> Value {
        self.schema(schemas)
    }

    fn is_required(&self) -> bool {
        true
    }
}

/// A schema that refers to a named one.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A field that may be absent.
pub(crate) struct OptionalField<T: FieldType, V> {
    field_type: T,
    present: fn(T::Value) -> V,
    absent: V,
    /// Writes `absent` into the description.
    default: Option<fn(&V) -> Value>,
    /// A further value that means absent, as JSON.
    unset: Option<&'static str>,
    is_deprecated: bool,
}

impl<T: FieldType, V> OptionalField<T, V> {
    fn new(field_type: T, present: fn(T::Value) -> V, absent: V, default: Option<fn(&V) -> Value>) -> Self {
        Self { field_type, present, absent, default, unset: None, is_deprecated: false }
    }

    /// Reads this value, which is JSON, like an absent field: clients send it for "not set".
    pub(crate) fn unset_at(self, value: &'static str) -> Self {
        Self { unset: Some(value), ..self }
    }

    /// Describes the field as deprecated.
    pub(crate) fn deprecated(self) -> Self {
        Self { is_deprecated: true, ..self }
    }
}

impl<T: FieldType, V> FieldSpec for OptionalField<T, V> {
    type Value = V;

    fn take(self, value: Option<Value>, at: impl FnOnce() -> Location) -> Result<V, FieldError> {
        match value {
            None | Some(Value::Null) => Ok(self.absent),
            Some(value) if self.unset.is_some_and(|unset| is_same(unset, &value)) => Ok(self.absent),
            Some(value) => self.field_type.read(value, &at()).map(self.present),
        }
    }

    fn describe(&self, schemas: &mut Schemas) -> Value {
        let mut schema = self.field_type.schema(schemas);
        let unset: Option<Value> = self.unset.and_then(|unset| serde_json::from_str(unset).ok());
        // `oneOf` allows no value that both match.
        if let Some(unset) =
            unset.filter(|unset| self.field_type.read(unset.clone(), &Location::default()).is_err())
        {
            schema = json!({ "oneOf": [schema, { "enum": [unset] }] });
        }
        schema = with(nullable(schema), "default", self.default.map(|to_json| to_json(&self.absent)));
        with(schema, "deprecated", self.is_deprecated.then_some(true))
    }

    fn is_required(&self) -> bool {
        false
    }
}

/// What every field type can be made into.
pub(crate) trait Modify: FieldType + Sized {
    /// A field that is `None` where it is absent.
    fn optional(self) -> OptionalField<Self, Option<Self::Value>> {
        OptionalField::new(self, Some, None, None)
    }

    /// A field that has this value where it is absent.
    fn or(self, default: Self::Value) -> OptionalField<Self, Self::Value>
    where
        Self::Value: Serialize,
    {
        let to_json = |default: &Self::Value| serde_json::to_value(default).unwrap_or_default();
        OptionalField::new(self, |value| value, default, Some(to_json))
    }

    /// A field that is empty where it is absent.
    fn or_empty(self) -> OptionalField<Self, Self::Value>
    where
        Self::Value: Default,
    {
        OptionalField::new(self, |value| value, Self::Value::default(), None)
    }

    /// The same type, read as something else.
    fn map<T>(self, map: fn(Self::Value) -> T) -> impl FieldType<Value = T> {
        Mapped(self, move |value, _: &Location| Ok(map(value)))
    }

    /// The same type, with checks that the description does not express.
    fn try_map<T>(
        self,
        map: fn(Self::Value, &Location) -> Result<T, FieldError>,
    ) -> impl FieldType<Value = T> {
        Mapped(self, map)
    }

    /// The same type, described as a schema with this name.
    fn named(self, name: &'static str, about: &'static str) -> Named<Self> {
        Named { field_type: self, name, about }
    }
}

impl<T: FieldType> Modify for T {}

struct Mapped<A, F>(A, F);

impl<A: FieldType, T, F: Fn(A::Value, &Location) -> Result<T, FieldError>> FieldType for Mapped<A, F> {
    type Value = T;
    const JSON: JsonType = A::JSON;

    fn read(&self, value: Value, at: &Location) -> Result<T, FieldError> {
        self.1(self.0.read(value, at)?, at)
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        self.0.schema(schemas)
    }
}

/// A type that the document describes as a named schema.
pub(crate) struct Named<T> {
    field_type: T,
    name: &'static str,
    about: &'static str,
}

impl<T: FieldType> FieldType for Named<T> {
    type Value = T::Value;
    const JSON: JsonType = T::JSON;

    fn read(&self, value: Value, at: &Location) -> Result<T::Value, FieldError> {
        self.field_type.read(value, at)
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        let schema = described(self.field_type.schema(schemas), self.about.to_owned());
        schemas.insert(self.name.to_owned(), schema);
        reference(self.name)
    }
}
