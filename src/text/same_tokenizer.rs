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
        "token {id} is {own} in the model and {other} in its draft model, which must have the same tokens; set --draft-model to a model \
         with the same tokenizer.json, or leave it out"
    )]
    Other {
        /// The first token that differs.
        id: u32,
        /// The token of the model, or that it has none.
        own: String,
        /// The token of the draft model.
        other: String,
    },
    /// The draft model's vocabulary is smaller than its tokenizer's.
    #[error(
        "the draft model's graph has {vocabulary} token ids, but the tokenizer has ids up to {last}; set --draft-model to a model that \
         was exported with this tokenizer, or leave it out"
    )]
    Fewer {
        /// Ids of the graph.
        vocabulary: usize,
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
    let [model, draft] = [model_dir, draft_dir].map(|dir| {
        let tokenizer = files::read_tokenizer(dir)?;
        Ok::<_, TokenizerMismatch>((tokenizer, Manifest::read(dir)?.dims.vocab))
    });
    let ((own, size), (other, vocabulary)) = (model?, draft?);
    let named = |tokenizer: &Tokenizer| tokenizer.get_vocab_size(true);
    let max = [size, vocabulary, named(&own), named(&other)].into_iter().max().unwrap_or(0);
    let mut last = 0;
    for id in (0_u32..).take(max) {
        let spelled = [&own, &other].map(|tokenizer| tokenizer.id_to_token(id));
        if spelled[0] != spelled[1] {
            let [own, other] = spelled.map(|token| token.map_or("none".into(), |token| format!("{token:?}")));
            return Err(TokenizerMismatch::Other { id, own, other });
        }
        last = if spelled[0].is_some() { id } else { last };
    }
    if last as usize >= vocabulary {
        return Err(TokenizerMismatch::Fewer { vocabulary, last });
    }
    Ok(())
}
