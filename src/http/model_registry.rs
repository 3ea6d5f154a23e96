//! The served models by their ids.
//!
//! A model whose files cannot be used is listed with the reason, which helps more than "no such model". Requests that name no
//! model get the first one, even if it cannot be used: an answer from another model would be worse than an error.

use std::sync::Arc;

use super::error::{ApiError, Unavailable};
use crate::{job::ModelId, text::Text};

/// What Ollama's clients add to names.
const LATEST: &str = ":latest";

/// A model that is served, or the reason why not.
pub(crate) type ModelEntry = Result<Arc<Text>, Unavailable>;

/// The tokenizers and chat templates of all models. They are small, so they stay loaded whichever model the worker has loaded:
/// invalid requests are refused before they are queued.
#[derive(Clone)]
pub struct ModelRegistry {
    /// The first is the default model.
    entries: Arc<[ModelEntry]>,
}

impl From<Arc<Text>> for ModelRegistry {
    fn from(only: Arc<Text>) -> Self {
        Self::new(vec![Ok(only)])
    }
}

impl ModelRegistry {
    /// The first of `entries` is the default model; there is at least one.
    #[must_use]
    pub fn new(entries: Vec<Result<Arc<Text>, Unavailable>>) -> Self {
        Self { entries: entries.into() }
    }

    /// Every model, in the order of the settings.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &ModelEntry> {
        self.entries.iter()
    }

    /// The entry of the requested model.
    pub(crate) fn entry(&self, asked: Option<&str>) -> Result<&ModelEntry, ApiError> {
        let found = match asked {
            None => self.entries.first(),
            Some(asked) => self.named(asked).or_else(|| self.named(asked.strip_suffix(LATEST)?)),
        };
        let missing =
            || ApiError::ModelNotFound { asked: asked.unwrap_or_default().to_owned(), served: self.names() };
        found.ok_or_else(missing)
    }

    fn named(&self, name: &str) -> Option<&ModelEntry> {
        self.entries().find(|entry| id(entry) == name)
    }

    /// The requested model, if it can be used.
    pub(crate) fn find(&self, asked: Option<&str>) -> Result<&Arc<Text>, ApiError> {
        self.entry(asked)?.as_ref().map_err(|unavailable| ApiError::ModelUnavailable(unavailable.clone()))
    }

    pub(crate) fn id(&self, asked: &str) -> Result<ModelId, ApiError> {
        self.find(Some(asked)).map(|text| text.card().id.as_str().into())
    }

    /// The ids of the usable models, quoted and separated by commas, for messages.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<_> = self.usable_ids().iter().map(|id| format!("{id:?}")).collect();
        names.join(", ")
    }

    /// The ids of the usable models.
    #[must_use]
    pub fn usable_ids(&self) -> Vec<String> {
        let usable = self.entries().filter(|entry| entry.is_ok());
        usable.map(|entry| id(entry).to_owned()).collect()
    }
}

/// The id of a model.
pub(crate) fn id(entry: &ModelEntry) -> &str {
    match entry {
        Ok(text) => &text.card().id,
        Err(unavailable) => &unavailable.id,
    }
}
