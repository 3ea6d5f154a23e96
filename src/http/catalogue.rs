//! The models that are served, by the names that requests call them.
//!
//! A model whose files cannot be used is listed as well: its requests get the reason, which helps more than "no such
//! model". Requests that name no model get the first one, even if that cannot be used: an answer from another model would
//! be worse than an error.

use std::sync::Arc;

use super::error::ApiError;
use crate::{job::ModelId, text::Text};

/// A model that is not served because its files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// What requests call it.
    pub id: String,
    /// What is wrong, for clients: without paths of this machine.
    pub reason: String,
}

/// One model.
pub(super) type Entry = Result<Arc<Text>, Unavailable>;

/// The text sides of all models. All of them are open, whatever the worker has loaded: a tokenizer is small beside its
/// model, and a request is refused before it waits.
#[derive(Clone)]
pub struct Catalogue {
    /// The first is the default model.
    entries: Arc<[Entry]>,
}

impl From<Arc<Text>> for Catalogue {
    fn from(only: Arc<Text>) -> Self {
        Self::new(vec![Ok(only)])
    }
}

impl Catalogue {
    /// The first of `entries`, of which there is at least one, is the default model.
    #[must_use]
    pub fn new(entries: Vec<Result<Arc<Text>, Unavailable>>) -> Self {
        Self { entries: entries.into() }
    }

    /// Every model, in the order of the settings.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The entry of the model that a request asks for.
    pub(super) fn entry(&self, asked: Option<&str>) -> Result<&Entry, ApiError> {
        let found = match asked {
            None => self.entries.first(),
            Some(asked) => self.entries().find(|entry| id(entry) == asked),
        };
        let missing =
            || ApiError::ModelNotFound { asked: asked.unwrap_or_default().to_owned(), served: self.names() };
        found.ok_or_else(missing)
    }

    /// The model that a request asks for, if it can be used.
    pub(super) fn find(&self, asked: Option<&str>) -> Result<&Arc<Text>, ApiError> {
        self.entry(asked)?.as_ref().map_err(|unavailable| ApiError::ModelUnavailable(unavailable.clone()))
    }

    pub(super) fn id(&self, asked: &str) -> Result<ModelId, ApiError> {
        self.find(Some(asked)).map(|text| text.card().id.as_str().into())
    }

    /// The names of the models that can be used, as a list to read.
    #[must_use]
    pub fn names(&self) -> String {
        let usable = self.entries().filter(|entry| entry.is_ok());
        let names: Vec<_> = usable.map(|entry| format!("{:?}", id(entry))).collect();
        names.join(", ")
    }
}

/// What requests call a model.
pub(super) fn id(entry: &Entry) -> &str {
    match entry {
        Ok(text) => &text.card().id,
        Err(unavailable) => &unavailable.id,
    }
}
