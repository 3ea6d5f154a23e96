//! The request of `POST /generate-lite`.

use super::{
    compat,
    generation::{GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, max_tokens},
    messages::messages,
    prompt::{Prompt, prompt},
    schema::{Modify, shape},
};
use crate::{http::field_error::FieldError, text::Conversation, units::Tokens};

shape! {
    /// A request of `/generate-lite`.
    pub(crate) struct GenerateLiteRequest {
        ..generation: Generation;
        /// The text to continue; either this or `messages`.
        prompt: Option<Prompt> = prompt().optional();
        /// The conversation to answer; either this or `prompt`.
        messages: Option<Conversation> = messages().optional();
        /// Most tokens of the answer; by default `engine.default_max_new_tokens` or what the context has room for.
        max_new_tokens: Option<Tokens> = max_tokens();
    }
    accepts compat::OPENAI, compat::NOT_STORED, compat::WITHOUT_TOKENS, compat::SINGLE, compat::WITHOUT_TOOLS, compat::WITHOUT_THINKING, compat::PEERS;
}

impl GenerateRequest for GenerateLiteRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let prompt = Prompt::choose(self.prompt, self.messages)?;
        let route = RouteParams { default_temperature: 0.0, ..RouteParams::new(prompt, self.max_new_tokens) };
        self.generation.resolve(route, context)
    }
}
