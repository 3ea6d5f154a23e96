//! What an export has to know about the tokenizer that it copies.

use std::path::Path;

use tokenizers::Tokenizer;

use super::{
    TextError,
    files::{self, TokenizerConfig},
    special_tokens,
};

/// A tokenizer that is to be copied, read as a server would.
pub struct SourceTokenizer(Tokenizer);

impl SourceTokenizer {
    /// Reads `tokenizer.json` at `path`.
    ///
    /// # Errors
    /// [`TextError`] when a server could not use it.
    pub fn open(path: &Path) -> Result<Self, TextError> {
        files::read_tokenizer_file(path).map(Self)
    }

    /// Reads a `tokenizer.json` that was made from the file at `path`.
    ///
    /// # Errors
    /// [`TextError`] when a server could not use it.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, TextError> {
        files::parse_tokenizer(path, json).map(Self)
    }

    /// The id of the `eos_token` that the settings in `dir` name, for a model of `architecture`.
    ///
    /// # Errors
    /// [`TextError`] when the settings cannot be read.
    pub fn end_token(&self, dir: &Path, architecture: &str) -> Result<Option<u32>, TextError> {
        let (config, map) = (TokenizerConfig::read(dir)?, files::read_special_tokens_map(dir)?);
        let tokens = special_tokens::special_tokens(&config, &map, architecture, &self.0);
        Ok(tokens.get("eos_token").and_then(|token| self.0.token_to_id(token)))
    }

    /// Tokens whose ids are not below `vocabulary`, in the order of their ids.
    #[must_use]
    pub fn beyond(&self, vocabulary: usize) -> Vec<(u32, String)> {
        let all = self.0.get_vocab(true).into_iter().map(|(token, id)| (id, token));
        let mut beyond: Vec<_> = all.filter(|(id, _)| *id as usize >= vocabulary).collect();
        beyond.sort_unstable();
        beyond
    }
}
