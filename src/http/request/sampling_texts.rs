//! Sampling fields that name tokens by their texts, and the tokens that they become.

use super::{
    logit_bias::MAX_BIASES,
    schema::{FieldType, string_list},
};
use crate::{
    http::{error::ApiError, field_error::FieldError},
    job::{Dry, Sampling},
    text::{Text, TextError},
};

/// Most sequence breakers, and their longest in bytes: longer than a token, which must contain it.
const MAX_BREAKERS: usize = 16;
const MAX_BREAKER_BYTES: usize = 64;

/// As in llama.cpp: the ends of lines, of names and of quotations.
pub(super) const DEFAULT_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// Most texts that an answer must not have, and their longest in bytes. Each step of an answer compares its end with all.
const MAX_BAD_WORDS: usize = 256;
const MAX_BAD_WORD_BYTES: usize = 256;

/// Texts that become tokens together with the prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct SamplingTexts {
    /// They end a repeated sequence for DRY.
    pub(super) breakers: Vec<String>,
    /// Their tokens have a bias; `None` forbids them.
    pub(super) biases: Vec<(String, Option<f32>)>,
    /// The answer does not have them.
    pub(super) bad_words: Vec<String>,
}

/// `dry_sequence_breakers`.
pub(super) fn breakers() -> impl FieldType<Value = Vec<String>> {
    let empty = "an empty sequence breaker would match everywhere";
    string_list(MAX_BREAKERS, MAX_BREAKER_BYTES, empty)
}

/// `bad_words`.
pub(super) fn bad_words() -> impl FieldType<Value = Vec<String>> {
    string_list(MAX_BAD_WORDS, MAX_BAD_WORD_BYTES, "an empty text cannot be avoided")
}

impl SamplingTexts {
    /// Whether `sampling` needs none of them.
    pub(crate) const fn is_unused(&self, sampling: &Sampling) -> bool {
        sampling.dry.is_none() && self.biases.is_empty() && self.bad_words.is_empty()
    }

    /// `sampling` with their tokens. Breakers are searched in the whole vocabulary.
    ///
    /// # Errors
    /// When the texts with a bias have too many tokens.
    pub(crate) fn add_to(self, mut sampling: Sampling, text: &Text) -> Result<Sampling, ApiError> {
        let Self { breakers, biases, bad_words } = self;
        sampling.dry = sampling.dry.map(|dry| Dry { breakers: text.tokens_with(&breakers), ..dry });
        for (biased, bias) in biases {
            let mut tokens = text.encode_bare(&biased)?;
            tokens.sort_unstable();
            tokens.dedup();
            match bias {
                Some(bias) => sampling.logit_bias.extend(tokens.into_iter().map(|id| (id, bias))),
                None => sampling.banned.extend(tokens.into_iter().map(|id| vec![id])),
            }
            let with_bias = sampling.logit_bias.len().max(sampling.banned.len());
            if with_bias > MAX_BIASES {
                let message = format!(
                    "its texts have more than {MAX_BIASES} tokens in all; send fewer or shorter ones"
                );
                return Err(FieldError::value("logit_bias", message).into());
            }
        }
        for word in &bad_words {
            sampling.banned.extend(spellings(word, text)?);
        }
        Ok(sampling)
    }
}

/// The tokens of a word at the beginning of a text, and within one. Most vocabularies have other tokens for a word after a space.
fn spellings(word: &str, text: &Text) -> Result<Vec<Vec<u32>>, TextError> {
    let word = word.trim_start_matches(' ');
    let mut spellings = Vec::with_capacity(2);
    for spelled in [word.to_owned(), format!(" {word}")] {
        let tokens = text.encode_bare(&spelled)?;
        // A text of spaces alone has no word.
        if !tokens.is_empty() && !word.is_empty() && !spellings.contains(&tokens) {
            spellings.push(tokens);
        }
    }
    Ok(spellings)
}
