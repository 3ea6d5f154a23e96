//! The files beside the weights: tokenizer, chat templates and generation settings.
//!
//! An adapter that was trained with new tokens or templates contains them, so its files win over the base's. All templates
//! come from the first directory that has any: the adapter's `default` and the base's `tool_use` could have different
//! formats. The export has a file for each, independent of where it was found: `chat_template.jinja`, and
//! `additional_chat_templates/tool_use.jinja` for conversations with tools. The order is that of `transformers`.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    json_config::{JsonConfig, JsonConfigError},
    staging::{Staging, StagingError},
    tokenizer::{self, OtherTokenizer, TokenizerError},
};
use crate::{
    files,
    manifest::layout::{
        GENERATION_CONFIG, MAX_TEMPLATE, MAX_TOKENIZER, PROCESSOR_TEMPLATE, SPECIAL_TOKENS_MAP, TEMPLATE,
        TOKENIZER, TOKENIZER_CONFIG, TOOL_TEMPLATE,
    },
    units::Bytes,
};

/// Templates by the files that they become, with their names in JSON files.
const TEMPLATES: [(&str, &str); 2] = [(TEMPLATE, "default"), (TOOL_TEMPLATE, "tool_use")];

/// Why the files beside the weights cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerFilesError {
    /// The tokenizer is in other files, which cannot be converted.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer is missing.
    #[error(
        "{}: {TOKENIZER} is not there, nor tokenizer.model, vocab.json with merges.txt, or tekken.json; download the whole checkpoint",
        dir.display()
    )]
    NoTokenizer {
        /// The directory.
        dir: PathBuf,
    },
    /// One of them cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// One of them is invalid.
    #[error(transparent)]
    JsonConfig(#[from] JsonConfigError),
    /// The output cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// The files that were found, each where it is to be taken from.
#[derive(Debug)]
pub(super) struct TokenizerFiles {
    /// Files by their names in a model directory.
    copied: Vec<(&'static str, PathBuf)>,
    /// Templates that only exist within JSON files, by the names of the files that they become.
    written: Vec<(&'static str, String)>,
    /// Files that are read and not copied.
    read: Vec<(&'static str, PathBuf)>,
    /// The settings of generation of every directory that has any; the first are copied.
    pub generations: Vec<JsonConfig>,
    /// The directories with settings of a tokenizer.
    pub configured: Vec<PathBuf>,
    /// The tokenizer.
    pub tokenizer: PathBuf,
    /// Where it is if it was converted from other files, removed with this.
    _converted: Option<TempDir>,
}

impl TokenizerFiles {
    /// Looks in `dirs`, the first that has a file wins; `model_type` is the base's.
    pub(super) fn find(dirs: &[&Path], model_type: &str) -> Result<Self, TokenizerFilesError> {
        let first = |name: &'static str| dirs.iter().find_map(|dir| file(dir, name));
        let other = find_other(dirs);
        let converted = other.as_ref().map(|other| other.convert(model_type)).transpose()?;
        let converted_file = converted.as_ref().map(|dir| (TOKENIZER, dir.path().join(TOKENIZER)));
        let tokenizer = converted_file.or_else(|| first(TOKENIZER)).ok_or_else(|| no_tokenizer(dirs))?;
        let config = first(TOKENIZER_CONFIG);
        // One belongs to the other: an older map would take the tokens of a newer configuration away.
        let map = match &config {
            Some((_, path)) => path.parent().and_then(|dir| file(dir, SPECIAL_TOKENS_MAP)),
            None => first(SPECIAL_TOKENS_MAP),
        };
        for (name, path) in [&tokenizer].into_iter().chain(&config).chain(&map) {
            check_json(path, size_limit(name))?;
        }
        let all = |name: &'static str| dirs.iter().filter_map(move |dir| file(dir, name));
        let Found { copied: templates, written, mut read } = find_templates(dirs)?;
        let copied = [Some(tokenizer.clone()), config, map, first(GENERATION_CONFIG)].into_iter().flatten();
        let copied: Vec<_> = copied.chain(templates).collect();
        read.extend(other.iter().flat_map(|other| other.files().iter().cloned()));
        // Every directory may name end tokens.
        for other in [GENERATION_CONFIG, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP].into_iter().flat_map(all) {
            if !copied.contains(&other) && !read.contains(&other) {
                read.push(other);
            }
        }
        let configured = dirs.iter().filter(|dir| file(dir, TOKENIZER_CONFIG).is_some());
        let configured = configured.map(|dir| dir.to_path_buf()).collect();
        let found = Self {
            copied,
            written,
            read,
            generations: Vec::new(),
            configured,
            tokenizer: tokenizer.1,
            _converted: converted,
        };
        found.check_sizes()?;
        let generations = all(GENERATION_CONFIG).map(|(_, path)| JsonConfig::read(&path));
        Ok(Self { generations: generations.collect::<Result<_, _>>()?, ..found })
    }

    /// Before any of them is hashed for provenance: a file of 100 GiB would be read to its end.
    fn check_sizes(&self) -> Result<(), TokenizerFilesError> {
        self.paths().try_for_each(|(name, path)| {
            files::check(path, size_limit(name))
                .map_err(|source| TokenizerFilesError::Read { path: path.clone(), source })
        })
    }

    /// The files that are read, by their names in a model directory.
    pub(super) fn paths(&self) -> impl Iterator<Item = &(&'static str, PathBuf)> {
        self.copied.iter().chain(&self.read)
    }

    /// Copies them to `staging`; a template that only exists within a JSON file becomes a file.
    pub(super) fn write(&self, staging: &Staging) -> Result<(), TokenizerFilesError> {
        for (name, path) in &self.copied {
            let content = files::read(path, size_limit(name))
                .map_err(|source| TokenizerFilesError::Read { path: path.clone(), source })?;
            staging.write(name, &content)?;
        }
        for (name, template) in &self.written {
            staging.write(name, template.as_bytes())?;
        }
        Ok(())
    }
}

/// The file `name` in `dir`, if something has this name.
fn file(dir: &Path, name: &'static str) -> Option<(&'static str, PathBuf)> {
    let path = dir.join(name);
    files::exists(&path).then_some((name, path))
}

/// Size limit of the file.
fn size_limit(name: &str) -> Bytes {
    match name {
        TOKENIZER => MAX_TOKENIZER,
        TEMPLATE | TOOL_TEMPLATE => MAX_TEMPLATE,
        _ if tokenizer::is_vocabulary(name) => tokenizer::MAX_FILE,
        _ => files::MAX_JSON,
    }
}

/// Checks that the file is complete JSON: a truncated file would otherwise only fail when the model is served.
fn check_json(path: &Path, max: Bytes) -> Result<(), TokenizerFilesError> {
    let json =
        files::read(path, max).map_err(|source| TokenizerFilesError::Read { path: path.into(), source })?;
    let parsed: Result<IgnoredAny, _> = serde_json::from_slice(&json);
    Ok(parsed.map(drop).map_err(|source| JsonConfigError::Parse { path: path.into(), source })?)
}

/// The tokenizer of the first directory that has one, if that is not in `tokenizer.json`.
fn find_other(dirs: &[&Path]) -> Option<OtherTokenizer> {
    for dir in dirs {
        if file(dir, TOKENIZER).is_some() {
            return None;
        }
        if let Some(other) = OtherTokenizer::find(dir) {
            return Some(other);
        }
    }
    None
}

fn no_tokenizer(dirs: &[&Path]) -> TokenizerFilesError {
    TokenizerFilesError::NoTokenizer { dir: dirs.last().map(|dir| dir.to_path_buf()).unwrap_or_default() }
}

/// The templates of a directory, as the fields of [`TokenizerFiles`] have them.
#[derive(Default)]
struct Found {
    copied: Vec<(&'static str, PathBuf)>,
    written: Vec<(&'static str, String)>,
    read: Vec<(&'static str, PathBuf)>,
}

/// In each directory files win over the text within the tokenizer's settings, and those over a processor's.
fn find_templates(dirs: &[&Path]) -> Result<Found, JsonConfigError> {
    for dir in dirs {
        let copied: Vec<_> = TEMPLATES.iter().filter_map(|(name, _)| file(dir, name)).collect();
        if !copied.is_empty() {
            return Ok(Found { copied, ..Found::default() });
        }
        for source in [TOKENIZER_CONFIG, PROCESSOR_TEMPLATE].into_iter().filter_map(|name| file(dir, name)) {
            let written = templates_within(&JsonConfig::read(&source.1)?)?;
            if !written.is_empty() {
                return Ok(Found { written, read: vec![source], ..Found::default() });
            }
        }
    }
    Ok(Found::default())
}

/// `chat_template` is a string, or a list of named ones, of which `default` is for chat and `tool_use` for chat with tools.
fn templates_within(config: &JsonConfig) -> Result<Vec<(&'static str, String)>, JsonConfigError> {
    const FIELD: &str = "chat_template";
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match config.get(FIELD) {
        None => Ok(Vec::new()),
        Some(Value::Array(named)) => {
            let template =
                |name: &str| text(named.iter().find(|entry| entry["name"] == name)?.get("template")?);
            let found = TEMPLATES.iter().filter_map(|&(file, name)| Some((file, template(name)?)));
            let found: Vec<_> = found.collect();
            let expected = "a list with a template named default or tool_use";
            if found.is_empty() { Err(config.wrong(FIELD, expected)) } else { Ok(found) }
        }
        Some(value) => match text(value) {
            Some(template) => Ok(vec![(TEMPLATE, template)]),
            None => Err(config.wrong(FIELD, "a string, or a list of templates with names")),
        },
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
        let staging = Staging::new(&out.path().join("model"), Existing::Keep, &[]).unwrap();
        TokenizerFiles::find(dirs, "llama").unwrap().write(&staging).unwrap();
        fs::read_to_string(staging.path(name)).ok()
    }

    #[test]
    fn the_adapters_files_win() {
        let base = dir(&[(TOKENIZER, "1"), (TOKENIZER_CONFIG, r#"{"chat_template": "base"}"#)]);
        let adapter = dir(&[(TOKENIZER, "2"), (TEMPLATE, "adapter")]);
        let dirs = [adapter.path(), base.path()];
        assert_eq!(written(&dirs, TOKENIZER).unwrap(), "2");
        assert_eq!(written(&dirs, TEMPLATE).unwrap(), "adapter");
        assert_eq!(written(&[base.path()], TEMPLATE).unwrap(), "base");
    }

    #[test]
    fn a_list_of_templates_becomes_a_file_for_chat_and_one_for_chat_with_tools() {
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"},
            {"name": "rag", "template": "r"}]}"#;
        let base = dir(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, list)]);
        let dirs = [base.path()];
        assert_eq!(written(&dirs, TEMPLATE).unwrap(), "d");
        assert_eq!(written(&dirs, TOOL_TEMPLATE).unwrap(), "t");
        let neither = r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#;
        let base = dir(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, neither)]);
        let message = TokenizerFiles::find(&[base.path()], "llama").unwrap_err().to_string();
        assert!(message.contains("default or tool_use"), "{message}");
    }

    #[test]
    fn a_template_of_a_processor_and_templates_in_files_are_copied() {
        let base = dir(&[(TOKENIZER, "{}"), (PROCESSOR_TEMPLATE, r#"{"chat_template": "p"}"#)]);
        let found = TokenizerFiles::find(&[base.path()], "llama").unwrap();
        assert!(found.paths().any(|(name, _)| *name == PROCESSOR_TEMPLATE), "it is a source");
        assert_eq!(written(&[base.path()], TEMPLATE).unwrap(), "p");
        fs::write(base.path().join(TOKENIZER_CONFIG), r#"{"chat_template": "c"}"#).unwrap();
        assert_eq!(written(&[base.path()], TEMPLATE).unwrap(), "c");
        fs::create_dir(base.path().join("additional_chat_templates")).unwrap();
        for (name, content) in [(TEMPLATE, "f"), (TOOL_TEMPLATE, "t")] {
            fs::write(base.path().join(name), content).unwrap();
            assert_eq!(written(&[base.path()], name).unwrap(), content);
        }
    }

    #[test]
    fn a_map_of_special_tokens_comes_from_where_the_tokenizers_configuration_does() {
        let base =
            dir(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, "{}"), (SPECIAL_TOKENS_MAP, r#"{"base": 1}"#)]);
        let adapter = dir(&[(TOKENIZER_CONFIG, "{}")]);
        assert_eq!(written(&[base.path()], SPECIAL_TOKENS_MAP).unwrap(), r#"{"base": 1}"#);
        assert_eq!(written(&[adapter.path(), base.path()], SPECIAL_TOKENS_MAP), None);
    }

    #[test]
    fn a_model_may_have_neither_template_nor_generation_settings() {
        let base = dir(&[(TOKENIZER, "{}")]);
        assert_eq!(written(&[base.path()], TEMPLATE), None);
        assert!(TokenizerFiles::find(&[base.path()], "llama").unwrap().generations.is_empty());
    }

    #[test]
    fn a_file_of_100_gigabytes_is_refused_before_it_is_read() {
        for name in [TOKENIZER_CONFIG, TEMPLATE, GENERATION_CONFIG, PROCESSOR_TEMPLATE] {
            let base = dir(&[(TOKENIZER, "{}")]);
            std::fs::File::create(base.path().join(name)).unwrap().set_len(100 << 30).unwrap();
            let error = TokenizerFiles::find(&[base.path()], "llama").unwrap_err().to_string();
            assert!(
                error.contains(name) && (error.contains("100 GiB") || error.contains("larger than")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_tokenizer_that_is_missing_or_damaged_is_refused() {
        let error = |files| TokenizerFiles::find(&[dir(files).path()], "llama").unwrap_err().to_string();
        assert!(
            error(&[("tokenizer.model", "\u{7}damaged")])
                .contains("tokenizer.model: it is not a valid tokenizer")
        );
        assert!(error(&[("vocab.json", "{}")]).contains("tokenizer.json is not there"));
        assert!(error(&[]).contains("tokenizer.json is not there"));
    }
}
