//! The models that are served, by the names that requests call them.

use std::sync::Arc;

use super::error::ApiError;
use crate::{job::ModelId, text::Text};

/// The text sides of all models. All of them are open, whatever the worker has loaded: a tokenizer is small beside its
/// model, and a request is refused before it waits.
#[derive(Clone)]
pub struct Catalogue {
    /// Meant by requests that name none.
    first: Arc<Text>,
    others: Arc<[Arc<Text>]>,
}

impl From<Arc<Text>> for Catalogue {
    fn from(only: Arc<Text>) -> Self {
        Self::new(only, Vec::new())
    }
}

impl Catalogue {
    /// `first` is meant by requests that name no model.
    #[must_use]
    pub fn new(first: Arc<Text>, others: Vec<Arc<Text>>) -> Self {
        Self { first, others: others.into() }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Text>> {
        std::iter::once(&self.first).chain(self.others.iter())
    }

    /// The model that a request asks for.
    pub(super) fn find(&self, asked: Option<&str>) -> Result<&Arc<Text>, ApiError> {
        let Some(asked) = asked else { return Ok(&self.first) };
        let missing = || ApiError::ModelNotFound { asked: asked.to_owned(), served: self.names() };
        self.all().find(|text| text.card().id == asked).ok_or_else(missing)
    }

    pub(super) fn id(&self, asked: &str) -> Result<ModelId, ApiError> {
        self.find(Some(asked)).map(|text| text.card().id.as_str().into())
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.all().map(|text| format!("{:?}", text.card().id)).collect();
        names.join(", ")
    }
}
