//! A tokenizer for constraints: the bytes of every token, and the tokens of a text.
//!
//! A worker needs it only for answers with a constraint: a grammar describes bytes, and a worker picks tokens. It reads the
//! table from the model directory for the first such answer, because a worker may be replaced at any moment, and sending the
//! table with every job would be too expensive.

use std::path::Path;

use tokenizers::Tokenizer;

use super::{TextError, files, token_bytes::TokenBytes};

/// A character that texts do not contain and that tokenizers do not join with others.
const MARK: &str = "\u{2}";

/// The bytes of every token, and the tokenizer.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    token_bytes: TokenBytes,
    size: usize,
}

impl Vocabulary {
    /// Reads the tokenizer of the model in `model_dir`, for ids below `size`.
    ///
    /// # Errors
    /// [`TextError`] when it cannot be read, [`TextError::ConstraintUnsupported`] when its tokens have no fixed bytes.
    pub fn open(model_dir: &Path, size: usize) -> Result<Self, TextError> {
        let tokenizer = files::read_tokenizer(model_dir)?;
        let token_bytes = TokenBytes::of(&tokenizer, size).ok_or(TextError::ConstraintUnsupported)?;
        Ok(Self { tokenizer, token_bytes, size })
    }

    /// The bytes of each token in the order of ids; none for special tokens and for ids that do not exist.
    pub fn tokens(&self) -> impl Iterator<Item = &[u8]> {
        (0_u32..).take(self.size).map(|id| self.token_bytes.bytes(id))
    }

    /// The tokens of `bytes` within an answer; `None` if they are not UTF-8 or the tokenizer would change them. The tokens' bytes are
    /// always exactly `bytes`.
    #[must_use]
    pub fn tokenize(&self, bytes: &[u8]) -> Option<Vec<u32>> {
        let text = std::str::from_utf8(bytes).ok()?;
        let ids = self.encode(text)?;
        if self.decodes_to(&ids, bytes) {
            return Some(ids);
        }
        // SentencePiece puts a space before every text. After a mark there is none, and the mark's tokens are dropped.
        let marked = self.encode(&format!("{MARK}{text}"))?;
        let mark = marked.iter().position(|id| self.token_bytes.bytes(*id) == MARK.as_bytes())?;
        let ids = &marked[mark + 1..];
        self.decodes_to(ids, bytes).then(|| ids.to_vec())
    }

    fn encode(&self, text: &str) -> Option<Vec<u32>> {
        Some(self.tokenizer.encode_fast(text, false).ok()?.get_ids().to_vec())
    }

    fn decodes_to(&self, ids: &[u32], bytes: &[u8]) -> bool {
        let mut rest = Some(bytes);
        for id in ids {
            rest = rest.and_then(|rest| rest.strip_prefix(self.token_bytes.bytes(*id)));
        }
        rest.is_some_and(<[u8]>::is_empty)
    }
}
