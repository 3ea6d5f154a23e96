//! Tokenizes prompts, long ones on another thread. Texts that cannot fit are refused first.

use std::sync::Arc;

use crate::{
    http::{error::ApiError, offload::Cost, state::AppState},
    text::{Text, TextError},
    units::Tokens,
};

/// Where special tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// The tokenizer adds them.
    Added,
    /// The text has them, as that of a chat template.
    Written,
}

/// A text to be tokenized.
#[derive(Debug)]
pub(crate) struct Untokenized {
    pub(crate) text: String,
    pub(crate) special: Special,
}

/// The tokens of a prompt.
///
/// # Errors
/// If the prompt does not fit the context; where possible, before it is tokenized.
pub(crate) async fn tokenize(
    state: &AppState,
    text: &Arc<Text>,
    prompt: Untokenized,
) -> Result<Vec<u32>, ApiError> {
    tokenize_within(state, text, prompt, state.context_length(text)).await
}

/// As [`tokenize`], with a limit of `max` tokens.
pub(crate) async fn tokenize_within(
    state: &AppState,
    text: &Arc<Text>,
    Untokenized { text: source, special }: Untokenized,
    max: Tokens,
) -> Result<Vec<u32>, ApiError> {
    let (text, cost) = (Arc::clone(text), Cost::of_text(source.len()));
    let work = move || -> Result<_, TextError> {
        text.check_length(&source, max.0)?;
        match special {
            Special::Added => text.encode(&source),
            Special::Written => text.encode_bare(&source),
        }
    };
    state.offload.run(cost, work).await
}
