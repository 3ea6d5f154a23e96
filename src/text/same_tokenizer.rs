//! Checks that a draft model has the tokens of the model that it drafts for.

use std::path::Path;

use tokenizers::Tokenizer;

use super::{TextError, files};
use crate::manifest::{Manifest, ManifestError};

/// Why a model cannot be the draft model of another.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerMismatch {
    /// A tokenizer cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A token is not the same in both.
    #[error(
        "token {id} is {model} in the model and {draft} in its draft model, which must have the same tokens; set --draft-model to a model \
         with the same tokenizer.json, or leave it out"
    )]
    TokenDiffers {
        /// The first token that differs.
        id: u32,
        /// The token of the model in quotes, or `none`.
        model: String,
        /// The token of the draft model.
        draft: String,
    },
    /// The draft model's vocabulary is smaller than its tokenizer's.
    #[error(
        "the draft model's graph has {draft_vocab} token ids, but the tokenizer has ids up to {last}; set --draft-model to a model that \
         was exported with this tokenizer, or leave it out"
    )]
    VocabTooSmall {
        /// Token ids of the draft model's graph.
        draft_vocab: usize,
        /// The greatest id that is a token.
        last: u32,
    },
}

/// Checks that the tokenizers of two model directories have the same tokens, and that the graph of `draft_dir` has all of
/// them. Ids without a token, which only pad graphs, may be missing.
///
/// # Errors
/// [`TokenizerMismatch`] with the first token that is not the same in both.
pub fn check_same_tokens(model_dir: &Path, draft_dir: &Path) -> Result<(), TokenizerMismatch> {
    let (model, draft) = (Tokens::read(model_dir)?, Tokens::read(draft_dir)?);
    let mut last = 0;
    for id in (0_u32..).take(model.id_count().max(draft.id_count())) {
        let (token, drafted) = (model.tokenizer.id_to_token(id), draft.tokenizer.id_to_token(id));
        if token != drafted {
            let [model, draft] =
                [token, drafted].map(|token| token.map_or("none".into(), |token| format!("{token:?}")));
            return Err(TokenizerMismatch::TokenDiffers { id, model, draft });
        }
        if token.is_some() {
            last = id;
        }
    }
    if last as usize >= draft.graph_vocab {
        return Err(TokenizerMismatch::VocabTooSmall { draft_vocab: draft.graph_vocab, last });
    }
    Ok(())
}

/// The tokens of a model.
struct Tokens {
    tokenizer: Tokenizer,
    /// Token ids of the graph, some of which may have no token.
    graph_vocab: usize,
}

impl Tokens {
    fn read(dir: &Path) -> Result<Self, TokenizerMismatch> {
        Ok(Self { tokenizer: files::read_tokenizer(dir)?, graph_vocab: Manifest::read(dir)?.dims.vocab })
    }

    /// Every id with a token is below this number.
    fn id_count(&self) -> usize {
        self.graph_vocab.max(self.tokenizer.get_vocab_size(true))
    }
}
