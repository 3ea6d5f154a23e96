//! Byte-level BPEs in other files than `tokenizer.json`: `vocab.json` with `merges.txt`, `tekken.json`, and tiktoken's format.

use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    error::TokenizerError,
    parts::{LLAMA_3, QWEN_2, bpe, byte_level, byte_level_decoder, digits, nfc, sequence, split},
    special_tokens::{AddedToken, Settings},
    vocabulary::{self, MAX_TOKENS, byte_letters, ids},
};

/// A tokenizer without its special tokens, and its vocabulary.
pub(super) struct Converted {
    pub tokenizer: Value,
    pub tokens: Vec<(String, usize)>,
}

/// How a Python class of `vocab.json` and `merges.txt` splits text, and its special tokens.
struct Class {
    name: &'static str,
    normalizer: fn() -> Value,
    pre_tokenizer: fn() -> Value,
    special: &'static [(&'static str, &'static str)],
}

const END_OF_TEXT: &str = "<|endoftext|>";

const GPT_2: &[(&str, &str)] =
    &[("unk_token", END_OF_TEXT), ("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT)];

const CLASSES: [Class; 5] = [
    Class {
        name: "GPT2Tokenizer",
        normalizer: || Value::Null,
        pre_tokenizer: || byte_level(true),
        special: GPT_2,
    },
    Class {
        name: "CodeGenTokenizer",
        normalizer: || Value::Null,
        pre_tokenizer: || byte_level(true),
        special: GPT_2,
    },
    Class {
        name: "GPTNeoXTokenizer",
        normalizer: nfc,
        pre_tokenizer: || byte_level(true),
        special: &[
            ("unk_token", END_OF_TEXT),
            ("bos_token", END_OF_TEXT),
            ("eos_token", END_OF_TEXT),
            ("pad_token", "<|padding|>"),
        ],
    },
    Class {
        name: "Qwen2Tokenizer",
        normalizer: nfc,
        pre_tokenizer: || sequence(&[split(QWEN_2), byte_level(false)]),
        special: &[("unk_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("pad_token", END_OF_TEXT)],
    },
    Class {
        name: "CohereTokenizer",
        normalizer: nfc,
        pre_tokenizer: || sequence(&[digits(), byte_level(true)]),
        special: &[
            ("unk_token", "<UNK>"),
            ("bos_token", "<BOS_TOKEN>"),
            ("eos_token", "<|END_OF_TURN_TOKEN|>"),
            ("pad_token", "<PAD>"),
            ("cls_token", "<CLS>"),
            ("sep_token", "<SEP>"),
            ("mask_token", "<MASK_TOKEN>"),
        ],
    },
];

const SUPPORTED: &str = "GPT2Tokenizer, CodeGenTokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, CohereTokenizer";

fn damaged(path: &Path, problem: impl Into<String>) -> TokenizerError {
    TokenizerError::Damaged { path: path.into(), problem: problem.into() }
}

/// `vocab.json` at `path` and the content of `merges.txt`, for a Python class.
pub(super) fn from_pairs(
    (path, vocab): (&Path, &[u8]),
    (merges_path, merges): (&Path, &[u8]),
    class: &str,
    settings: &mut Settings,
) -> Result<Converted, TokenizerError> {
    let known = CLASSES.iter().find(|known| known.name == class);
    let class = known.ok_or_else(|| TokenizerError::Unsupported {
        path: path.into(),
        found: format!("the tokenizer_class {class:?}"),
        supported: SUPPORTED,
    })?;
    let vocab: Map<String, Value> =
        serde_json::from_slice(vocab).map_err(|error| damaged(path, error.to_string()))?;
    let id = |(token, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < MAX_TOKENS);
        Some((token.clone(), id?))
    };
    let tokens: Option<Vec<_>> = vocab.iter().map(id).collect();
    let tokens = tokens.ok_or_else(|| damaged(path, "an id is not a number, or too large"))?;
    let vocab = ids(tokens.iter().map(|(token, id)| (token.as_str(), *id)));
    let vocab = vocab.map_err(|problem| damaged(path, problem))?;
    let merges = std::str::from_utf8(merges).map_err(|error| damaged(merges_path, error.to_string()))?;
    let lines = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let mut pairs = Vec::new();
    for line in lines {
        let pair = line.trim_end().split_once(' ');
        pairs.push(pair.ok_or_else(|| damaged(merges_path, format!("the line {line:?} is not two tokens")))?);
    }
    for (name, token) in class.special {
        settings.default_named(name, token);
    }
    let tokenizer = json!({
        "normalizer": (class.normalizer)(),
        "pre_tokenizer": (class.pre_tokenizer)(),
        "decoder": byte_level_decoder(),
        "model": bpe(vocab, &pairs, json!({})),
    });
    Ok(Converted { tokenizer, tokens })
}

/// Mistral's `tekken.json`.
#[derive(Deserialize)]
struct Tekken {
    config: TekkenConfig,
    vocab: Vec<TekkenToken>,
    #[serde(default)]
    special_tokens: Vec<TekkenSpecial>,
}

#[derive(Deserialize)]
struct TekkenConfig {
    pattern: String,
    default_vocab_size: Option<usize>,
    default_num_special_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct TekkenToken {
    token_bytes: String,
}

#[derive(Deserialize)]
struct TekkenSpecial {
    rank: usize,
    token_str: String,
}

/// `tekken.json` at `path`: special tokens have the first ids.
pub(super) fn from_tekken(
    path: &Path,
    json: &[u8],
    settings: &mut Settings,
) -> Result<Converted, TokenizerError> {
    let Tekken { config, vocab, mut special_tokens } =
        serde_json::from_slice(json).map_err(|error| damaged(path, error.to_string()))?;
    special_tokens.sort_by_key(|token| token.rank);
    if special_tokens.is_empty() {
        return Err(TokenizerError::Unsupported {
            path: path.into(),
            found: "a tekken.json without special_tokens".into(),
            supported: "version 7 of the format and later",
        });
    }
    if special_tokens.iter().enumerate().any(|(at, token)| token.rank != at) {
        return Err(damaged(path, "the ranks of special_tokens have gaps"));
    }
    let count = config.default_num_special_tokens.unwrap_or(special_tokens.len());
    if count > MAX_TOKENS {
        return Err(damaged(path, format!("{count} special tokens")));
    }
    let mut special: Vec<String> = special_tokens.into_iter().map(|token| token.token_str).collect();
    special.extend((special.len()..count).map(|id| format!("<SPECIAL_{id}>")));
    // The rest of the vocabulary is padding.
    let kept = config.default_vocab_size.map_or(vocab.len(), |size| size.saturating_sub(special.len()));
    let mut tokens: Vec<_> = special.iter().enumerate().map(|(id, token)| (token.clone(), id)).collect();
    let letters = byte_letters();
    for (rank, token) in vocab.into_iter().take(kept).enumerate() {
        let token = decode(&token.token_bytes, &letters).map_err(|problem| damaged(path, problem))?;
        tokens.push((token, special.len() + rank));
    }
    for token in &special {
        settings.list(AddedToken::new(token, true));
    }
    ranked(tokens, special.len(), &config.pattern).map_err(|problem| damaged(path, problem))
}

/// A file of tiktoken at `path`: a line for each token, with its bytes in Base64 and its rank, which is its id.
pub(super) fn from_tiktoken(path: &Path, text: &[u8], pattern: Pattern) -> Result<Converted, TokenizerError> {
    let text = std::str::from_utf8(text).map_err(|error| damaged(path, error.to_string()))?;
    let letters = byte_letters();
    let token = |line: &str| {
        let (bytes, rank) = line.trim_end().split_once(' ')?;
        let rank = rank.parse().ok().filter(|rank: &usize| *rank < MAX_TOKENS)?;
        Some((decode(bytes, &letters).ok()?, rank))
    };
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let problem = || damaged(path, format!("line {} is not Base64 and a rank", number + 1));
        tokens.push(token(line).ok_or_else(problem)?);
    }
    let mut converted = ranked(tokens, 0, pattern.regex()).map_err(|problem| damaged(path, problem))?;
    if pattern == Pattern::Qwen {
        converted.tokenizer["normalizer"] = nfc();
    }
    Ok(converted)
}

/// The special tokens of the first Qwen, which its tokenizer's code has, in the order of their ids.
pub(super) fn list_qwen_tokens(settings: &mut Settings) {
    let extra = (0..205).map(|number| format!("<|extra_{number}|>"));
    let tokens = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"].map(str::to_owned).into_iter().chain(extra);
    tokens.for_each(|token| settings.list(AddedToken::new(&token, true)));
    settings.default_named("eos_token", END_OF_TEXT);
}

/// How text is split, which tiktoken's file does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// GPT-4's, Llama 3's and GLM-4's.
    Llama3,
    /// Of the first Qwen, after Unicode's NFC.
    Qwen,
}

impl Pattern {
    const fn regex(self) -> &'static str {
        match self {
            Self::Llama3 => LLAMA_3,
            Self::Qwen => QWEN_2,
        }
    }
}

/// Whether a file is tiktoken's and not SentencePiece's, which both are called `tokenizer.model`.
pub(super) fn is_tiktoken(content: &[u8]) -> bool {
    let line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.trim_end().split_once(' '))
        .is_some_and(|(bytes, rank)| rank.parse::<u32>().is_ok() && BASE64_STANDARD.decode(bytes).is_ok())
}

/// A token's bytes as letters.
fn decode(base64: &str, letters: &[char; 256]) -> Result<String, String> {
    let bytes =
        BASE64_STANDARD.decode(base64).map_err(|error| format!("{base64:?} is not Base64: {error}"))?;
    Ok(bytes.into_iter().map(|byte| letters[usize::from(byte)]).collect())
}

/// A BPE whose merges are the pairs of tokens, by the rank of what they make; the first `special` tokens are not words.
fn ranked(tokens: Vec<(String, usize)>, special: usize, pattern: &str) -> Result<Converted, String> {
    let by_text: Vec<(&str, usize)> = tokens.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    let vocab = ids(by_text.iter().copied())?;
    let merges: Vec<_> =
        vocabulary::pairs(&by_text[special..]).into_iter().map(|pair| (pair.left, pair.right)).collect();
    let tokenizer = json!({
        "normalizer": null,
        "pre_tokenizer": sequence(&[split(pattern), byte_level(false)]),
        "decoder": byte_level_decoder(),
        "model": bpe(vocab, &merges, json!({ "ignore_merges": true })),
    });
    Ok(Converted { tokenizer, tokens })
}
