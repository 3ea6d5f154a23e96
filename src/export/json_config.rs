//! Reads the JSON configuration of a checkpoint or an adapter.
//!
//! A configuration may come from any program: fields are missing, have a different type than in earlier versions, or hold
//! impossible sizes. So the error of every accessor names the file, the field, its value and what was expected, and callers
//! get plain numbers within bounds. `null` counts as absent, as it does in transformers, except for defaults.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{files, manifest::MAX_DIMENSION};

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JsonConfigError {
    /// It is missing or cannot be read.
    #[error("{}: {source}; expected a checkpoint's directory with this file, which this user may read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is far larger than any such file.
    #[error("{}: larger than {}, the limit for a configuration; download it again", path.display(), files::MAX_JSON)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not a JSON object.
    #[error("{}: {source}; download it again", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// A field that has no default is absent.
    #[error("{}: {field} is missing, expected {expected}; take the file from the model's original repository", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field, with the sections it lies in.
        field: String,
        /// The values allowed.
        expected: String,
    },
    /// A field holds something else than it should.
    #[error("{}: {field} is {value}, expected {expected}; take the file from the model's original repository", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The field, with the sections it lies in.
        field: String,
        /// The value found.
        value: String,
        /// The values allowed.
        expected: String,
    },
    /// A field asks for something that this version cannot do.
    #[error("{}: {field} is {value}, which eka does not support; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field, with the sections it lies in.
        field: String,
        /// The value found.
        value: String,
        /// The values supported.
        supported: String,
    },
}

/// A JSON object, with where it came from.
#[derive(Clone, Debug)]
pub(super) struct JsonConfig {
    path: PathBuf,
    section: String,
    fields: Map<String, Value>,
}

impl JsonConfig {
    /// Reads the object in the file at `path`.
    pub(super) fn read(path: &Path) -> Result<Self, JsonConfigError> {
        let json = files::read(path, files::MAX_JSON).map_err(|source| match source.kind() {
            io::ErrorKind::FileTooLarge => JsonConfigError::TooLarge { path: path.into() },
            _ => JsonConfigError::Read { path: path.into(), source },
        })?;
        Self::parse(path, &json)
    }

