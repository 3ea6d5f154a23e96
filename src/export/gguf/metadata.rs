//! Typed access to the metadata of a GGUF file.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    error::GgufError,
    reader::{Header, Value},
};

/// The metadata of a model, and which tensors it has.
#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    /// `general.architecture`, which begins the keys of hyperparameters.
    pub architecture: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Takes the metadata of `header`.
    pub(super) fn new(header: &mut Header) -> Result<Self, GgufError> {
        let values = std::mem::take(&mut header.metadata);
        let mut metadata = Self { path: header.path.clone(), architecture: String::new(), values };
        metadata.architecture = metadata.required("general.architecture", "a string", Value::as_text)?.into();
        Ok(metadata)
    }

    /// Keys that begin with the architecture's name, without it.
    pub(super) fn hyperparameters(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().filter_map(|(key, value)| {
            let rest = key.strip_prefix(&*self.architecture)?.strip_prefix('.')?;
            Some((rest, value))
        })
    }

    /// A hyperparameter that is a whole number; a list counts if all of its numbers are equal.
    pub(super) fn size(&self, name: &str) -> Result<Option<usize>, GgufError> {
        self.optional(&self.key(name), "a whole number, or a list of equal ones", Value::as_size)
    }

    /// The same, where a model without it makes no sense.
    pub(super) fn required_size(&self, name: &str) -> Result<usize, GgufError> {
        self.required(&self.key(name), "a whole number, or a list of equal ones", Value::as_size)
    }

    /// A hyperparameter that is a list of truth values, one for each layer.
    pub(super) fn flags(&self, name: &str) -> Result<Option<Vec<bool>>, GgufError> {
        let is_list = |value: &Value| matches!(value, Value::Numbers(_));
        let key = self.key(name);
        if !self.values.get(&key).is_some_and(is_list) {
            return Ok(None);
        }
        self.optional(&key, "a list of true and false", |value| match value {
            Value::Numbers(flags) => {
                flags.iter().map(|flag| (*flag == 0.0 || *flag == 1.0).then_some(*flag == 1.0)).collect()
            }
            _ => None,
        })
    }

    /// A hyperparameter that is a number.
    pub(super) fn float(&self, name: &str) -> Result<Option<f64>, GgufError> {
        self.optional(&self.key(name), "a number", Value::as_float)
    }

    /// A hyperparameter that is true or false.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, GgufError> {
        self.optional(&self.key(name), "true or false", Value::as_flag)
    }

    /// A hyperparameter that is a string.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, GgufError> {
        self.optional(&self.key(name), "a string", Value::as_text)
    }

    /// A setting of the tokenizer that is a string.
    pub(super) fn tokenizer_text(&self, name: &str) -> Result<Option<&str>, GgufError> {
        self.optional(&format!("tokenizer.{name}"), "a string", Value::as_text)
    }

    /// A token id.
    pub(super) fn token_id(&self, name: &str) -> Result<Option<usize>, GgufError> {
        self.optional(&format!("tokenizer.ggml.{name}"), "a token id", Value::as_size)
    }

    /// A setting of the tokenizer that is true or false.
    pub(super) fn tokenizer_flag(&self, name: &str) -> Result<Option<bool>, GgufError> {
        self.optional(&format!("tokenizer.ggml.{name}"), "true or false", Value::as_flag)
    }

    /// A list of the tokenizer's strings.
    pub(super) fn tokenizer_texts(&self, name: &str) -> Result<Option<&[String]>, GgufError> {
        self.optional(&format!("tokenizer.ggml.{name}"), "a list of strings", |value| match value {
            Value::Texts(texts) => Some(&**texts),
            _ => None,
        })
    }

    /// A list of the tokenizer's numbers.
    pub(super) fn tokenizer_numbers(&self, name: &str) -> Result<Option<&[f64]>, GgufError> {
        self.optional(&format!("tokenizer.ggml.{name}"), "a list of numbers", |value| match value {
            Value::Numbers(numbers) => Some(&**numbers),
            _ => None,
        })
    }

    /// The error for a hyperparameter whose value is not supported.
    pub(super) fn unsupported(
        &self,
        key: &str,
        value: impl ToString,
        supported: impl Into<String>,
    ) -> GgufError {
        GgufError::Unsupported {
            path: self.path.clone(),
            key: key.into(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }

    /// The error for a tensor that has no place in the model.
    pub(super) fn unknown_tensor(&self, name: &str) -> GgufError {
        GgufError::UnknownTensor {
            path: self.path.clone(),
            tensor: name.into(),
            architecture: self.architecture.clone(),
        }
    }

    /// The error for a value that is missing or wrong.
    pub(super) fn wrong(&self, key: &str, found: impl ToString, expected: &str) -> GgufError {
        GgufError::Value {
            path: self.path.clone(),
            key: key.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// The full key of a hyperparameter.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn optional<'a, T: 'a>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, value, expected))
    }

    pub(super) fn required<'a, T: 'a>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, GgufError> {
        self.optional(key, expected, read)?.ok_or_else(|| self.wrong(key, "missing", expected))
    }
}

impl Value {
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn as_flag(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    fn as_size(&self) -> Option<usize> {
        match self {
            Self::Unsigned(value) => usize::try_from(*value).ok(),
            Self::Signed(value) => usize::try_from(*value).ok(),
            Self::Numbers(values) => {
                let first = *values.first()?;
                let is_size = first >= 0.0 && first < f64::from(u32::MAX) && first.fract() == 0.0;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
                (is_size && values.iter().all(|value| *value == first)).then_some(first as usize)
            }
            _ => None,
        }
    }
}
