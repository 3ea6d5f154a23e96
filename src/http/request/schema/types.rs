//! Types of request fields. A type reads a JSON value and describes it for OpenAPI, so the two cannot differ.
//!
//! | constructor | JSON | Rust |
//! |---|---|---|
//! | [`string`] | a string, perhaps of limited length | `String` |
//! | [`boolean`] | `true` or `false` | `bool` |
//! | [`number`] | a number within a range | `f32` |
//! | [`integer`], [`integer_from`] | a number without a fraction, within a range; `5.0` and `5e0` are 5 | any integer |
//! | [`one_of`] | one of several strings | a value for each |
//! | [`array`] | an array of a type | `Vec` |
//! | [`json_object`] | an object with any fields | `Map` |
//! | [`either`] | one of two types | the type that both are mapped to |
//! | [`custom`] | anything | anything |
//!
//! [`object`](super::object) adds objects with known fields, and [`field`](super::field) adds defaults.

use std::{fmt::Display, ops::RangeInclusive};

use serde_json::{Map, Number, Value, json};

use super::{
    json_schema::{JsonType, Schemas, with},
    location::Location,
};
use crate::http::field_error::FieldError;

/// How a field is read and described.
pub(crate) trait FieldType {
    /// The Rust type of the value.
    type Value;

    /// The JSON type of the value.
    const JSON: JsonType;

    /// Reads a value that is neither absent nor null.
    ///
    /// # Errors
    /// When the value is not of this type; the error names `at` or a place within it.
    fn read(&self, value: Value, at: &Location) -> Result<Self::Value, FieldError>;

    /// Describes the type; the named schemas that it refers to are added to `schemas`.
    fn schema(&self, schemas: &mut Schemas) -> Value;
}

/// A string.
pub(crate) struct StringType {
    bytes: RangeInclusive<usize>,
    /// For the description.
    pattern: Option<&'static str>,
}

pub(crate) const fn string() -> StringType {
    StringType { bytes: 0..=usize::MAX, pattern: None }
}

impl StringType {
    /// Limits the length in bytes.
    pub(crate) const fn bytes(self, bytes: RangeInclusive<usize>) -> Self {
        Self { bytes, pattern: self.pattern }
    }

    /// Documents the pattern of the string, which a later `try_map` checks.
    pub(crate) const fn pattern(self, pattern: &'static str) -> Self {
        Self { bytes: self.bytes, pattern: Some(pattern) }
    }
}

impl FieldType for StringType {
    type Value = String;
    const JSON: JsonType = JsonType::String;

    fn read(&self, value: Value, at: &Location) -> Result<String, FieldError> {
        let Value::String(text) = value else { return Err(at.wrong_type("a string", &value)) };
        if self.bytes.contains(&text.len()) {
            return Ok(text);
        }
        let (min, max) = (self.bytes.start(), self.bytes.end());
        Err(at.invalid(format!("has {} bytes; expected {min} to {max}", text.len())))
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        with(limited(Self::JSON.schema(), ["minLength", "maxLength"], &self.bytes), "pattern", self.pattern)
    }
}

/// `true` or `false`.
pub(crate) struct BooleanType;

pub(crate) const fn boolean() -> BooleanType {
    BooleanType
}

impl FieldType for BooleanType {
    type Value = bool;
    const JSON: JsonType = JsonType::Boolean;

    fn read(&self, value: Value, at: &Location) -> Result<bool, FieldError> {
        value.as_bool().ok_or_else(|| at.wrong_type("a boolean", &value))
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        Self::JSON.schema()
    }
}

/// A number within a range.
pub(crate) struct NumberType(RangeInclusive<f64>);

pub(crate) const fn number(range: RangeInclusive<f64>) -> NumberType {
    NumberType(range)
}

impl FieldType for NumberType {
    type Value = f32;
    const JSON: JsonType = JsonType::Number;

    fn read(&self, value: Value, at: &Location) -> Result<f32, FieldError> {
        let Value::Number(found) = &value else { return Err(at.wrong_type("a number", &value)) };
        let number = found.as_f64().filter(|number| self.0.contains(number));
        number.map(narrow).ok_or_else(|| at.outside(found, format!("{} to {}", self.0.start(), self.0.end())))
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        json!({ "type": "number", "minimum": self.0.start(), "maximum": self.0.end() })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the model computes with f32, and every range is within it"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

/// A whole number within a range.
pub(crate) struct IntegerType<T> {
    min: T,
    /// `None` for no limit.
    max: Option<T>,
}

pub(crate) fn integer<T>(range: RangeInclusive<T>) -> IntegerType<T> {
    let (min, max) = range.into_inner();
    IntegerType { min, max: Some(max) }
}

/// A whole number without an upper limit.
pub(crate) const fn integer_from<T>(min: T) -> IntegerType<T> {
    IntegerType { min, max: None }
}

/// An integer of Rust that a JSON number is read as.
pub(crate) trait Integer: Copy + Display + PartialOrd + TryFrom<i128> + TryInto<i64> {}

impl<T: Copy + Display + PartialOrd + TryFrom<i128> + TryInto<i64>> Integer for T {}

impl<T: Integer> FieldType for IntegerType<T> {
    type Value = T;
    const JSON: JsonType = JsonType::Number;

    fn read(&self, value: Value, at: &Location) -> Result<T, FieldError> {
        let Value::Number(found) = &value else { return Err(at.wrong_type("a number", &value)) };
        let number = whole(found).and_then(|number| T::try_from(number).ok());
        let fits = |number: &T| *number >= self.min && self.max.is_none_or(|max| *number <= max);
        number.filter(fits).ok_or_else(|| {
            let range = match self.max {
                Some(max) => format!("{} to {max}", self.min),
                None => format!("whole numbers from {}", self.min),
            };
            at.outside(found, range)
        })
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        let limit = |limit: T| -> Option<i64> { limit.try_into().ok() };
        let schema = with(json!({ "type": "integer" }), "minimum", limit(self.min));
        with(schema, "maximum", self.max.and_then(limit))
    }
}

/// The whole number that this is, however it is written; `None` where it has a fraction.
pub(crate) fn whole(number: &Number) -> Option<i128> {
    let written = number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from));
    written.or_else(|| number.as_f64().and_then(without_fraction))
}