    /// Parses `json`, which came from `path`.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self, JsonConfigError> {
        let fields = serde_json::from_slice(json)
            .map_err(|source| JsonConfigError::Parse { path: path.into(), source })?;
        Ok(Self { path: path.into(), section: String::new(), fields })
    }

    /// The file that this configuration was read from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has no fields.
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Every field as it was written, also if it is null: some defaults apply only where a field is absent.
    pub(super) const fn whole(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Names and values of all fields that are not null.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.as_str(), value))
    }

    /// The field's value, unless it is absent or null.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    /// The object in `field`, if there is one.
    pub(super) fn section(&self, field: &str) -> Result<Option<Self>, JsonConfigError> {
        self.read_as(field, "an object", Value::as_object).map(|found| {
            found.map(|fields| Self {
                path: self.path.clone(),
                section: format!("{}{field}.", self.section),
                fields: fields.clone(),
            })
        })
    }

    /// A size of at least one.
    pub(super) fn size(&self, field: &str) -> Result<usize, JsonConfigError> {
        self.optional_size(field)?.ok_or_else(|| self.missing(field, SIZE))
    }

    /// A number of things, which may be none.
    pub(super) fn count(&self, field: &str) -> Result<usize, JsonConfigError> {
        let count = self.read_as(field, COUNT, |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= MAX_DIMENSION)
        })?;
        count.ok_or_else(|| self.missing(field, COUNT))
    }

    /// A size of at least one, if the field is there.
    pub(super) fn optional_size(&self, field: &str) -> Result<Option<usize>, JsonConfigError> {
        self.read_as(field, SIZE, |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_DIMENSION).contains(n))
        })
    }

    /// A positive number.
    pub(super) fn positive(&self, field: &str) -> Result<f32, JsonConfigError> {
        self.optional_positive(field)?.ok_or_else(|| self.missing(field, POSITIVE))
    }

    /// A positive number, if the field is there.
    pub(super) fn optional_positive(&self, field: &str) -> Result<Option<f32>, JsonConfigError> {
        self.read_as(field, POSITIVE, |value| {
            value.as_f64().map(to_single).filter(|n| n.is_finite() && *n > 0.0)
        })
    }

    /// A list of positive numbers; nothing when the field is absent.
    pub(super) fn positives(&self, field: &str) -> Result<Vec<f32>, JsonConfigError> {
        let number = |value: &Value| value.as_f64().map(to_single).filter(|n| n.is_finite() && *n > 0.0);
        let numbers = self.read_as(field, "a list of positive numbers", |value| {
            value.as_array()?.iter().map(number).collect::<Option<_>>()
        })?;
        Ok(numbers.unwrap_or_default())
    }

    /// A list of strings, if the field is there.
    pub(super) fn texts(&self, field: &str) -> Result<Option<Vec<&str>>, JsonConfigError> {
        self.read_as(field, "a list of strings", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// The same configuration, with `defaults`, a JSON object, for absent fields. A null field counts as present here.
    pub(super) fn or(mut self, defaults: Value) -> Self {
        if let Value::Object(defaults) = defaults {
            for (field, value) in defaults {
                self.fields.entry(field).or_insert(value);
            }
        }
        self
    }

    /// The same configuration, with the field called `alias` under the name `field`, unless that has a value.
    pub(super) fn renamed(mut self, alias: &str, field: &str) -> Self {
        if self.get(field).is_none()
            && let Some(value) = self.fields.remove(alias)
        {
            self.fields.insert(field.into(), value);
        }
        self
    }

    /// The same configuration, with another value for `field`.
    pub(super) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.into(), value.into());
        self
    }

    /// A truth value; `default` when the field is absent.
    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool, JsonConfigError> {
        Ok(self.read_as(field, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string, if the field is there.
    pub(super) fn text(&self, field: &str) -> Result<Option<&str>, JsonConfigError> {
        self.read_as(field, "a string", Value::as_str)
    }

    /// One id or a list of ids; nothing when the field is absent.
    pub(super) fn ids(&self, field: &str) -> Result<Vec<u32>, JsonConfigError> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.read_as(field, "a token id or a list of them", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// The error for a `field` that has no default.
    pub(super) fn missing(&self, field: &str, expected: impl Into<String>) -> JsonConfigError {
        JsonConfigError::Missing {
            path: self.path.clone(),
            field: self.full_name(field),
            expected: expected.into(),
        }
    }

    /// The error for a `field` with an invalid value.
    pub(super) fn wrong(&self, field: &str, expected: impl Into<String>) -> JsonConfigError {
        JsonConfigError::Wrong {
            path: self.path.clone(),
            field: self.full_name(field),
            value: self.shown(field),
            expected: expected.into(),
        }
    }

    /// The error for a `field` whose value is not supported.
    pub(super) fn unsupported(&self, field: &str, supported: impl Into<String>) -> JsonConfigError {
        JsonConfigError::Unsupported {
            path: self.path.clone(),
            field: self.full_name(field),
            value: self.shown(field),
            supported: supported.into(),
        }
    }

    fn full_name(&self, field: &str) -> String {
        format!("{}{field}", self.section)
    }

    fn shown(&self, field: &str) -> String {
        const MAX_SHOWN: usize = 80;
        let value = self.fields.get(field).unwrap_or(&Value::Null).to_string();
        match value.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        }
    }

    fn read_as<'a, T>(
        &'a self,
        field: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, JsonConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(field, expected)),
        }
    }
}

const SIZE: &str = "a whole number from 1 to 16777216";
const COUNT: &str = "a whole number from 0 to 16777216";
const POSITIVE: &str = "a positive number";

#[expect(
    clippy::cast_possible_truncation,
    reason = "transformers computes with these in single precision too"
)]
fn to_single(n: f64) -> f32 {
    n as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> JsonConfig {
        JsonConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap()
    }

    #[test]
    fn a_wrong_value_is_named_with_its_file_its_field_and_the_expected_one() {
        let message = settings(r#"{"hidden_size": "64"}"#).size("hidden_size").unwrap_err().to_string();
        for part in ["config.json", "hidden_size", "\"64\"", "whole number"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn sizes_that_no_model_has_are_refused() {
        for value in ["0", "-1", "1.5", "16777217", "99999999999999999999999", "[]"] {
            let settings = settings(&format!(r#"{{"n": {value}}}"#));
            assert!(settings.size("n").is_err(), "{value} was taken for a size");
        }
    }

    #[test]
    fn null_is_absent() {
        let settings = settings(r#"{"head_dim": null}"#);
        assert_eq!(settings.optional_size("head_dim").unwrap(), None);
        assert!(settings.fields().next().is_none());
    }

    #[test]
    fn a_field_within_a_section_is_named_with_it() {
        let rope = settings(r#"{"rope": {"factor": -8}}"#).section("rope").unwrap().unwrap();
        assert!(rope.positive("factor").unwrap_err().to_string().contains("rope.factor is -8"));
    }

    #[test]
    fn an_endless_value_is_shown_by_its_beginning() {
        let long = settings(&format!(r#"{{"n": "{}"}}"#, "é".repeat(1000)));
        assert!(long.size("n").unwrap_err().to_string().len() < 400);
    }
}
