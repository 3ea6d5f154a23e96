//! A request's body, taken apart field by field.
//!
//! Every field that a route understands is taken out by name; what then remains is an error, so that nothing is ever
//! ignored in silence and no list of accepted names can drift from the code. `null` is the same as absent, as OpenAI
//! has it. Errors name the field with its path (`messages[2].content`), the value and the limit.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::strict;

/// What is wrong with a field.
#[derive(Debug, thiserror::Error)]
pub(super) enum FieldError {
    #[error("{param} is required")]
    Missing { param: String },
    #[error("{param} has the wrong type: {message}")]
    Type { param: String, message: String },
    #[error("{param} is {found}, outside {range}")]
    Range { param: String, found: String, range: String },
    #[error("{param}: {message}")]
    Value { param: String, message: String },
    #[error("{param} is a field of OpenAI's API that eka does not do yet; leave it out{}", harmless(only))]
    Unsupported { param: String, only: &'static str },
    #[error("{param} is not a field that eka knows here; leave it out, or correct its name")]
    Unknown { param: String },
}

impl FieldError {
    pub(super) fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Value { param: param.into(), message: message.into() }
    }

    /// The stable code.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing_field",
            Self::Type { .. } => "invalid_type",
            Self::Range { .. } | Self::Value { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_field",
            Self::Unknown { .. } => "unknown_field",
        }
    }

    /// The field, with its path.
    pub(super) fn param(&self) -> &str {
        match self {
            Self::Missing { param }
            | Self::Type { param, .. }
            | Self::Range { param, .. }
            | Self::Value { param, .. }
            | Self::Unsupported { param, .. }
            | Self::Unknown { param } => param,
        }
    }
}

fn harmless(only: &str) -> String {
    if only.is_empty() { String::new() } else { format!(" or send {only}") }
}

/// A field that OpenAI has and eka does not do, with the values that ask for nothing.
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) asks_for_nothing: fn(&Value) -> bool,
    /// These values in words, for the error.
    pub(super) only: &'static str,
    /// The type that it must have as JSON schema calls it, whatever its value, of one that asks nothing of an answer.
    pub(super) kind: Option<&'static str>,
}

impl Known {
    /// A text that asks nothing of an answer.
    pub(super) const fn text(name: &'static str) -> Self {
        Self { name, asks_for_nothing: Value::is_string, only: "", kind: Some("string") }
    }

    /// An object that asks nothing of an answer.
    pub(super) const fn object(name: &'static str) -> Self {
        Self { name, asks_for_nothing: Value::is_object, only: "", kind: Some("object") }
    }
}

/// What is left of a JSON object, and where in the body it stands.
#[derive(Debug, Default)]
pub(super) struct Fields {
    object: Map<String, Value>,
    /// Empty at the top, else for example `messages[2].`.
    prefix: String,
}

impl Fields {
    /// The fields of the body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self { object: strict::object(body)?, prefix: String::new() })
    }

    /// The fields of an object within the body, at `path`.
    pub(super) fn nested(value: Value, path: &str) -> Result<Self, FieldError> {
        match value {
            Value::Object(object) => Ok(Self { object, prefix: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The full path of a field of this object.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether a field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A field that is there and not null, left where it is.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        #[cfg(test)]
        asked::note(&self.prefix, name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field of any type; `None` when it is absent or null.
    ///
    /// In constant time: `shift_remove` would keep the order of the others, and move up to all of them for each field taken.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, FieldError> {
        #[cfg(test)]
        asked::note(&self.prefix, name);
        match self.object.swap_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => typed(value, &self.path(name)).map(Some),
        }
    }

    /// Takes a field that must be there.
    pub(super) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, FieldError> {
        self.take(name)?.ok_or_else(|| FieldError::Missing { param: self.path(name) })
    }

    /// Takes a number within `range`.
    pub(super) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, FieldError> {
        let Some(found) = self.take::<Number>(name)? else { return Ok(None) };
        number_within(&found, &self.path(name), &range).map(Some)
    }

    /// Takes a whole number within `range`.
    pub(super) fn whole(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, FieldError> {
        let Some(found) = self.take::<Number>(name)? else { return Ok(None) };
        let value = found.as_u64().filter(|value| range.contains(value));
        value.map(Some).ok_or_else(|| out_of_range(&self.path(name), &found, &range))
    }

    /// Checks that nothing is left but `known` fields that ask for nothing.
    pub(super) fn finish(self, known: &[Known]) -> Result<(), FieldError> {
        for (name, value) in &self.object {
            let param = self.path(name);
            match known.iter().find(|known| known.name == name) {
                Some(known) if value.is_null() || (known.asks_for_nothing)(value) => {}
                Some(Known { kind: Some("object"), .. }) => {
                    return Err(wrong_type(&param, "an object", value));
                }
                Some(Known { kind: Some(_), .. }) => return Err(wrong_type(&param, "a string", value)),
                Some(known) => return Err(FieldError::Unsupported { param, only: known.only }),
                None => return Err(FieldError::Unknown { param }),
            }
        }
        Ok(())
    }
}

/// A number within `range`; the error names it `param`.
pub(super) fn number_within(
    found: &Number,
    param: &str,
    range: &RangeInclusive<f32>,
) -> Result<f32, FieldError> {
    let value = found.as_f64().map(narrow).filter(|value| range.contains(value));
    value.ok_or_else(|| out_of_range(param, found, range))
}

fn out_of_range<T: std::fmt::Display>(param: &str, found: &Number, range: &RangeInclusive<T>) -> FieldError {
    let range = format!("{} to {}", range.start(), range.end());
    FieldError::Range { param: param.to_owned(), found: found.to_string(), range }
}

/// Reads a value as a `T`; an error names the place within it.
pub(super) fn typed<T: DeserializeOwned>(value: Value, path: &str) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let param = match inner.as_str() {
            "." | "" => path.to_owned(),
            inner if inner.starts_with('[') => format!("{path}{inner}"),
            inner => format!("{path}.{inner}"),
        };
        FieldError::Type { param, message: error.into_inner().to_string() }
    })
}

