//! The text files of a model directory, as `transformers` writes them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use tokenizers::Tokenizer;

use super::TextError;

/// Reads `tokenizer.json`, without the truncation and padding that it may ask for: training needs them, and in a
/// prompt they would lose or invent text without a word.
pub(super) fn read_tokenizer(model_dir: &Path) -> Result<Tokenizer, TextError> {
    let path = model_dir.join("tokenizer.json");
    let json = fs::read(&path).map_err(|source| TextError::Read { path: path.clone(), source })?;
    let parse =
        |source: tokenizers::Error| TextError::Tokenizer { path: path.clone(), message: source.to_string() };
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(parse)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(parse)?;
    Ok(tokenizer)
}

/// What eka reads of `tokenizer_config.json`.
#[derive(Default, Deserialize)]
pub(super) struct TokenizerConfig {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    pub(super) fn read(model_dir: &Path) -> Result<Self, TextError> {
        Ok(read_json(&model_dir.join("tokenizer_config.json"))?.unwrap_or_default())
    }

    /// The special tokens by the names that chat templates know them under: `bos_token`, `eos_token` and so on.
    pub(super) fn special_tokens(&self) -> BTreeMap<String, String> {
        let named = self.rest.iter().filter(|(name, _)| name.ends_with("_token"));
        named.filter_map(|(name, value)| Some((name.clone(), content(value)?))).collect()
    }
}

/// A token is written as a string, or as an object that says more about it.
fn content(token: &serde_json::Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// The chat template and the file it is in; `chat_template.jinja` wins, as in `transformers`.
pub(super) fn read_template(
    model_dir: &Path,
    config: &TokenizerConfig,
) -> Result<Option<(PathBuf, String)>, TextError> {
    let path = model_dir.join("chat_template.jinja");
    if let Some(source) = read_if_there(&path)? {
        let source = String::from_utf8(source)
            .map_err(|_| TextError::TemplateFile { path: path.clone(), message: "it is not UTF-8".into() })?;
        return Ok(Some((path, source)));
    }
    let source = match &config.chat_template {
        None => None,
        Some(Templates::One(source)) => Some(source),
        Some(Templates::Named(templates)) => {
            templates.iter().find(|named| named.name == "default").map(|named| &named.template)
        }
    };
    Ok(source.map(|source| (model_dir.join("tokenizer_config.json"), source.clone())))
}

/// What eka reads of `generation_config.json`.
#[derive(Default, Deserialize)]
pub(super) struct GenerationConfig {
    pub(super) bos_token_id: Option<u32>,
}

impl GenerationConfig {
    pub(super) fn read(model_dir: &Path) -> Result<Self, TextError> {
        Ok(read_json(&model_dir.join("generation_config.json"))?.unwrap_or_default())
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    let Some(json) = read_if_there(path)? else { return Ok(None) };
    serde_json::from_slice(&json).map(Some).map_err(|source| TextError::Json { path: path.into(), source })
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read { path: path.into(), source }),
    }
}
