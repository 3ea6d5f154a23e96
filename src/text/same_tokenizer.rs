//! Whether two models have the same tokens, so that one may guess what the other says.

use std::path::Path;

use tokenizers::Tokenizer;

use super::{TextError, files};
use crate::manifest::{Manifest, ManifestError};

/// Why one model cannot guess for another.
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
        "token {id} is {own} for the model and {other} for its draft model, which must have the same tokens; name a model \
         with the same tokenizer.json, or none"
    )]
    Other {
        /// The first token that differs.
        id: u32,
        /// As the model spells it, or that there is none.
        own: String,
        /// As the draft model spells it.
        other: String,
    },
    /// The draft model's graph knows fewer tokens than its tokenizer.
    #[error(
        "the draft model's graph has {vocabulary} token ids, and the tokenizer of both goes up to {last}; name a model that \
         was exported with this tokenizer, or none"
    )]
    Fewer {
        /// Ids of the graph.
        vocabulary: usize,
        /// The greatest id that is a token.
        last: u32,
    },
}

/// Checks that the models in two directories spell every token alike, and that the graph of `draft_dir` has all of them. Ids
/// that are no token, with which graphs are padded, need not be there.
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
    let most = [size, vocabulary, named(&own), named(&other)].into_iter().max().unwrap_or(0);
    let mut last = 0;
    for id in (0_u32..).take(most) {
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
