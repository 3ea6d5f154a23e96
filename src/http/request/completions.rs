//! The request of `POST /v1/completions`.

use super::{
    compat,
    generation::{
        GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, choices, max_tokens_or_none,
    },
    prompt::{Prompt, prompt},
    schema::{Modify, boolean, integer, shape},
};
use crate::{http::field_error::FieldError, job::LogprobOptions, units::Tokens};

/// Most alternatives to each token.
const MAX_LOGPROBS: usize = 5;

shape! {
    /// A request of `/v1/completions`.
    pub(crate) struct CompletionRequest {
        ..generation: Generation;
        prompt: Prompt = prompt();
        /// Most tokens of the answer; by default `engine.default_max_new_tokens` or what the context has room for. 0 requires
        /// `echo` and returns the prompt, with its log-probabilities if they are requested.
        max_tokens: Option<Tokens> = max_tokens_or_none();
        /// Answers to generate, one after another.
        n: usize = choices().or(1);
        /// The same as `n`: every answer that is generated is sent.
        best_of: Option<usize> = choices().optional();
        /// The answer begins with the prompt.
        echo: bool = boolean().or(false);
        /// Adds the log-probabilities of the answer's tokens, and of this many alternatives to each.
        logprobs: Option<usize> = integer(0..=MAX_LOGPROBS).optional().unset_at("false");
    }
    accepts compat::OPENAI, compat::COMPLETIONS, compat::WITHOUT_TOOLS, compat::PEERS;
}

impl GenerateRequest for CompletionRequest {
    fn resolve(self, context: &RequestContext) -> Result<GenerateParams, FieldError> {
        self.check_best_of()?;
        let (choices, echo) = (self.n, self.echo);
        let prompt_only = self.max_tokens == Some(Tokens(0));
        if prompt_only && !echo {
            let message =
                "0 requires \"echo\": true, for the log-probabilities of the prompt; send 1 or more";
            return Err(FieldError::value("max_tokens", message));
        }
        // The model generates at least one token.
        let max_new = self.max_tokens.map(|most| most.max(Tokens(1)));
        let params = self.generation.resolve(RouteParams::new(self.prompt, max_new), context)?;
        let scores = self.logprobs.map(|top| LogprobOptions { top, prompt: echo });
        Ok(GenerateParams { choices, echo, prompt_only, scores, ..params })
    }
}

impl CompletionRequest {
    fn check_best_of(&self) -> Result<(), FieldError> {
        match (self.best_of, self.n) {
            (Some(best_of), n) if best_of != n => {
                let message = format!(
                    "is {best_of}, but n is {n}; every answer that is generated is sent, so leave it out or send {n}"
                );
                Err(FieldError::value("best_of", message))
            }
            _ => Ok(()),
        }
    }
}
