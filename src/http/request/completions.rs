//! The request of `POST /v1/completions`.

use super::{
    compat,
    generation::{
        Delivery, GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, choices,
        max_tokens_or_none,
    },
    infill,
    prompt::{Prompt, check_answers, prompts},
    schema::{Modify, boolean, integer, shape, string},
    token_details::TokenFields,
};
use crate::{http::field_error::FieldError, job::LogprobOptions, units::Tokens};

/// Most alternatives to each token.
const MAX_LOGPROBS: usize = 20;

shape! {
    /// A request of `/v1/completions`.
    pub(crate) struct CompletionRequest {
        ..generation: Generation;
        ..tokens: TokenFields;
        /// The texts to continue: at most 64. Each has `n` choices, which follow each other in the answer.
        prompt: Vec<Prompt> = prompts();
        /// Most tokens of the answer; by default `engine.default_max_new_tokens` or what the context has room for. 0 requires
        /// `echo` and returns the prompt, with its log-probabilities if they are requested.
        max_tokens: Option<Tokens> = max_tokens_or_none();
        /// Answers to generate for each prompt, together.
        n: usize = choices().or(1);
        /// Answers to generate for each prompt, by default `n`. If they are more, the `n` with the greatest mean
        /// log-probability of a token are sent, the best one first. Not for streams.
        best_of: Option<usize> = choices().optional();
        /// The text after the gap that the answer fills, for models whose tokenizer has tokens for this. The prompt is the text
        /// before it.
        suffix: Option<String> = string().optional().unset_at("\"\"");
        /// The answer begins with the prompt.
        echo: bool = boolean().or(false);
        /// Adds the log-probabilities of the answer's tokens, and of this many alternatives to each.
        logprobs: Option<usize> = integer(0..=MAX_LOGPROBS).optional().unset_at("false");
    }
    accepts compat::OPENAI, compat::NOT_STORED, compat::COMPLETIONS, compat::WITHOUT_TOOLS, compat::WITHOUT_THINKING, compat::PEERS;
}

impl GenerateRequest for CompletionRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        self.check_best_of()?;
        self.check_sequences()?;
        let (choices, echo) = (self.choices(), self.echo);
        let best_of = (choices > self.n).then_some(self.n);
        let details = self.tokens.resolve(self.logprobs);
        let prompt_only = self.max_tokens == Some(Tokens(0));
        if prompt_only && !echo {
            let message =
                "0 requires \"echo\": true, for the log-probabilities of the prompt; send 1 or more";
            return Err(FieldError::value("max_tokens", message));
        }
        // The model generates at least one token.
        let max_new = self.max_tokens.map(|most| most.max(Tokens(1)));
        let mut generation = self.generation;
        let mut prompts = self.prompt;
        if let Some(suffix) = &self.suffix {
            if echo {
                return Err(FieldError::conflict("echo", "suffix"));
            }
            generation.stop_token_ids.extend(infill::apply(&mut prompts, ("suffix", suffix), context)?);
        }
        let mut prompts = prompts.into_iter();
        let first = prompts.next().ok_or_else(|| FieldError::EmptyPrompt { param: "prompt".into() })?;
        let more_prompts: Vec<Prompt> = prompts.collect();
        for (index, prompt) in more_prompts.iter().enumerate() {
            prompt.check(&format!("prompt[{}]", index + 1), context.vocabulary)?;
        }
        let params = generation.resolve(RouteParams::new(first, max_new), context)?;
        if params.delivery != Delivery::Whole {
            details.check_streamed()?;
        }
        let scores = details.scores(echo).or(best_of.map(|_| LogprobOptions::default()));
        if best_of.is_some() && params.delivery != Delivery::Whole {
            let message = "cannot be combined with a best_of above n, which is known at the end only";
            return Err(FieldError::value("stream", message));
        }
        Ok(GenerateParams { more_prompts, choices, best_of, echo, prompt_only, scores, details, ..params })
    }
}

impl CompletionRequest {
    /// Answers to generate for each prompt.
    fn choices(&self) -> usize {
        self.best_of.unwrap_or(self.n)
    }

    fn check_sequences(&self) -> Result<(), FieldError> {
        let field = if self.best_of.is_some() { "best_of" } else { "n" };
        check_answers(field, self.prompt.len(), self.choices())
    }

    fn check_best_of(&self) -> Result<(), FieldError> {
        match (self.best_of, self.n) {
            (Some(best_of), n) if best_of < n => {
                let message = format!("is {best_of}, but n is {n}; send {n} or more, or leave it out");
                Err(FieldError::value("best_of", message))
            }
            _ => Ok(()),
        }
    }
}
