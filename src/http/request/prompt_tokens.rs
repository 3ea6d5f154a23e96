//! The tokens of prompts. Texts that cannot fit are refused before they are tokenized.
//!
//! Conversations are rendered in the sandbox: a chat template is an untrusted program from the model's folder. Long texts are
//! tokenized on another thread.

use std::sync::Arc;

use super::prompt::Prompt;
use crate::{
    http::{error::ApiError, field_error::FieldError, offload::Cost, state::AppState},
    text::{Conversation, Text, TextError},
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

/// The tokens of a prompt; at least one.
///
/// # Errors
/// When the prompt has no tokens or does not fit the context; where possible, before it is tokenized.
pub(crate) async fn encode(state: &AppState, text: &Arc<Text>, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    let (prompt, special) = match prompt {
        Prompt::Ids(ids) => return Ok(ids),
        Prompt::Text(prompt) => (prompt, Special::Added),
        Prompt::Conversation(conversation) => (render(state, text, conversation).await?, Special::Written),
    };
    let ids =
        tokenize(state, text, Untokenized { text: prompt, special }, state.context_length(text)).await?;
    if ids.is_empty() { Err(FieldError::EmptyPrompt { param: "prompt".into() }.into()) } else { Ok(ids) }
}

/// The prompt of a conversation, up to the assistant's next message.
pub(crate) async fn render(
    state: &AppState,
    text: &Arc<Text>,
    conversation: Conversation,
) -> Result<String, ApiError> {
    let (model, cost) = (Arc::clone(text), Cost::of_json(conversation.text_bytes()));
    let request = state.offload.run(cost, move || model.render_request(&conversation)).await?;
    Ok(state.sandbox()?.render(text, request).await??)
}

/// The tokens of a text, of which there may be `max`.
pub(crate) async fn tokenize(
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
