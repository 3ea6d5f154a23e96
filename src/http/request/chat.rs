//! The request of `POST /v1/chat/completions`.

use super::{
    compat,
    generation::{
        Delivery, GenerateParams, GenerateRequest, Generation, RequestContext, RouteParams, choices,
        max_tokens,
    },
    messages::messages,
    prompt::Prompt,
    schema::{Modify, boolean, integer, shape},
    thinking::ThinkingFields,
    token_details::{TokenDetails, TokenFields},
    tool_definitions::{Tool, ToolChoice, chat_tools, tool_choice},
    tools::ToolSet,
};
use crate::{http::field_error::FieldError, text::Conversation, units::Tokens};

/// Most alternatives to each token.
const MAX_TOP_LOGPROBS: usize = 20;

shape! {
    /// A request of `/v1/chat/completions`.
    pub(crate) struct ChatRequest {
        ..generation: Generation;
        ..thinking: ThinkingFields;
        ..tokens: TokenFields;
        /// The conversation so far.
        messages: Conversation = messages();
        /// Most tokens of the answer; by default `engine.default_max_new_tokens` or what the context has room for.
        max_completion_tokens: Option<Tokens> = max_tokens();
        /// The older name of `max_completion_tokens`.
        max_tokens: Option<Tokens> = max_tokens().deprecated();
        /// Answers to generate, together.
        n: usize = choices().or(1);
        /// If the last message is the assistant's, the answer begins with its text.
        echo: bool = boolean().or(false);
        /// Adds the log-probabilities of the answer's tokens.
        logprobs: bool = boolean().or(false);
        /// Adds those of this many alternatives to each token; requires `logprobs`.
        top_logprobs: Option<usize> = integer(0..=MAX_TOP_LOGPROBS).optional();
        /// Functions that the model may call; their names differ.
        tools: Vec<Tool> = chat_tools().or_empty();
        tool_choice: Option<ToolChoice> = tool_choice().optional();
        /// Whether one answer may have several calls.
        parallel_tool_calls: bool = boolean().or(true);
    }
    accepts compat::OPENAI, compat::NOT_STORED, compat::CHAT, compat::PEERS;
}

impl GenerateRequest for ChatRequest {
    fn resolve(self, context: &RequestContext<'_>) -> Result<GenerateParams, FieldError> {
        let (choices, details, max_new) = (self.n, self.details()?, self.max_new()?);
        let choice = self.tool_choice.unwrap_or(ToolChoice::Auto);
        let tools = ToolSet::new(self.tools, choice, self.parallel_tool_calls)?;
        let last = self.messages.messages.last().filter(|last| self.echo && last.role == "assistant");
        let echoed_text = last.and_then(|last| last.content.clone());
        let (mut conversation, thinking) = self.thinking.apply(self.messages)?;
        if let Some(tools) = &tools {
            conversation = tools.add_to(conversation, &context.tools);
        }
        let route = RouteParams { tools, ..RouteParams::new(Prompt::Conversation(conversation), max_new) };
        let params = self.generation.resolve(route, context)?;
        if params.delivery != Delivery::Whole {
            details.check_streamed()?;
        }
        let scores = details.scores(false);
        Ok(GenerateParams { choices, scores, details, echoed_text, ..params }.with_thinking(thinking))
    }
}

impl ChatRequest {
    fn details(&self) -> Result<TokenDetails, FieldError> {
        match self.top_logprobs {
            Some(1..) if !self.logprobs => Err(FieldError::requires("top_logprobs", "\"logprobs\": true")),
            top => Ok(self.tokens.resolve(self.logprobs.then_some(top.unwrap_or(0)))),
        }
    }

    fn max_new(&self) -> Result<Option<Tokens>, FieldError> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(newer), Some(older)) if newer != older => {
                let message =
                    format!("is {}, but max_completion_tokens is {}; send one of them", older.0, newer.0);
                Err(FieldError::value("max_tokens", message))
            }
            (newer, older) => Ok(newer.or(older)),
        }
    }
}
