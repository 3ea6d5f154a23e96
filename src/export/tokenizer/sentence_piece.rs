//! SentencePiece's `tokenizer.model`: a protocol buffer with pieces, their scores, and how text is normalized.
//!
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>

use std::{cmp::Ordering, collections::HashMap, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use prost::Message;
use serde_json::{Value, json};

use super::{
    byte_level::Converted,
    error::TokenizerError,
    parts::{bpe, replace, sentence_piece_decoder, sequence, split},
    special_tokens::{AddedToken, Settings},
    vocabulary::{MAX_TOKEN, MAX_TOKENS, Pair, ids, pairs},
};

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// Kinds of pieces.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(string, optional, tag = "45")]
    unk_piece: Option<String>,
    #[prost(string, optional, tag = "46")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
}

/// Kinds of models.
const UNIGRAM: i32 = 1;
const BPE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// Which Python class reads the model, as they differ in how they treat white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Llama,
    Gemma,
    /// As the model itself says.
    Generic,
}

/// Pieces by id, with names that settings have changed.
struct Pieces {
    texts: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
}

impl Pieces {
    fn read(model: &Model) -> Result<Self, String> {
        if model.pieces.len() > MAX_TOKENS {
            return Err(format!("it has more than {MAX_TOKENS} pieces"));
        }
        let mut pieces = Self { texts: Vec::new(), scores: Vec::new(), kinds: Vec::new() };
        for (id, piece) in model.pieces.iter().enumerate() {
            let text = piece.piece.clone().unwrap_or_default();
            let score = piece.score.unwrap_or(0.0);
            if text.is_empty() || text.len() > MAX_TOKEN || !score.is_finite() {
                return Err(format!(
                    "piece {id} has {} bytes and the score {score}, expected 1 to {MAX_TOKEN} bytes and a number",
                    text.len()
                ));
            }
            pieces.texts.push(text);
            pieces.scores.push(score);
            pieces.kinds.push(piece.kind.unwrap_or(NORMAL));
        }
        if pieces.texts.is_empty() { Err("it has no pieces".into()) } else { Ok(pieces) }
    }

    /// Gives pieces the names that `tokens` have for their ids: models are trained with places for tokens to come.
    fn rename(&mut self, tokens: &Settings) {
        let places: HashMap<&str, usize> =
            self.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
        let is_free = |token: &AddedToken| {
            places.get(token.content.as_str()).is_none_or(|id| tokens.by_id.contains_key(id))
        };
        let names: Vec<_> = tokens
            .by_id
            .iter()
            .filter(|(id, token)| **id < self.texts.len() && is_free(token))
            .map(|(id, token)| (*id, token.content.clone()))
            .collect();
        for (id, name) in names {
            self.texts[id] = name;
        }
    }

    fn of_kind(&self, kind: i32) -> impl Iterator<Item = (&str, usize)> {
        let all = self.texts.iter().zip(&self.kinds).enumerate();
        all.filter(move |(_, (_, own))| **own == kind).map(|(id, (text, _))| (text.as_str(), id))
    }

    fn all(&self) -> Vec<(&str, usize)> {
        self.texts.iter().map(String::as_str).zip(0..).collect()
    }
}

/// The SentencePiece model in the file at `path`.
pub(super) fn convert(
    path: &Path,
    content: &[u8],
    class: Class,
    settings: &mut Settings,
) -> Result<Converted, TokenizerError> {
    let damaged = |problem: String| TokenizerError::Damaged { path: path.into(), problem };
    let model = Model::decode(content).map_err(|error| damaged(error.to_string()))?;
    let trainer = model.trainer.clone().unwrap_or_default();
    let kind = trainer.model_type.unwrap_or(UNIGRAM);
    if !matches!(kind, UNIGRAM | BPE) || (class != Class::Generic && kind != BPE) {
        return Err(TokenizerError::Unsupported {
            path: path.into(),
            found: format!("a SentencePiece model of type {kind} for {class:?}"),
            supported: "BPE (2), and Unigram (1) where no class of its own reads it",
        });
    }
    let mut pieces = Pieces::read(&model).map_err(damaged)?;
    let tokenizer = match class {
        Class::Llama => llama(&pieces, settings),
        Class::Gemma => gemma(&pieces, settings),
        Class::Generic => {
            pieces.rename(settings);
            generic(&pieces, &trainer, &model.normalizer.unwrap_or_default(), settings)
        }
    };
    let tokenizer = tokenizer.map_err(damaged)?;
    Ok(Converted { tokenizer, tokens: pieces.texts.into_iter().zip(0..).collect() })
}

/// As `LlamaTokenizer`, which ranks pairs by the id of what they make.
fn llama(pieces: &Pieces, settings: &mut Settings) -> Result<Value, String> {
    list_defined(pieces, settings, &[CONTROL, USER_DEFINED]);
    for (name, token) in [("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")] {
        settings.default_named(name, token);
    }
    let flag = |field, default| {
        let config = settings.config.as_ref();
        config.map_or(Ok(default), |config| config.flag(field, default)).map_err(|error| error.to_string())
    };
    let adds_space = flag("add_prefix_space", true)?;
    let scheme = if flag("legacy", false)? { "always" } else { "first" };
    let scheme = if adds_space { scheme } else { "never" };
    let more = json!({ "fuse_unk": true, "byte_fallback": true });
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": metaspace(scheme),
        "decoder": sentence_piece_decoder(true, adds_space),
        "model": bpe(ids(pieces.all().into_iter())?, &by_id(&pieces.all()), more),
    }))
}

