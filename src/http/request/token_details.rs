//! vLLM's fields for details of tokens: their ids, and the log-probabilities of the prompt.

use super::schema::{Modify, boolean, integer, shape};
use crate::{http::field_error::FieldError, job::LogprobOptions};

/// Most alternatives to each token of the prompt.
const MAX_PROMPT_LOGPROBS: usize = 20;

shape! {
    /// Details of tokens.
    pub(crate) struct TokenFields {
        /// Adds the ids of the prompt's tokens, and of the answer's tokens without the end token.
        return_token_ids: bool = boolean().or(false);
        /// Log-probabilities have tokens as `token_id:17` instead of their texts.
        return_tokens_as_token_ids: bool = boolean().or(false);
        /// Adds the log-probabilities of the prompt's tokens, and of this many alternatives to each. Not for streams.
        prompt_logprobs: Option<usize> = integer(0..=MAX_PROMPT_LOGPROBS).optional();
    }
}

/// Details of tokens that an answer has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenDetails {
    /// Whether it has the ids of all tokens.
    pub(crate) has_ids: bool,
    /// Whether log-probabilities name tokens by their ids.
    pub(crate) names_ids: bool,
    /// Whether it has the log-probabilities of its own tokens, and of how many alternatives to each.
    pub(crate) top: Option<usize>,
    /// The same for the prompt.
    pub(crate) prompt_top: Option<usize>,
    /// Whether the probabilities are those that the sampler draws from, not the model's.
    pub(crate) after_sampling: bool,
}

impl TokenFields {
    /// The details of an answer with log-probabilities of `top` alternatives to each of its tokens.
    pub(super) fn resolve(&self, top: Option<usize>) -> TokenDetails {
        TokenDetails {
            has_ids: self.return_token_ids,
            names_ids: self.return_tokens_as_token_ids,
            top,
            prompt_top: self.prompt_logprobs,
            after_sampling: false,
        }
    }
}

impl TokenDetails {
    /// What the model has to score for an answer that begins with its prompt if it has `echo`.
    pub(super) fn scores(&self, echo: bool) -> Option<LogprobOptions> {
        let top = self.top.max(self.prompt_top)?;
        let prompt = self.prompt_top.is_some() || (echo && self.top.is_some());
        Some(LogprobOptions { top, prompt, after_sampling: self.after_sampling })
    }

    /// Checks that a stream can have them.
    pub(super) fn check_streamed(&self) -> Result<(), FieldError> {
        if self.prompt_top.is_some() {
            let message = "cannot be combined with \"stream\": true; leave one of them out";
            return Err(FieldError::value("prompt_logprobs", message));
        }
        Ok(())
    }
}
