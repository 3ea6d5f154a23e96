//! Tokenizers that come in other files than `tokenizer.json`, converted to it as transformers 5 does.
//!
//! | module | files |
//! |---|---|
//! | `sentence_piece` | `tokenizer.model`: BPE and Unigram |
//! | `byte_level` | `vocab.json` with `merges.txt`, `tekken.json`, tiktoken's `tokenizer.model`, `tiktoken.model` and `qwen.tiktoken` |
//! | `special_tokens` | special and added tokens, from the settings beside them |
//! | `parts`, `vocabulary` | what several of them need; `gguf` too |

mod byte_level;
mod error;
pub(super) mod parts;
mod sentence_piece;
mod special_tokens;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

pub use self::error::TokenizerError;
use self::{
    byte_level::{Converted, Pattern},
    sentence_piece::Class,
    special_tokens::{ADDED_TOKENS, Settings},
};
use crate::{files, manifest::layout::TOKENIZER, text::SourceTokenizer, units::Bytes};

/// The largest file that is converted. Gemma's tokenizer.model has 4 MB, Mistral's tekken.json 19 MB.
pub(super) const MAX_FILE: Bytes = Bytes::mib(64);

const SENTENCE_PIECE: &str = "tokenizer.model";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const TEKKEN: &str = "tekken.json";
const TIKTOKEN: &str = "tiktoken.model";
const QWEN_TIKTOKEN: &str = "qwen.tiktoken";

/// Model types whose published `tokenizer_class` transformers ignores; their SentencePiece models say themselves what they do.
const WRONG_CLASS: [&str; 8] =
    ["ernie4_5", "internlm2", "internlm3", "llava", "nemotron", "phi3", "qwen2", "smolvlm"];

/// Model types whose `LlamaTokenizer` is only a name.
const GENERIC: [&str; 13] = [
    "glm",
    "glm4",
    "gpt_bigcode",
    "granite",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "olmo2",
    "olmo3",
    "persimmon",
    "stablelm",
    "baichuan",
];

/// The tokenizer of a directory, in other files than `tokenizer.json`.
#[derive(Debug)]
pub(super) struct OtherTokenizer {
    dir: PathBuf,
    /// Its files, the vocabulary first.
    files: Vec<(&'static str, PathBuf)>,
}

impl OtherTokenizer {
    /// Looks for such files in `dir`.
    pub(super) fn find(dir: &Path) -> Option<Self> {
        const KINDS: [&[&str]; 5] =
            [&[SENTENCE_PIECE], &[VOCAB, MERGES], &[TEKKEN], &[TIKTOKEN], &[QWEN_TIKTOKEN]];
        let has_all = |names: &&&[&str]| names.iter().all(|name| files::exists(&dir.join(name)));
        let mut names = KINDS.iter().find(has_all)?.to_vec();
        names.extend(Some(ADDED_TOKENS).filter(|name| files::exists(&dir.join(name))));
        let files = names.into_iter().map(|name| (name, dir.join(name))).collect();
        Some(Self { dir: dir.into(), files })
    }