#[expect(clippy::cast_possible_truncation, reason = "it has no fraction, and the cast saturates")]
fn without_fraction(number: f64) -> Option<i128> {
    (number.fract() == 0.0).then_some(number as i128)
}

/// One of several strings, each with a value.
pub(crate) struct OneOf<T: 'static>(&'static [(&'static str, T)]);

pub(crate) const fn one_of<T: Copy>(values: &'static [(&'static str, T)]) -> OneOf<T> {
    OneOf(values)
}

impl<T: Copy> FieldType for OneOf<T> {
    type Value = T;
    const JSON: JsonType = JsonType::String;

    fn read(&self, value: Value, at: &Location) -> Result<T, FieldError> {
        let Value::String(text) = value else { return Err(at.wrong_type("a string", &value)) };
        let found = self.0.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| *value).ok_or_else(|| at.unsupported(&text, self.names()))
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        json!({ "type": "string", "enum": self.names().collect::<Vec<_>>() })
    }
}

impl<T> OneOf<T> {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

/// An array of items of one type.
pub(crate) struct ArrayType<T> {
    item: T,
    items: RangeInclusive<usize>,
}

pub(crate) const fn array<T>(item: T) -> ArrayType<T> {
    ArrayType { item, items: 0..=usize::MAX }
}

impl<T> ArrayType<T> {
    /// Limits the number of items.
    pub(crate) fn items(self, items: RangeInclusive<usize>) -> Self {
        Self { items, ..self }
    }
}

impl<T: FieldType> FieldType for ArrayType<T> {
    type Value = Vec<T::Value>;
    const JSON: JsonType = JsonType::Array;

    fn read(&self, value: Value, at: &Location) -> Result<Self::Value, FieldError> {
        let Value::Array(items) = value else { return Err(at.wrong_type("an array", &value)) };
        check_count(items.len(), &self.items, at)?;
        items.into_iter().enumerate().map(|(index, item)| self.item.read(item, &at.item(index))).collect()
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        counted(self.item.schema(schemas), &self.items)
    }
}

/// Checks how many items there are.
pub(crate) fn check_count(
    found: usize,
    items: &RangeInclusive<usize>,
    at: &Location,
) -> Result<(), FieldError> {
    let (min, max) = (items.start(), items.end());
    if found < *min {
        return Err(at.invalid(format!("{found} items, at least {min}")));
    }
    if found > *max {
        return Err(at.invalid(format!("{found} items, at most {max}")));
    }
    Ok(())
}

/// The schema of an array with this number of items.
pub(crate) fn counted(item: Value, items: &RangeInclusive<usize>) -> Value {
    limited(json!({ "type": "array", "items": item }), ["minItems", "maxItems"], items)
}

/// Sets the two keywords of a range.
fn limited(schema: Value, [min, max]: [&str; 2], range: &RangeInclusive<usize>) -> Value {
    let (start, end) = (*range.start(), *range.end());
    let schema = with(schema, min, (start > 0).then_some(start));
    with(schema, max, (end < usize::MAX).then_some(end))
}

/// An object whose fields are not looked at.
pub(crate) struct ObjectType;

pub(crate) const fn json_object() -> ObjectType {
    ObjectType
}

impl FieldType for ObjectType {
    type Value = Map<String, Value>;
    const JSON: JsonType = JsonType::Object;

    fn read(&self, value: Value, at: &Location) -> Result<Self::Value, FieldError> {
        match value {
            Value::Object(object) => Ok(object),
            other => Err(at.wrong_type("an object", &other)),
        }
    }

    fn schema(&self, _: &mut Schemas) -> Value {
        Self::JSON.schema()
    }
}

/// A value of one of two types with different JSON types.
pub(crate) struct Either<A, B>(A, B);

pub(crate) const fn either<A, B>(one: A, other: B) -> Either<A, B> {
    Either(one, other)
}

impl<A: FieldType, B: FieldType<Value = A::Value>> FieldType for Either<A, B> {
    type Value = A::Value;
    const JSON: JsonType = JsonType::Any;

    fn read(&self, value: Value, at: &Location) -> Result<Self::Value, FieldError> {
        if A::JSON.matches(&value) {
            return self.0.read(value, at);
        }
        if B::JSON.matches(&value) {
            return self.1.read(value, at);
        }
        Err(at.wrong_type(&format!("{} or {}", A::JSON.described(), B::JSON.described()), &value))
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        json!({ "oneOf": [self.0.schema(schemas), self.1.schema(schemas)] })
    }
}

/// A type with its own reader and description.
pub(crate) struct Custom<T> {
    read: fn(Value, &Location) -> Result<T, FieldError>,
    schema: fn(&mut Schemas) -> Value,
}

pub(crate) const fn custom<T>(
    read: fn(Value, &Location) -> Result<T, FieldError>,
    schema: fn(&mut Schemas) -> Value,
) -> Custom<T> {
    Custom { read, schema }
}

impl<T> FieldType for Custom<T> {
    type Value = T;
    const JSON: JsonType = JsonType::Any;

    fn read(&self, value: Value, at: &Location) -> Result<T, FieldError> {
        (self.read)(value, at)
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        (self.schema)(schemas)
    }
}
