//! The text files of a model directory, as `transformers` writes them.

use std::{io, ops::RangeInclusive, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::{TextError, charsmap, growth};
use crate::{
    files,
    job::SamplingDefaults,
    manifest::layout::{
        GENERATION_CONFIG, MAX_TEMPLATE, MAX_TOKENIZER, SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG,
    },
};

/// Reads `tokenizer.json`, without the truncation and padding that it may configure: they are for training, and would silently
/// remove or add text of a prompt.
pub(super) fn read_tokenizer(model_dir: &Path) -> Result<Tokenizer, TextError> {
    read_tokenizer_file(&model_dir.join(TOKENIZER))
}

/// [`read_tokenizer`] for the file at `path`.
pub(super) fn read_tokenizer_file(path: &Path) -> Result<Tokenizer, TextError> {
    let json =
        files::read(path, MAX_TOKENIZER).map_err(|source| TextError::Read { path: path.into(), source })?;
    parse_tokenizer(path, &json)
}

/// [`read_tokenizer`] for the content of a file that lies at `path`.
pub(super) fn parse_tokenizer(path: &Path, json: &[u8]) -> Result<Tokenizer, TextError> {
    let parse =
        |source: tokenizers::Error| TextError::Tokenizer { path: path.into(), message: source.to_string() };
    let too_long = |message| TextError::Tokenizer { path: path.into(), message };
    charsmap::check(json).map_err(too_long)?;
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(parse)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(parse)?;
    let as_json = |json: serde_json::Result<Value>| json.map_err(|source| too_long(source.to_string()));
    growth::check(&as_json(serde_json::to_value(tokenizer.get_normalizer()))?).map_err(too_long)?;
    growth::check(&as_json(serde_json::to_value(tokenizer.get_decoder()))?).map_err(too_long)?;
    Ok(tokenizer)
}

/// The fields of `tokenizer_config.json` that eka reads.
#[derive(Default, Deserialize)]
pub(super) struct TokenizerConfig {
    chat_template: Option<Templates>,
    tokenizer_class: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "chat_template is neither a string nor a list of objects with `name` and `template`, both strings"
)]
pub(super) enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
pub(super) struct NamedTemplate {
    name: String,
    template: String,
}

impl Templates {
    /// The template with this name; one without a name is the default one.
    pub(super) fn named(&self, name: &str) -> Option<&str> {
        match self {
            Self::One(template) => (name == "default").then_some(template),
            Self::Named(all) => all.iter().find(|one| one.name == name).map(|one| &*one.template),
        }
    }
}

impl TokenizerConfig {
    pub(super) fn read(model_dir: &Path) -> Result<Self, TextError> {
        Ok(read_json(&model_dir.join(TOKENIZER_CONFIG))?.unwrap_or_default())
    }

    pub(super) const fn templates(&self) -> Option<&Templates> {
        self.chat_template.as_ref()
    }

    /// The Python class of the tokenizer.
    pub(super) fn class(&self) -> Option<&str> {
        self.tokenizer_class.as_deref()
    }

    /// All fields except those with an accessor.
    pub(super) const fn fields(&self) -> &Map<String, Value> {
        &self.rest
    }
}

/// The fields of `special_tokens_map.json`; empty if the file is missing.
pub(super) fn read_special_tokens_map(model_dir: &Path) -> Result<Map<String, Value>, TextError> {
    Ok(read_json(&model_dir.join(SPECIAL_TOKENS_MAP))?.unwrap_or_default())
}

/// The template in the file at `path`, if there is one.
pub(super) fn read_template(path: &Path) -> Result<Option<String>, TextError> {
    files::optional(files::read_text(path, MAX_TEMPLATE)).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => {
            TextError::TemplateFile { path: path.into(), message: source.to_string() }
        }
        _ => TextError::Read { path: path.into(), source },
    })
}

/// The templates in the file of a processor at `path`, if there is one.
pub(super) fn read_processor_templates(path: &Path) -> Result<Option<Templates>, TextError> {
    #[derive(Deserialize)]
    struct Processor {
        chat_template: Option<Templates>,
    }
    Ok(read_json::<Processor>(path)?.and_then(|processor| processor.chat_template))
}

/// The fields of `generation_config.json` that eka reads.
#[derive(Default, Deserialize)]
pub(super) struct GenerationConfig {
    pub(super) bos_token_id: Option<u32>,
    do_sample: Option<bool>,
    // Any JSON: a value that eka cannot use must not make the model unusable.
    #[serde(default)]
    temperature: Value,
    #[serde(default)]
    top_p: Value,
    #[serde(default)]
    top_k: Value,
    #[serde(default)]
    min_p: Value,
    #[serde(default)]
    repetition_penalty: Value,
}

impl GenerationConfig {
    pub(super) fn read(model_dir: &Path) -> Result<Self, TextError> {
        Ok(read_json(&model_dir.join(GENERATION_CONFIG))?.unwrap_or_default())
    }

    /// Its sampling parameters, without values outside their ranges. `do_sample: false` is greedy, whatever the temperature is.
    pub(super) fn sampling(&self) -> SamplingDefaults {
        let within = |value: &Value, range: RangeInclusive<f64>| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the model computes with f32, and every range is within it"
            )]
            value.as_f64().filter(|number| range.contains(number)).map(|number| number as f32)
        };
        let temperature = match self.do_sample {
            Some(false) => Some(0.0),
            _ => within(&self.temperature, 0.0..=2.0),
        };
        SamplingDefaults {
            temperature,
            top_p: within(&self.top_p, f64::from(f32::MIN_POSITIVE)..=1.0),
            top_k: self.top_k.as_u64().and_then(|top_k| usize::try_from(top_k).ok()),
            min_p: within(&self.min_p, 0.0..=1.0),
            repetition_penalty: within(&self.repetition_penalty, 0.1..=10.0),
        }
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    let json = files::optional(files::read(path, files::MAX_JSON))
        .map_err(|source| TextError::Read { path: path.into(), source })?;
    let Some(json) = json else { return Ok(None) };
    serde_json::from_slice(&json).map(Some).map_err(|source| TextError::Json { path: path.into(), source })
}