    /// Its files, by their names.
    pub(super) fn files(&self) -> &[(&'static str, PathBuf)] {
        &self.files
    }

    /// Writes it as a `tokenizer.json` into a temporary directory, for a model of type `model_type`.
    pub(super) fn convert(&self, model_type: &str) -> Result<TempDir, TokenizerError> {
        let json = self.to_json(model_type)?;
        let dir = TempDir::with_prefix("eka-tokenizer").map_err(|source| TokenizerError::Write { source })?;
        fs::write(dir.path().join(TOKENIZER), json).map_err(|source| TokenizerError::Write { source })?;
        Ok(dir)
    }

    fn to_json(&self, model_type: &str) -> Result<String, TokenizerError> {
        let mut settings = Settings::read(&self.dir)?;
        let class =
            settings.config.as_ref().map(|config| config.text("tokenizer_class")).transpose()?.flatten();
        let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class).to_owned());
        let [(name, path), rest @ ..] = &*self.files else { return Ok(String::new()) };
        let content = self.read(path)?;
        let converted = match (*name, rest) {
            (SENTENCE_PIECE, _) if byte_level::is_tiktoken(&content) => {
                byte_level::from_tiktoken(path, &content, Pattern::Llama3)?
            }
            (SENTENCE_PIECE, _) => {
                let class = sentence_piece_class(class.as_deref(), model_type).ok_or_else(|| {
                    TokenizerError::Unsupported {
                        path: path.clone(),
                        found: format!("the tokenizer_class {:?}", class.unwrap_or_default()),
                        supported: "LlamaTokenizer, GemmaTokenizer, and the settings of the model itself",
                    }
                })?;
                sentence_piece::convert(path, &content, class, &mut settings)?
            }
            (VOCAB, [(_, merges), ..]) => {
                let class = byte_level_class(class, model_type);
                let files = ((&**path, &*content), (&**merges, &*self.read(merges)?));
                byte_level::from_pairs(files.0, files.1, &class, &mut settings)?
            }
            (TEKKEN, _) => byte_level::from_tekken(path, &content, &mut settings)?,
            (QWEN_TIKTOKEN, _) => {
                byte_level::list_qwen_tokens(&mut settings);
                byte_level::from_tiktoken(path, &content, Pattern::Qwen)?
            }
            _ => byte_level::from_tiktoken(path, &content, Pattern::Llama3)?,
        };
        finish(path, converted, &settings)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, TokenizerError> {
        files::read(path, MAX_FILE).map_err(|source| TokenizerError::Read { path: path.into(), source })
    }
}

/// Whether a file of this name is converted.
pub(super) fn is_vocabulary(name: &str) -> bool {
    [SENTENCE_PIECE, VOCAB, MERGES, TEKKEN, TIKTOKEN, QWEN_TIKTOKEN].contains(&name)
}

/// The whole `tokenizer.json`, checked by the library that will use it.
fn finish(path: &Path, converted: Converted, settings: &Settings) -> Result<String, TokenizerError> {
    let Converted { mut tokenizer, tokens } = converted;
    let ids: HashMap<&str, usize> = tokens.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    settings.complete(&mut tokenizer, &ids)?;
    let json = tokenizer.to_string();
    SourceTokenizer::parse(path, json.as_bytes())?;
    Ok(json)
}

/// How a SentencePiece model is read; `None` for a class that treats text in a way of its own.
fn sentence_piece_class(class: Option<&str>, model_type: &str) -> Option<Class> {
    let is_gemma = model_type.starts_with("gemma");
    Some(match class {
        _ if WRONG_CLASS.contains(&model_type) => Class::Generic,
        Some("GemmaTokenizer") => Class::Gemma,
        None if is_gemma => Class::Gemma,
        Some("LlamaTokenizer") if !GENERIC.contains(&model_type) => Class::Llama,
        None | Some("LlamaTokenizer" | "BaichuanTokenizer" | "PreTrainedTokenizer" | "TokenizersBackend") => {
            Class::Generic
        }
        Some(_) => return None,
    })
}

/// The Python class of a vocabulary with merges; empty if nothing says which.
fn byte_level_class(class: Option<String>, model_type: &str) -> String {
    if model_type == "qwen2" {
        return "Qwen2Tokenizer".into();
    }
    class.unwrap_or_else(|| {
        let class = match model_type {
            "gpt2" | "gpt_neo" | "gptj" | "codegen" | "opt" | "phi" | "starcoder2" | "gpt_bigcode" => {
                "GPT2Tokenizer"
            }
            "qwen3" | "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl" | "internvl" => "Qwen2Tokenizer",
            "cohere" | "cohere2" => "CohereTokenizer",
            "gpt_neox" | "olmo" | "mpt" => "GPTNeoXTokenizer",
            _ => "",
        };
        class.into()
    })
}

/// A SentencePiece model; for the fuzzer.
pub(super) fn check_sentence_piece(content: &[u8]) -> Result<(), TokenizerError> {
    let path = Path::new("fuzzed");
    if byte_level::is_tiktoken(content) {
        let converted = byte_level::from_tiktoken(path, content, Pattern::Llama3)?;
        return finish(path, converted, &Settings::default()).map(drop);
    }
    for class in [Class::Generic, Class::Llama] {
        let mut settings = Settings::default();
        let converted = sentence_piece::convert(path, content, class, &mut settings)?;
        finish(path, converted, &settings)?;
    }
    Ok(())
}
