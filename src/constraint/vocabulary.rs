//! A model's tokens, in the form that the compiler needs.

use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::text::Vocabulary;

/// A vocabulary and the trie of its tokens.
struct ModelTokens {
    vocabulary: Vocabulary,
    trie: TokTrie,
}

/// The tokens of `vocabulary`. None of them is marked as an end token: the job names its end tokens.
pub(super) fn environment(vocabulary: Vocabulary) -> TokEnv {
    let words: Vec<Vec<u8>> = vocabulary.tokens().map(<[u8]>::to_vec).collect();
    let size = u32::try_from(words.len()).unwrap_or(u32::MAX);
    let trie = TokTrie::from(&TokRxInfo::new(size, INVALID_TOKEN), &words);
    Arc::new(ModelTokens { vocabulary, trie })
}

impl TokenizerEnv for ModelTokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Tokenizes forced text as the tokenizer does, because the model was trained on those tokens. If the tokenizer would change
    /// the text, it is split greedily into the longest tokens.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.vocabulary.tokenize(bytes).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
