//! The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.
//!
//! Two kinds are read: byte-level BPE (`gpt2`) and SentencePiece's BPE (`llama`). Both become the same BPE of the `tokenizers`
//! library: SentencePiece has no list of merges, so it is made from the scores, in the order that `transformers` uses.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::export::tokenizer::parts::{bpe, byte_level_decoder, replace, sentence_piece_decoder, template};

use super::{
    error::GgufError,
    metadata::Metadata,
    pre_tokenizers::{self, Splitting},
};

/// The tokenizer, as files of a model directory.
#[derive(Debug)]
pub(super) struct Tokenizer {
    pub tokenizer: Value,
    pub config: Value,
    /// Ids that end an answer.
    pub end_tokens: Vec<usize>,
}

/// Most bytes of a token: several times the longest runs of spaces that vocabularies have.
const MAX_TOKEN: usize = 1024;

/// Types of tokens.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// Control tokens that end a turn or a text. GGUF has room for one of each kind and older files name none, so llama.cpp
/// looks for these names as well.
const END_NAMES: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<EOT>",
    "<|end_of_turn|>",
];

/// Special tokens: the field of `tokenizer_config.json`, and the key of its id.
const SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("pad_token", "padding_token_id"),
];

impl Tokenizer {
    /// Reads the tokenizer of `metadata`.
    pub(super) fn read(metadata: &Metadata) -> Result<Self, GgufError> {
        const MODEL: &str = "tokenizer.ggml.model";
        let vocabulary = Vocabulary::read(metadata)?;
        let kind = metadata.tokenizer_text("ggml.model")?;
        let (mut tokenizer, adds_bos) = match kind {
            Some("gpt2") => byte_level(metadata, &vocabulary)?,
            Some("llama") => (sentence_piece(metadata, &vocabulary)?, true),
            Some(other) => return Err(metadata.unsupported(MODEL, other, "gpt2, llama")),
            None => return Err(metadata.wrong(MODEL, "missing", "gpt2 or llama")),
        };
        let adds_bos = metadata.tokenizer_flag("add_bos_token")?.unwrap_or(adds_bos);
        let adds_eos = metadata.tokenizer_flag("add_eos_token")?.unwrap_or(false);
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": adds_bos,
            "add_eos_token": adds_eos,
            "clean_up_tokenization_spaces": false,
        });
        let mut ids = BTreeMap::new();
        for (field, key) in SPECIAL {
            if let Some((id, token)) = vocabulary.special(metadata, key)? {
                config[field] = json!(token);
                ids.insert(field, id);
            }
        }
        let around = [("bos_token", adds_bos), ("eos_token", adds_eos)].map(|(field, adds)| {
            let id = *ids.get(field)?;
            adds.then(|| (id, vocabulary.tokens[id].as_str()))
        });
        tokenizer["version"] = json!("1.0");
        tokenizer["added_tokens"] = vocabulary.added();
        tokenizer["post_processor"] = template(around);
        Ok(Self { tokenizer, config, end_tokens: vocabulary.end_tokens(metadata)? })
    }
}

/// Tokens and their types.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: &'a [f64],
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let tokens = metadata.tokenizer_texts("tokens")?;
        let tokens =
            tokens.ok_or_else(|| metadata.wrong("tokenizer.ggml.tokens", "missing", "a list of strings"))?;
        let types = metadata.tokenizer_numbers("token_type")?.unwrap_or_default();
        if !types.is_empty() && types.len() != tokens.len() {
            let expected = format!("one number for each of {} tokens", tokens.len());
            return Err(metadata.wrong(
                "tokenizer.ggml.token_type",
                format!("a list of {}", types.len()),
                &expected,
            ));
        }
        if let Some(token) = tokens.iter().find(|token| token.len() > MAX_TOKEN) {
            let found = format!("a list with a token of {} bytes", token.len());
            return Err(metadata.wrong(
                "tokenizer.ggml.tokens",
                found,
                &format!("at most {MAX_TOKEN} bytes each"),
            ));
        }
        Ok(Self { tokens, types })
    }

    fn is(&self, id: usize, kind: f64) -> bool {
        self.types.get(id) == Some(&kind)
    }

    /// The special token whose id is in `key`.
    fn special(&self, metadata: &Metadata, key: &str) -> Result<Option<(usize, &'a str)>, GgufError> {
        let Some(id) = metadata.token_id(key)? else { return Ok(None) };
        match self.tokens.get(id) {
            Some(token) => Ok(Some((id, token))),
            None => {
                let expected = format!("an id below {}", self.tokens.len());
                Err(metadata.wrong(&format!("tokenizer.ggml.{key}"), id, &expected))
            }
        }
    }

    /// Ids by tokens, of which none may be there twice.
    fn ids(&self, metadata: &Metadata) -> Result<Map<String, Value>, GgufError> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if ids.insert(token.clone(), json!(id)).is_some() {
                let found = format!("a list with {token:?} twice");
                return Err(metadata.wrong("tokenizer.ggml.tokens", found, "different tokens"));
            }
        }
        Ok(ids)
    }

    /// Tokens that are found in text before anything else.
    fn added(&self) -> Value {
        let added =
            self.tokens.iter().enumerate().filter(|(id, _)| {
                self.is(*id, CONTROL) || self.is(*id, USER_DEFINED) || self.is(*id, UNKNOWN)
            });
        let entry = |(id, token)| {
            let special = !self.is(id, USER_DEFINED);
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        };
        added.map(entry).collect()
    }

    fn end_tokens(&self, metadata: &Metadata) -> Result<Vec<usize>, GgufError> {
        let mut ids = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            ids.extend(self.special(metadata, key)?.map(|(id, _)| id));
        }
        let named = self.tokens.iter().enumerate();
        let named = named.filter(|(id, token)| self.is(*id, CONTROL) && END_NAMES.contains(&token.as_str()));
        ids.extend(named.map(|(id, _)| id));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

