//! A request's body, taken apart field by field.
//!
//! Every field that a route understands is taken out by name; what then remains is an error, so that nothing is ever
//! ignored in silence and no list of accepted names can drift from the code. `null` is the same as absent, whatever the
//! field is called and wherever it stands. A whole number may be written as `5`, `5.0` or `5e0`. Errors name the field
//! with its path (`messages[2].content`), the value and the limit.
//!
//! With `server.unknown_fields = warn`, fields that eka does not have are left out and noted in [`Ignored`] instead.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::{
    compat::{Off, OtherField},
    ignored_fields::Ignored,
    unique_keys,
};
use crate::{config::UnknownFields, http::field_error::FieldError};

/// What is left of a JSON object, and where in the body it stands.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    object: Map<String, Value>,
    /// Empty at the top, else for example `messages[2].`.
    prefix: String,
    /// `None` where unknown fields are refused. Objects within the body share it.
    ignored: Option<Ignored>,
}

impl Fields {
    /// The fields of the body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self { object: unique_keys::object(body)?, prefix: String::new(), ignored: None })
    }

    /// With this treatment of fields that eka does not have; without, they are refused.
    pub(crate) fn with_unknown(self, unknown: UnknownFields) -> Self {
        let ignored = match unknown {
            UnknownFields::Refuse => None,
            UnknownFields::Warn => Some(Ignored::default()),
        };
        Self { ignored, ..self }
    }

    /// The fields of an object within this one, at `path` in the body.
    pub(crate) fn nested(&self, value: Value, path: &str) -> Result<Self, FieldError> {
        match value {
            Value::Object(object) => {
                Ok(Self { object, prefix: format!("{path}."), ignored: self.ignored.clone() })
            }
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Takes an object that must be there.
    pub(crate) fn require_nested(&mut self, name: &str) -> Result<Self, FieldError> {
        let value = self.require(name)?;
        self.nested(value, &self.path(name))
    }

    /// The full path of a field of this object.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether a field is there and not null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A field that is there and not null, left where it is.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        #[cfg(test)]
        asked::note(&self.prefix, name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field of any type; `None` when it is absent or null.
    ///
    /// In constant time: `shift_remove` would keep the order of the others, and move up to all of them for each field taken.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, FieldError> {
        #[cfg(test)]
        asked::note(&self.prefix, name);
        match self.object.swap_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => typed(value, &self.path(name)).map(Some),
        }
    }

    /// Takes a field that must be there.
    pub(crate) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, FieldError> {
        self.take(name)?.ok_or_else(|| FieldError::Missing { param: self.path(name) })
    }

    /// Takes a number within `range`.
    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, FieldError> {
        let Some(found) = self.take::<Number>(name)? else { return Ok(None) };
        number_within(&found, &self.path(name), &range).map(Some)
    }

    /// Takes a whole number within `range`.
    pub(crate) fn whole(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, FieldError> {
        let Some(found) = self.take::<Number>(name)? else { return Ok(None) };
        let value = whole_of(&found).and_then(|value| u64::try_from(value).ok());
        let value = value.filter(|value| range.contains(value));
        value.map(Some).ok_or_else(|| out_of_range(&self.path(name), &found, &range))
    }

    /// Takes an array of token ids.
    pub(crate) fn ids(&mut self, name: &str) -> Result<Option<Vec<u32>>, FieldError> {
        let Some(items) = self.take::<Vec<Value>>(name)? else { return Ok(None) };
        ids_of(items, &self.path(name)).map(Some)
    }

    /// Where the fields are noted that are ignored, here and in objects within.
    pub(crate) fn ignored(&self) -> Ignored {
        self.ignored.clone().unwrap_or_default()
    }

    /// Checks that nothing is left but fields of `others` that are off.
    pub(crate) fn finish(self, others: &[&[OtherField]]) -> Result<(), FieldError> {
        for (name, value) in &self.object {
            match (self.check_left(name, value, others), &self.ignored) {
                (Ok(()), _) => {}
                (Err(_), Some(ignored)) => ignored.note(&self.path(name)),
                (Err(error), None) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether a field that no route takes changes nothing in an answer.
    fn check_left(&self, name: &str, value: &Value, others: &[&[OtherField]]) -> Result<(), FieldError> {
        if value.is_null() {
            return Ok(());
        }
        let param = || self.path(name);
        match others.iter().copied().flatten().find(|field| field.name == name) {
            None => Err(FieldError::Unknown { param: param() }),
            Some(field) if field.off.allows(value) => Ok(()),
            Some(OtherField { off: Off::Any(kind), .. }) => {
                Err(wrong_type(&param(), kind.described(), value))
            }
            Some(field) => Err(FieldError::Unsupported { param: param(), instead: field.instead() }),
        }
    }
}

/// A number within `range`; the error names it `param`.
pub(crate) fn number_within(
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

/// The whole number that this is, however it is written; `None` where it has a fraction.
pub(crate) fn whole_of(number: &Number) -> Option<i128> {
    let written = number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from));
    written.or_else(|| number.as_f64().and_then(whole))
}

#[expect(clippy::cast_possible_truncation, reason = "it has no fraction, and the cast saturates")]
fn whole(number: f64) -> Option<i128> {
    (number.fract() == 0.0).then_some(number as i128)
}

/// Reads an array of token ids; an error names the place within it.
pub(crate) fn ids_of(items: Vec<Value>, path: &str) -> Result<Vec<u32>, FieldError> {
    let id = |(place, item): (usize, Value)| {
        let id = item.as_number().and_then(whole_of).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| FieldError::Type {
            param: format!("{path}[{place}]"),
            message: format!("expected a token id, found {item}"),
        })
    };
    items.into_iter().enumerate().map(id).collect()
}

/// Reads a value as a `T`; an error names the place within it.
pub(crate) fn typed<T: DeserializeOwned>(value: Value, path: &str) -> Result<T, FieldError> {
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
pub(crate) fn wrong_type(path: &str, expected: &str, found: &Value) -> FieldError {
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
pub(crate) mod asked {
    use std::{cell::RefCell, collections::BTreeSet};

    thread_local! {
        static NAMES: RefCell<BTreeSet<String>> = RefCell::default();
    }

    pub(crate) fn note(prefix: &str, name: &str) {
        if prefix.is_empty() {
            NAMES.with_borrow_mut(|names| names.insert(name.to_owned()));
        }
    }

    /// Those since it was last called.
    pub(crate) fn take() -> BTreeSet<String> {
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
        let mut fields = fields("{}").nested(Value::Object(object), "logit_bias").unwrap();
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
        let mut nested = fields("{}").nested(serde_json::json!({"role": 7}), "messages[2]").unwrap();
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
    fn whole_numbers_may_be_written_with_a_point_or_an_exponent() {
        for (body, found) in [(r#"{"n": 5.0}"#, 5), (r#"{"n": 1e2}"#, 100), (r#"{"n": -0.0}"#, 0)] {
            assert_eq!(fields(body).whole("n", 0..=100).unwrap(), Some(found), "{body}");
        }
        for body in [r#"{"n": 5.5}"#, r#"{"n": 1e40}"#, r#"{"n": -1.0}"#] {
            assert_eq!(fields(body).whole("n", 0..=100).unwrap_err().code(), "invalid_value", "{body}");
        }
        assert_eq!(fields(r#"{"ids": [1, 2.0, 3e0]}"#).ids("ids").unwrap(), Some(vec![1, 2, 3]));
        for ids in ["[1, 2.5]", "[1, -1]", "[1, 4294967296]", "[1, \"2\"]"] {
            let error = fields(&format!("{{\"ids\": {ids}}}")).ids("ids").unwrap_err();
            assert_eq!((error.param(), error.code()), ("ids[1]", "invalid_type"));
        }
    }

    const OTHERS: &[OtherField] = &[OtherField::off("mirostat", &["0"], "; eka does not have it")];

    #[test]
    fn a_field_that_no_route_takes_is_refused_unless_it_is_null_or_off() {
        for body in
            [r#"{"mirostat": 0}"#, r#"{"mirostat": 0.0}"#, r#"{"mirostat": null}"#, r#"{"new": null}"#]
        {
            fields(body).finish(&[OTHERS]).unwrap();
        }
        let more = fields(r#"{"mirostat": 2}"#).finish(&[OTHERS]).unwrap_err();
        assert_eq!((more.param(), more.code()), ("mirostat", "unsupported_field"));
        assert!(more.to_string().ends_with("leave it out or send 0; eka does not have it"), "{more}");
        let typo = fields(r#"{"temprature": 1}"#).finish(&[OTHERS]).unwrap_err();
        assert_eq!((typo.param(), typo.code()), ("temprature", "unknown_field"));
    }

    #[test]
    fn with_warn_fields_are_noted_instead_of_refused_nested_ones_too() {
        let all = fields(r#"{"mirostat": 2, "seed": null, "new": 1}"#).with_unknown(UnknownFields::Warn);
        all.nested(serde_json::json!({ "b": 1, "c": null }), "a[0]").unwrap().finish(&[]).unwrap();
        let ignored = all.ignored();
        all.finish(&[OTHERS]).unwrap();
        let header = ignored.to_header().unwrap();
        assert_eq!(header.to_str().unwrap(), "a[0].b, mirostat, new");
    }
}
