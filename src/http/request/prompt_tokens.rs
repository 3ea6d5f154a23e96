//! Tokenizes texts: on another thread where that takes long, and not at all where a text cannot fit.

use std::sync::Arc;

use crate::{
    http::{error::ApiError, offload::Cost, state::AppState},
    text::{Text, TextError},
    units::Tokens,
};

/// Who puts special tokens around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// The tokenizer.
    Added,
    /// The text's author, such as a chat template.
    Written,
}

/// A text to be tokenized.
#[derive(Debug)]
pub(crate) struct Untokenized {
    pub(crate) text: String,
    pub(crate) special: Special,
}

/// The tokens of a prompt. One that the context cannot hold is refused before it is tokenized, where that can be known.
pub(crate) async fn tokenize(
    state: &AppState,
    text: &Arc<Text>,
    prompt: Untokenized,
) -> Result<Vec<u32>, ApiError> {
    tokenize_within(state, text, prompt, state.context_length(text)).await
}

/// As [`tokenize`], of a text that has `most` tokens at most.
pub(crate) async fn tokenize_within(
    state: &AppState,
    text: &Arc<Text>,
    Untokenized { text: source, special }: Untokenized,
    most: Tokens,
) -> Result<Vec<u32>, ApiError> {
    let (text, cost) = (Arc::clone(text), Cost::of_text(source.len()));
    let work = move || -> Result<_, TextError> {
        text.check_length(&source, most.0)?;
        match special {
            Special::Added => text.encode(&source),
            Special::Written => text.encode_bare(&source),
        }
    };
    state.offload.run(cost, work).await
}
