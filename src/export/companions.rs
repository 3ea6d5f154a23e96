//! The files beside the weights: tokenizer, chat template and generation settings.
//!
//! An adapter that was trained with tokens or a template of its own brings them, so its files win over the base's.

use std::{
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    regular,
    settings::{Settings, SettingsError},
    staging::{Staging, StagingError},
};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Where end tokens are said, if anywhere.
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// Why the files beside the weights cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CompanionsError {
    /// The tokenizer is only there in SentencePiece's format.
    #[error(
        "{}: only tokenizer.model is there, and {TOKENIZER} is needed; in Python, \
         AutoTokenizer.from_pretrained(dir).save_pretrained(dir) writes it",
        dir.display()
    )]
    OnlySentencePiece {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no tokenizer.
    #[error("{}: {TOKENIZER} is not there; download the whole checkpoint", dir.display())]
    NoTokenizer {
        /// The directory.
        dir: PathBuf,
    },
    /// One of them cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of them is not what it should be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The output cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// The files that were found, each where it is to be taken from.
#[derive(Debug)]
pub(super) struct Companions {
    copied: Vec<(&'static str, PathBuf)>,
    /// A template that only exists within the tokenizer's settings.
    template: Option<String>,
    /// The settings of generation, if there are any.
    pub generation: Option<Settings>,
}

impl Companions {
    /// Looks in `dirs`, the first that has a file wins.
    pub(super) fn find(dirs: &[&Path]) -> Result<Self, CompanionsError> {
        let first = |name: &'static str| {
            dirs.iter()
                .map(|dir| dir.join(name))
                .find(|path| regular::is_there(path))
                .map(|path| (name, path))
        };
        let tokenizer = first(TOKENIZER).ok_or_else(|| no_tokenizer(dirs))?;
        let generation = first(GENERATION_CONFIG);
        let (template_file, template) = match find_template(dirs)? {
            Template::File(path) => (Some((CHAT_TEMPLATE, path)), None),
            Template::Text(text) => (None, Some(text)),
            Template::None => (None, None),
        };
        let config = first(TOKENIZER_CONFIG);
        for (_, path) in [&tokenizer].into_iter().chain(&config) {
            check_json(path)?;
        }
        let copied = [Some(tokenizer), config, template_file, generation.clone()];
        let generation = generation.map(|(_, path)| Settings::read(&path)).transpose()?;
        Ok(Self { copied: copied.into_iter().flatten().collect(), template, generation })
    }

    /// The files that are read.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.copied.iter().map(|(_, path)| path.clone())
    }

    /// Copies them to `staging`; a template that only exists within the tokenizer's settings becomes a file.
    pub(super) fn write(&self, staging: &Staging) -> Result<(), CompanionsError> {
        for (name, path) in &self.copied {
            let mut file =
                regular::open(path).map_err(|source| CompanionsError::Read { path: path.clone(), source })?;
            staging.copy(name, &mut file)?;
        }
        if let Some(template) = &self.template {
            staging.write(CHAT_TEMPLATE, template.as_bytes())?;
        }
        Ok(())
    }
}

/// A file that is cut off would only be noticed by whoever serves the model.
fn check_json(path: &Path) -> Result<(), CompanionsError> {
    let file = regular::open(path).map_err(|source| CompanionsError::Read { path: path.into(), source })?;
    let parsed: Result<IgnoredAny, _> = serde_json::from_reader(BufReader::new(file));
    Ok(parsed.map(drop).map_err(|source| SettingsError::Parse { path: path.into(), source })?)
}

fn no_tokenizer(dirs: &[&Path]) -> CompanionsError {
    if let Some(dir) = dirs.iter().find(|dir| regular::is_there(&dir.join("tokenizer.model"))) {
        return CompanionsError::OnlySentencePiece { dir: dir.to_path_buf() };
    }
    CompanionsError::NoTokenizer { dir: dirs.last().map(|dir| dir.to_path_buf()).unwrap_or_default() }
}

enum Template {
    None,
    File(PathBuf),
    Text(String),
}

/// In each directory the file wins over the text within the tokenizer's settings, as it does in transformers.
fn find_template(dirs: &[&Path]) -> Result<Template, SettingsError> {
    for dir in dirs {
        let file = dir.join(CHAT_TEMPLATE);
        if regular::is_there(&file) {
            return Ok(Template::File(file));
        }
        let config = dir.join(TOKENIZER_CONFIG);
        if regular::is_there(&config)
            && let Some(text) = template_within(&Settings::read(&config)?)?
        {
            return Ok(Template::Text(text));
        }
    }
    Ok(Template::None)
}

/// `chat_template` is a string, or a list of named ones, of which `default` is for chat.
fn template_within(config: &Settings) -> Result<Option<String>, SettingsError> {
    const FIELD: &str = "chat_template";
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match config.get(FIELD) {
        None => Ok(None),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
            let template = default.and_then(|entry| entry.get("template")).and_then(text);
            template.map(Some).ok_or_else(|| config.wrong(FIELD, "a list with a template named default"))
        }
        Some(value) => text(value).map(Some).ok_or_else(|| config.wrong(FIELD, "a string")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::export::Existing;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    fn written(dirs: &[&Path], name: &str) -> Option<String> {
        let out = tempfile::tempdir().unwrap();
        let staging = Staging::new(&out.path().join("model"), Existing::Keep).unwrap();
        Companions::find(dirs).unwrap().write(&staging).unwrap();
        fs::read_to_string(staging.path(name)).ok()
    }

    #[test]
    fn the_adapters_files_win() {
        let base = dir(&[(TOKENIZER, "1"), (TOKENIZER_CONFIG, r#"{"chat_template": "base"}"#)]);
        let adapter = dir(&[(TOKENIZER, "2"), (CHAT_TEMPLATE, "adapter")]);
        let dirs = [adapter.path(), base.path()];
        assert_eq!(written(&dirs, TOKENIZER).unwrap(), "2");
        assert_eq!(written(&dirs, CHAT_TEMPLATE).unwrap(), "adapter");
        assert_eq!(written(&[base.path()], CHAT_TEMPLATE).unwrap(), "base");
    }

    #[test]
    fn a_list_of_templates_gives_the_default_one() {
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        let base = dir(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, list)]);
        assert_eq!(written(&[base.path()], CHAT_TEMPLATE).unwrap(), "d");
    }

    #[test]
    fn a_model_may_have_neither_template_nor_generation_settings() {
        let base = dir(&[(TOKENIZER, "{}")]);
        assert_eq!(written(&[base.path()], CHAT_TEMPLATE), None);
        assert!(Companions::find(&[base.path()]).unwrap().generation.is_none());
    }

    #[test]
    fn a_tokenizer_in_another_format_is_refused_with_the_way_out() {
        let error = |files| Companions::find(&[dir(files).path()]).unwrap_err().to_string();
        assert!(error(&[("tokenizer.model", "")]).contains("save_pretrained"));
        assert!(error(&[]).contains("tokenizer.json is not there"));
    }
}