/// The error for a value that is not `expected`.
pub(super) fn wrong_type(path: &str, expected: &str, found: &Value) -> FieldError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    FieldError::Type { param: path.to_owned(), message: format!("expected {expected}, found {found}") }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a number beyond an f32 becomes infinite, which no range holds"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

/// Which fields of bodies were asked for on this thread, to be compared with those that are described.
#[cfg(test)]
pub(super) mod asked {
    use std::{cell::RefCell, collections::BTreeSet};

    thread_local! {
        static NAMES: RefCell<BTreeSet<String>> = RefCell::default();
    }

    pub(super) fn note(prefix: &str, name: &str) {
        if prefix.is_empty() {
            NAMES.with_borrow_mut(|names| names.insert(name.to_owned()));
        }
    }

    /// Those since it was last called.
    pub(in crate::http) fn take() -> BTreeSet<String> {
        NAMES.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn null_is_absent() {
        let mut fields = fields(r#"{"a": null}"#);
        assert_eq!(fields.take::<String>("a").unwrap(), None);
        assert_eq!(fields.take::<String>("b").unwrap(), None);
        fields.finish(&[]).unwrap();
    }

    #[test]
    fn taking_every_field_of_a_large_object_moves_no_other_field() {
        let names: Vec<String> = (0..40_000).map(|n| format!("field_{n}")).collect();
        let object = names.iter().map(|name| (name.clone(), Value::from(1))).collect();
        let mut fields = Fields::nested(Value::Object(object), "logit_bias").unwrap();
        assert_eq!(fields.take::<u32>(&names[0]).unwrap(), Some(1));
        // `shift_remove` would have put the second field in the first place.
        assert_eq!(fields.object.keys().next(), names.last());
        for name in &names[1..] {
            assert_eq!(fields.take::<u32>(name).unwrap(), Some(1));
        }
        fields.finish(&[]).unwrap();
    }

    #[test]
    fn an_error_names_the_place_within_a_field() {
        let error = fields(r#"{"ids": [1, "two"]}"#).take::<Vec<u32>>("ids").unwrap_err();
        assert_eq!((error.param(), error.code()), ("ids[1]", "invalid_type"));
        let mut nested = Fields::nested(serde_json::json!({"role": 7}), "messages[2]").unwrap();
        assert_eq!(nested.require::<String>("role").unwrap_err().param(), "messages[2].role");
        assert_eq!(nested.require::<String>("content").unwrap_err().code(), "missing_field");
    }

    #[test]
    fn numbers_out_of_range_name_field_value_and_limit() {
        for (body, said) in [
            (r#"{"t": 2.5}"#, "t is 2.5, outside 0 to 2"),
            (r#"{"t": -0.1}"#, "t is -0.1, outside 0 to 2"),
            (r#"{"t": 1e300}"#, "t is 1e+300, outside 0 to 2"),
        ] {
            assert_eq!(fields(body).number("t", 0.0..=2.0).unwrap_err().to_string(), said);
        }
        for (body, said) in [
            (r#"{"n": 0}"#, "n is 0, outside 1 to 9"),
            (r#"{"n": -1}"#, "n is -1, outside 1 to 9"),
            (r#"{"n": 1.5}"#, "n is 1.5, outside 1 to 9"),
            (r#"{"n": 123456789012345678901234567890}"#, "n is 1.2345678901234568e+29, outside 1 to 9"),
        ] {
            assert_eq!(fields(body).whole("n", 1..=9).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn a_number_that_json_cannot_hold_is_not_json() {
        assert!(Fields::parse(br#"{"t": 1e999}"#).is_err());
        assert!(Fields::parse(br#"{"t": NaN}"#).is_err());
    }

    #[test]
    fn what_is_left_is_unknown_unless_it_asks_for_nothing() {
        let known = || [Known { name: "n", asks_for_nothing: |v| v == 1, only: "1", kind: None }];
        fields(r#"{"n": 1}"#).finish(&known()).unwrap();
        fields(r#"{"n": null}"#).finish(&known()).unwrap();
        let more = fields(r#"{"n": 2}"#).finish(&known()).unwrap_err();
        assert_eq!((more.param(), more.code()), ("n", "unsupported_field"));
        assert!(more.to_string().ends_with("leave it out or send 1"), "{more}");
        let typo = fields(r#"{"temprature": 1}"#).finish(&known()).unwrap_err();
        assert_eq!((typo.param(), typo.code()), ("temprature", "unknown_field"));
    }
}