/// A BPE whose tokens are bytes; and whether texts begin with bos by default.
fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<(Value, bool), GgufError> {
    const PRE: &str = "tokenizer.ggml.pre";
    let name = metadata.tokenizer_text("ggml.pre")?;
    let name = name.ok_or_else(|| metadata.wrong(PRE, "missing", "the name of a pre-tokenizer"))?;
    let splitting = pre_tokenizers::splitting(name);
    let Splitting { normalizer, pre_tokenizer, ignore_merges, adds_bos } =
        splitting.ok_or_else(|| metadata.unsupported(PRE, name, pre_tokenizers::known()))?;
    let merges = metadata.tokenizer_texts("merges")?;
    let merges =
        merges.ok_or_else(|| metadata.wrong("tokenizer.ggml.merges", "missing", "a list of strings"))?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let wrong = || {
            metadata.wrong(
                "tokenizer.ggml.merges",
                format!("a list with {merge:?}"),
                "two tokens and a space each",
            )
        };
        pairs.push(pair.ok_or_else(wrong)?);
    }
    let tokenizer = json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level_decoder(),
        "model": bpe(vocabulary.ids(metadata)?, &pairs, json!({ "ignore_merges": ignore_merges })),
    });
    Ok((tokenizer, adds_bos))
}

/// SentencePiece's BPE, in which spaces are `▁` and unknown characters bytes.
fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Value, GgufError> {
    let scores = metadata.tokenizer_numbers("scores")?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| score.is_nan()) {
        let found = format!("a list of {} numbers", scores.len());
        let expected = format!("one number for each of {} tokens", vocabulary.tokens.len());
        return Err(metadata.wrong("tokenizer.ggml.scores", found, &expected));
    }
    let adds_space = metadata.tokenizer_flag("add_space_prefix")?.unwrap_or(true);
    let unknown = vocabulary.special(metadata, "unknown_token_id")?.map(|(_, token)| token);
    let ids = vocabulary.ids(metadata)?;
    let merges = merges(vocabulary.tokens, scores, &ids);
    let prefix = adds_space.then(|| json!({ "type": "Prepend", "prepend": "▁" }));
    let normalizers: Vec<_> = prefix.into_iter().chain([replace(" ", "▁")]).collect();
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": sentence_piece_decoder(true, adds_space),
        "model": bpe(ids, &merges, json!({ "unk_token": unknown, "fuse_unk": true, "byte_fallback": true })),
    }))
}

/// Pairs of tokens that are a token together, best first.
fn merges<'a>(tokens: &'a [String], scores: &[f64], ids: &Map<String, Value>) -> Vec<(&'a str, &'a str)> {
    let id = |token: &str| ids.get(token).and_then(Value::as_u64);
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut pairs: Vec<_> =
            cuts.filter_map(|(left, right)| Some(((id(left)?, id(right)?), (left, right), *score))).collect();
        pairs.sort_by_key(|(ids, ..)| *ids);
        merges.extend(pairs);
    }
    merges.sort_by(|(_, one, one_score), (_, other, other_score)| {
        let lengths = |(left, right): &(&str, &str)| (left.chars().count(), right.chars().count());
        other_score.total_cmp(one_score).then_with(|| lengths(other).cmp(&lengths(one)))
    });
    merges.into_iter().map(|(_, pair, _)| pair).collect()
}
