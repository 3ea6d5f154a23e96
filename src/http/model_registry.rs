//! The models that are served, by the names that requests call them.
//!
//! A model whose files cannot be used is listed as well: its requests get the reason, which helps more than "no such
//! model". Requests that name no model get the first one, even if that cannot be used: an answer from another model would
//! be worse than an error.

use std::sync::Arc;

use super::error::{ApiError, Unavailable};
use crate::{job::ModelId, text::Text};

/// One model.
pub(crate) type Entry = Result<Arc<Text>, Unavailable>;

/// The text sides of all models. All of them are open, whatever the worker has loaded: a tokenizer is small beside its
/// model, and a request is refused before it waits.
#[derive(Clone)]
pub struct ModelRegistry {
    /// The first is the default model.
    entries: Arc<[Entry]>,
}

impl From<Arc<Text>> for ModelRegistry {
    fn from(only: Arc<Text>) -> Self {
        Self::new(vec![Ok(only)])
    }
}

impl ModelRegistry {
    /// The first of `entries`, of which there is at least one, is the default model.
    #[must_use]
    pub fn new(entries: Vec<Result<Arc<Text>, Unavailable>>) -> Self {
        Self { entries: entries.into() }
    }

    /// Every model, in the order of the settings.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The entry of the model that a request asks for.
    pub(crate) fn entry(&self, asked: Option<&str>) -> Result<&Entry, ApiError> {
        let found = match asked {
            None => self.entries.first(),
            Some(asked) => self.entries().find(|entry| id(entry) == asked),
        };
        let missing =
            || ApiError::ModelNotFound { asked: asked.unwrap_or_default().to_owned(), served: self.names() };
        found.ok_or_else(missing)
    }

    /// The model that a request asks for, if it can be used.
    pub(crate) fn find(&self, asked: Option<&str>) -> Result<&Arc<Text>, ApiError> {
        self.entry(asked)?.as_ref().map_err(|unavailable| ApiError::ModelUnavailable(unavailable.clone()))
    }

    pub(crate) fn id(&self, asked: &str) -> Result<ModelId, ApiError> {
        self.find(Some(asked)).map(|text| text.card().id.as_str().into())
    }

    /// The names of the models that can be used, as a list to read.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<_> = self.usable_ids().iter().map(|id| format!("{id:?}")).collect();
        names.join(", ")
    }

    /// The names of the models that can be used.
    #[must_use]
    pub fn usable_ids(&self) -> Vec<String> {
        let usable = self.entries().filter(|entry| entry.is_ok());
        usable.map(|entry| id(entry).to_owned()).collect()
    }
}

/// What requests call a model.
pub(crate) fn id(entry: &Entry) -> &str {
    match entry {
        Ok(text) => &text.card().id,
        Err(unavailable) => &unavailable.id,
    }
}
