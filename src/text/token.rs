//! The text of a single token, for log probabilities.

use std::sync::Arc;

use super::{Text, token_bytes::visible};

/// A token as people and programs read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    /// Its text. A special token has its name, and one that is not whole characters has `bytes:\xe0\xa4`, as in OpenAI's
    /// API, so that different tokens never look the same.
    pub text: String,
    /// The bytes that it adds to an answer; `None` for a special token and for an id that does not exist.
    pub bytes: Option<Vec<u8>>,
}

impl TokenText {
    /// Number of characters that begin in it.
    #[must_use]
    pub fn characters(&self) -> usize {
        // Continuation bytes of UTF-8 are 10xxxxxx.
        self.bytes.iter().flatten().filter(|byte| **byte & 0xc0 != 0x80).count()
    }
}

impl Text {
    /// The token with this id, as it is decoded within a text.
    #[must_use]
    pub fn token(&self, id: u32) -> TokenText {
        if visible(&self.tokenizer, id).is_none() {
            let text = self.tokenizer.id_to_token(id).unwrap_or_default();
            return TokenText { text, bytes: None };
        }
        let bytes = match &self.token_bytes {
            Some(token_bytes) => token_bytes.bytes(id).to_vec(),
            None => self.tokenizer.decode(&[id], true).unwrap_or_default().into_bytes(),
        };
        let text = String::from_utf8(bytes.clone()).unwrap_or_else(|_| {
            let digits: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{digits}")
        });
        TokenText { text, bytes: Some(bytes) }
    }

    /// The tokens whose text contains any of `parts`, in the order of their ids.
    #[must_use]
    pub fn tokens_with(&self, parts: &[String]) -> Vec<u32> {
        let size = u32::try_from(self.card.vocabulary).unwrap_or(u32::MAX);
        let ids = (0..size).filter(|id| {
            let bytes = self.token(*id).bytes.unwrap_or_default();
            parts.iter().any(|part| bytes.windows(part.len().max(1)).any(|window| window == part.as_bytes()))
        });
        ids.collect()
    }

    /// The text of tokens, with special tokens and without incomplete characters.
    #[must_use]
    pub fn decode_with_special(self: &Arc<Self>, ids: &[u32]) -> String {
        let mut decoder = self.detokenizer(Vec::new()).with_all_special();
        let mut text: String = ids.iter().map(|id| decoder.push(*id).text).collect();
        text += &decoder.finish();
        text
    }

    /// The text of tokens, without special tokens.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }
}