/// As `GemmaTokenizer`, which adds no space before a text.
fn gemma(pieces: &Pieces, settings: &mut Settings) -> Result<Value, String> {
    list_defined(pieces, settings, &[CONTROL, USER_DEFINED]);
    for (name, token) in [
        ("unk_token", "<unk>"),
        ("bos_token", "<bos>"),
        ("eos_token", "<eos>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ] {
        settings.default_named(name, token);
    }
    let unknown = settings.named("unk_token").map(|token| token.content.clone());
    let more = json!({ "unk_token": unknown, "fuse_unk": true, "byte_fallback": true });
    Ok(json!({
        "normalizer": replace(" ", "▁"),
        "pre_tokenizer": {
            "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
        },
        "decoder": sentence_piece_decoder(true, false),
        "model": bpe(ids(pieces.all().into_iter())?, &by_id(&pieces.all()), more),
    }))
}

/// As the model says, which is how SentencePiece itself encodes.
fn generic(
    pieces: &Pieces,
    trainer: &Trainer,
    normalizer: &Normalizer,
    settings: &mut Settings,
) -> Result<Value, String> {
    let names = [
        ("bos_token", trainer.bos_id.unwrap_or(1), trainer.bos_piece.as_deref().unwrap_or("<s>")),
        ("eos_token", trainer.eos_id.unwrap_or(2), trainer.eos_piece.as_deref().unwrap_or("</s>")),
        ("unk_token", trainer.unk_id.unwrap_or(0), trainer.unk_piece.as_deref().unwrap_or("<unk>")),
    ];
    list_defined(pieces, settings, &[CONTROL]);
    for (name, _, token) in names.into_iter().filter(|(_, id, _)| *id >= 0) {
        settings.default_named(name, token);
    }
    let legacy = settings.config.as_ref().map_or(Ok(true), |config| config.flag("legacy", true));
    let legacy = legacy.map_err(|error| error.to_string())?;
    let adds_space = normalizer.add_dummy_prefix.unwrap_or(true);
    if adds_space {
        // Each text between added tokens gets a space of its own.
        settings.by_id.values_mut().for_each(|token| token.is_normalized = false);
    }
    let mut user_defined: Vec<&str> = pieces.of_kind(USER_DEFINED).map(|(text, _)| text).collect();
    user_defined.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
    let mut pre_tokenizers = Vec::new();
    if adds_space {
        pre_tokenizers.push(metaspace(if legacy { "always" } else { "first" }));
    }
    if !user_defined.is_empty() {
        let escaped: Vec<_> = user_defined.iter().map(|text| fancy_regex::escape(text)).collect();
        pre_tokenizers.push(split(&escaped.join("|")));
    }
    let byte_fallback = trainer.byte_fallback.unwrap_or(false);
    let model = if trainer.model_type == Some(BPE) {
        let normal: Vec<_> = pieces.of_kind(NORMAL).collect();
        let more = json!({
            "unk_token": names[2].2, "fuse_unk": true, "byte_fallback": byte_fallback,
            "ignore_merges": !user_defined.is_empty(),
        });
        bpe(ids(pieces.all().into_iter())?, &by_score(&normal, &pieces.scores), more)
    } else {
        let vocab: Vec<_> = pieces.texts.iter().zip(&pieces.scores).collect();
        let unknown = usize::try_from(names[2].1).ok().filter(|id| *id < vocab.len());
        json!({ "type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": byte_fallback })
    };
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers(normalizer, adds_space && legacy) },
        "pre_tokenizer": if pre_tokenizers.is_empty() { Value::Null } else { sequence(&pre_tokenizers) },
        "decoder": sentence_piece_decoder(byte_fallback, adds_space),
        "model": model,
    }))
}

/// What is done to a text first; `doubles` a space mark at its start, before which another one is put later.
fn normalizers(normalizer: &Normalizer, doubles: bool) -> Vec<Value> {
    let pattern =
        |regex: &str, to: &str| json!({ "type": "Replace", "pattern": { "Regex": regex }, "content": to });
    let mut steps = Vec::new();
    if let Some(table) = normalizer.precompiled_charsmap.as_ref().filter(|table| !table.is_empty()) {
        let table = BASE64_STANDARD.encode(table);
        steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": table }));
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        steps.extend([pattern(r"\A +| +\z", ""), pattern(" {2,}", " ")]);
    }
    if normalizer.escape_whitespaces.unwrap_or(true) {
        steps.push(replace(" ", "▁"));
    }
    if doubles {
        steps.push(pattern(r"\A▁", "▁▁"));
    }
    steps
}

fn metaspace(scheme: &str) -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false })
}

/// Pieces of these kinds are found in a text first.
fn list_defined(pieces: &Pieces, settings: &mut Settings, kinds: &[i32]) {
    for kind in kinds {
        for (text, _) in pieces.of_kind(*kind) {
            settings.list(AddedToken::new(text, *kind == CONTROL));
        }
    }
}

/// Pairs by the id of what they make, then by their lengths.
fn by_id<'a>(pieces: &[(&'a str, usize)]) -> Vec<(&'a str, &'a str)> {
    let mut pairs = pairs(pieces);
    let lengths = |pair: &Pair| (pair.left.chars().count(), pair.right.chars().count());
    pairs.sort_by_cached_key(|pair| (pair.ids[2], lengths(pair)));
    pairs.into_iter().map(|pair| (pair.left, pair.right)).collect()
}

/// Pairs by the score of what they make, the best first.
fn by_score<'a>(pieces: &[(&'a str, usize)], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let mut pairs = pairs(pieces);
    pairs.sort_by(|one, other| -> Ordering {
        scores[other.ids[2]]
            .total_cmp(&scores[one.ids[2]])
            .then(one.ids[2].cmp(&other.ids[2]))
            .then_with(|| (one.left, one.right).cmp(&(other.left, other.right)))
    });
    pairs.into_iter().map(|pair| (pair.left, pair.right)).collect()
}
