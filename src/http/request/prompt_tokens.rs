//! The tokens of prompts. Texts that cannot fit are refused before they are tokenized.
//!
//! Conversations are rendered in the sandbox: a chat template is an untrusted program from the model's folder. Long texts are
//! tokenized on another thread.

use std::sync::Arc;

use super::{
    generation::TruncationSide,
    prompt::{Prompt, PromptPiece},
};
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

/// A model, with the server's limits on it.
#[derive(Clone, Copy)]
pub(crate) struct ServedModel<'a> {
    pub(crate) state: &'a AppState,
    pub(crate) text: &'a Arc<Text>,
}

/// Token limit of a prompt that is shortened, for models with a shorter context. Tokenizing takes hundreds of bytes of memory
/// per token.
const MAX_TRUNCATED: usize = 1 << 17;

/// What becomes of a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EncodeOptions {
    /// Ends the reasoning that a chat template begins: the answer must have another form.
    pub(crate) ends_reasoning: bool,
    /// Keeps at most this number of its tokens, and removes those on this side.
    pub(crate) truncation: Option<(usize, TruncationSide)>,
}

/// A prompt as tokens.
#[derive(Debug)]
pub(crate) struct EncodedPrompt {
    pub(crate) ids: Vec<u32>,
    /// Whether the answer begins within the model's reasoning.
    pub(crate) is_in_reasoning: bool,
}

impl From<Vec<u32>> for EncodedPrompt {
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, is_in_reasoning: false }
    }
}

impl ServedModel<'_> {
    /// The tokens of a prompt; at least one.
    ///
    /// # Errors
    /// When the prompt has no tokens or does not fit the context; where possible, before it is tokenized.
    pub(crate) async fn encode(
        self,
        prompt: Prompt,
        options: EncodeOptions,
    ) -> Result<EncodedPrompt, ApiError> {
        let (mut prompt, special) = match prompt {
            Prompt::Ids(ids) => return Ok(truncated(ids, options.truncation).into()),
            Prompt::Mixed(pieces) => {
                return Ok(truncated(self.join(pieces).await?, options.truncation).into());
            }
            Prompt::Text(prompt) => (prompt, Special::Added),
            Prompt::Conversation(conversation) => (self.render(conversation).await?, Special::Written),
        };
        let reasoning = self.text.reasoning().filter(|_| special == Special::Written);
        let opened = reasoning.filter(|format| format.is_open(&prompt));
        if let Some(format) = opened.filter(|_| options.ends_reasoning) {
            prompt.push_str(format.end());
        }
        let is_in_reasoning = opened.is_some() && !options.ends_reasoning;
        let max = match options.truncation {
            Some(_) => self.context_length().max(Tokens(MAX_TRUNCATED)),
            None => self.context_length(),
        };
        let ids = truncated(self.tokenize(prompt, special, max).await?, options.truncation);
        if ids.is_empty() {
            return Err(FieldError::EmptyPrompt { param: "prompt".into() }.into());
        }
        Ok(EncodedPrompt { ids, is_in_reasoning })
    }

    /// The tokens of pieces, the first of which are ids: so no text gets special tokens.
    async fn join(self, pieces: Vec<PromptPiece>) -> Result<Vec<u32>, ApiError> {
        let mut all = Vec::new();
        for piece in pieces {
            all.extend(match piece {
                PromptPiece::Ids(ids) => ids,
                PromptPiece::Text(text) => {
                    self.tokenize(text, Special::Written, self.context_length()).await?
                }
            });
        }
        Ok(all)
    }

    /// The prompt of a conversation, up to the assistant's next message.
    pub(crate) async fn render(self, conversation: Conversation) -> Result<String, ApiError> {
        let (model, cost) = (Arc::clone(self.text), Cost::of_json(conversation.text_bytes()));
        let prefix = conversation.answer_prefix.clone();
        let request = self.state.offload.run(cost, move || model.render_request(&conversation)).await?;
        let text = self.state.sandbox()?.render(self.text, request).await??;
        Ok(self.text.with_answer_prefix(text, &prefix))
    }

    /// The tokens of a text, of which there may be `max`.
    pub(crate) async fn tokenize(
        self,
        source: String,
        special: Special,
        max: Tokens,
    ) -> Result<Vec<u32>, ApiError> {
        let (text, cost) = (Arc::clone(self.text), Cost::of_text(source.len()));
        let work = move || -> Result<_, TextError> {
            text.check_length(&source, max.0)?;
            match special {
                Special::Added => text.encode(&source),
                Special::Written => text.encode_bare(&source),
            }
        };
        self.state.offload.run(cost, work).await
    }

    /// The text of tokens.
    pub(crate) async fn decode(self, ids: &[u32]) -> Result<String, ApiError> {
        let (text, ids) = (Arc::clone(self.text), ids.to_vec());
        let cost = Cost::of_text(ids.len());
        self.state.offload.run(cost, move || Ok::<_, ApiError>(text.decode(&ids))).await
    }

    /// Maximum tokens of prompt and answer together.
    pub(crate) fn context_length(self) -> Tokens {
        self.state.context_length(self.text)
    }
}

/// The tokens that are kept.
fn truncated(mut ids: Vec<u32>, truncation: Option<(usize, TruncationSide)>) -> Vec<u32> {
    match truncation {
        Some((max, TruncationSide::Left)) => {
            ids.drain(..ids.len().saturating_sub(max));
        }
        Some((max, TruncationSide::Right)) => ids.truncate(max),
        None => {}
    }
    ids
}
