//! The served models by their ids.
//!
//! A model whose files cannot be used is listed with the reason, which helps more than "no such model". Requests that name no
//! model get the first one, even if it cannot be used: an answer from another model would be worse than an error.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    adapter_registry::{AdapterRegistry, ServedAdapter},
    error::{ApiError, Unavailable},
};
use crate::{job::ModelId, text::Text};

/// The alias of every name that is not known.
const ANY_NAME: &str = "*";

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
    /// Further names, with the ids that they stand for; `*` is every other name.
    aliases: Arc<BTreeMap<String, String>>,
    /// What is served beside the models.
    pub(crate) adapters: AdapterRegistry,
}

/// An alias cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AliasError {
    /// It stands for a model that is not served.
    #[error("models.aliases: {alias} stands for {model:?}, which is not served; served are {served}")]
    NoModel {
        /// The alias.
        alias: String,
        /// The id that it stands for.
        model: String,
        /// The ids of the usable models.
        served: String,
    },
    /// It is the id of a model.
    #[error("models.aliases: {alias} is the name of a model; choose another alias")]
    IsModel {
        /// The alias.
        alias: String,
    },
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
        Self { entries: entries.into(), aliases: Arc::default(), adapters: AdapterRegistry::default() }
    }

    /// Adds further names, each with the id of its model.
    ///
    /// # Errors
    /// [`AliasError`] when a model does not exist, or has the name already.
    pub fn with_aliases(self, aliases: &[(String, String)]) -> Result<Self, AliasError> {
        for (alias, model) in aliases {
            if self.named(alias).is_some() {
                return Err(AliasError::IsModel { alias: alias.clone() });
            }
            if self.named(model).is_none() {
                let (alias, model, served) = (alias.clone(), model.clone(), self.names());
                return Err(AliasError::NoModel { alias, model, served });
            }
        }
        Ok(Self { aliases: Arc::new(aliases.iter().cloned().collect()), ..self })
    }

    /// Serves adapters beside the models.
    #[must_use]
    pub fn with_adapters(self, adapters: AdapterRegistry) -> Self {
        Self { adapters, ..self }
    }

    /// The id that a name in a request stands for, without the adapter; the name itself if it is unknown.
    pub(crate) fn resolve<'a>(&'a self, name: &'a str) -> &'a str {
        self.split(name).0
    }

    /// The model and the adapter that a name in a request stands for: `MODEL` or `MODEL:ADAPTER`.
    fn split<'a>(&'a self, name: &'a str) -> (&'a str, Option<&'a str>) {
        let exact = |name: &'a str| {
            let known = self.named(name).map(|_| name);
            known.or_else(|| self.aliases.get(name).map(String::as_str))
        };
        if let Some(id) = exact(name).or_else(|| exact(name.strip_suffix(LATEST)?)) {
            return (id, None);
        }
        let parts = name.rsplit_once(':').and_then(|(model, adapter)| Some((exact(model)?, Some(adapter))));
        parts.unwrap_or_else(|| (self.aliases.get(ANY_NAME).map_or(name, String::as_str), None))
    }

    /// The adapter in the name of a requested model.
    pub(crate) fn adapter(&self, asked: Option<&str>) -> Result<Option<Arc<ServedAdapter>>, ApiError> {
        match asked.map(|asked| self.split(asked)) {
            Some((model, Some(name))) => self.adapter_of(model, name).map(Some),
            _ => Ok(None),
        }
    }

    /// The adapter of a model with this name.
    pub(crate) fn adapter_of(&self, model: &str, name: &str) -> Result<Arc<ServedAdapter>, ApiError> {
        self.adapters.find(model, name).ok_or_else(|| {
            let served = self.adapters.of_model(model);
            let served = served.iter().map(|adapter| format!("{:?}", adapter.name)).collect::<Vec<_>>();
            ApiError::AdapterNotFound {
                model: model.to_owned(),
                asked: name.to_owned(),
                served: served.join(", "),
            }
        })
    }

    /// Every model, in the order of the settings.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &ModelEntry> {
        self.entries.iter()
    }

    /// The entry of the requested model.
    pub(crate) fn entry(&self, asked: Option<&str>) -> Result<&ModelEntry, ApiError> {
        let found = match asked {
            None => self.entries.first(),
            Some(asked) => self.named(self.resolve(asked)),
        };
        let missing =
            || ApiError::ModelNotFound { asked: asked.unwrap_or_default().to_owned(), served: self.names() };
        let entry = found.ok_or_else(missing)?;
        self.adapter(asked)?;
        Ok(entry)
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

    /// The usable models.
    pub fn texts(&self) -> impl Iterator<Item = &Arc<Text>> {
        self.entries().filter_map(|entry| entry.as_ref().ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> ModelRegistry {
        let broken = |id: &str| Err(Unavailable { id: id.into(), reason: "damaged".into() });
        ModelRegistry::new(vec![broken("a"), broken("b")])
    }

    #[test]
    fn a_name_is_that_of_a_model_an_alias_or_either_with_latest() {
        let pairs = [("gpt".to_owned(), "b".to_owned())];
        let registry = registry().with_aliases(&pairs).unwrap();
        for (name, id) in
            [("a", "a"), ("gpt", "b"), ("b:latest", "b"), ("gpt:latest", "b"), ("other", "other")]
        {
            assert_eq!(registry.resolve(name), id);
        }
    }

    #[test]
    fn an_asterisk_stands_for_every_other_name() {
        let pairs = [("*".to_owned(), "b".to_owned()), ("gpt".to_owned(), "a".to_owned())];
        let registry = registry().with_aliases(&pairs).unwrap();
        for (name, parts) in [
            ("a", ("a", None)),
            ("gpt", ("a", None)),
            ("other", ("b", None)),
            ("other:latest", ("b", None)),
            ("a:x", ("a", Some("x"))),
        ] {
            assert_eq!(registry.split(name), parts);
        }
    }

    #[test]
    fn an_adapter_follows_the_name_of_its_model_or_an_alias() {
        let registry = registry().with_aliases(&[("gpt".to_owned(), "b".to_owned())]).unwrap();
        for (name, parts) in [
            ("a:x", ("a", Some("x"))),
            ("gpt:x", ("b", Some("x"))),
            ("b:latest", ("b", None)),
            ("other:x", ("other:x", None)),
        ] {
            assert_eq!(registry.split(name), parts);
        }
        let message = registry.adapter(Some("gpt:x")).unwrap_err().to_string();
        assert!(
            message.contains("model \"b\" has no adapter \"x\"") && message.contains("export-adapter"),
            "{message}"
        );
    }

    #[test]
    fn an_alias_of_no_model_and_one_that_is_a_model_are_refused() {
        let refused = |alias: &str, model: &str| {
            registry().with_aliases(&[(alias.to_owned(), model.to_owned())]).err().unwrap().to_string()
        };
        assert!(refused("gpt", "c").contains("gpt stands for \"c\", which is not served"));
        assert!(refused("a", "b").contains("a is the name of a model"));
    }
}
