//! The requests of `POST /tokenize`, `/detokenize` and `/apply-template`.

use serde_json::Value;

use super::{
    compat,
    messages::messages,
    prompt::token_ids,
    schema::{Modify, boolean, shape, string},
    thinking::ThinkingFields,
    tool_definitions::{Tool, chat_tools},
};
use crate::{http::field_error::FieldError, text::Conversation};

shape! {
    /// A request of `/tokenize`: one of `content`, `prompt` and `messages`.
    pub(crate) struct TokenizeRequest {
        ..thinking: ThinkingFields;
        _model as "model": Option<String> = string().optional();
        /// A text, which gets no special tokens unless `add_special` is true.
        content: Option<String> = string().optional();
        /// A text, which gets the special tokens of a prompt unless `add_special` is false.
        prompt: Option<String> = string().optional();
        /// A conversation, to which the chat template is applied.
        messages: Option<Conversation> = messages().optional();
        /// Functions that the chat template shows to the model; only for `messages`.
        tools: Vec<Tool> = chat_tools().or_empty();
        add_special: Option<bool> = boolean().optional();
        /// Another name of `add_special`.
        add_special_tokens: Option<bool> = boolean().optional();
        /// Tokens come with their texts.
        with_pieces: bool = boolean().or(false);
        /// The texts of the tokens are in `token_strs`, as in vLLM.
        return_token_strs: bool = boolean().or(false);
    }
    accepts compat::TOKENIZE;
}

shape! {
    /// A request of `/detokenize`.
    pub(crate) struct DetokenizeRequest {
        _model as "model": Option<String> = string().optional();
        tokens: Vec<u32> = token_ids();
    }
}

shape! {
    /// A request of `/apply-template`.
    pub(crate) struct ApplyTemplateRequest {
        ..thinking: ThinkingFields;
        _model as "model": Option<String> = string().optional();
        messages: Conversation = messages();
        /// Functions that the chat template shows to the model.
        tools: Vec<Tool> = chat_tools().or_empty();
    }
    accepts compat::TEMPLATE;
}
/// A text to tokenize.
#[derive(Debug)]
pub(crate) enum Source {
    Text { text: String, add_special: bool },
    Conversation(Conversation),
}

impl TokenizeRequest {
    /// The text, of which there must be exactly one.
    pub(crate) fn source(self) -> Result<Source, FieldError> {
        let add_special = self.add_special.or(self.add_special_tokens);
        let conversation = with_tools(self.messages, self.tools)?;
        let conversation = match conversation {
            Some(conversation) => Some(self.thinking.apply(conversation)?.0),
            None => None,
        };
        match (self.content, self.prompt, conversation) {
            (Some(text), None, None) => Ok(Source::Text { text, add_special: add_special.unwrap_or(false) }),
            (None, Some(text), None) => Ok(Source::Text { text, add_special: add_special.unwrap_or(true) }),
            (None, None, Some(_)) if add_special == Some(true) => Err(FieldError::value(
                "add_special",
                "cannot be true with messages: the chat template adds the special tokens; leave it out or send false",
            )),
            (None, None, Some(conversation)) => Ok(Source::Conversation(conversation)),
            (None, None, None) => Err(FieldError::Missing { param: "content, prompt or messages".into() }),
            (Some(_), Some(_), _) => Err(FieldError::conflict("prompt", "content")),
            (Some(_), None, Some(_)) => Err(FieldError::conflict("messages", "content")),
            (None, Some(_), Some(_)) => Err(FieldError::conflict("messages", "prompt")),
        }
    }
}

impl ApplyTemplateRequest {
    /// The conversation.
    ///
    /// # Errors
    /// When fields contradict each other.
    pub(crate) fn conversation(self) -> Result<Conversation, FieldError> {
        let conversation = Conversation { tools: definitions(self.tools), ..self.messages };
        Ok(self.thinking.apply(conversation)?.0)
    }
}

/// Adds `tools` to a conversation; they require one.
pub(crate) fn with_tools(
    messages: Option<Conversation>,
    tools: Vec<Tool>,
) -> Result<Option<Conversation>, FieldError> {
    match messages {
        Some(conversation) => Ok(Some(Conversation { tools: definitions(tools), ..conversation })),
        None if tools.is_empty() => Ok(None),
        None => Err(FieldError::requires("tools", "messages")),
    }
}

fn definitions(tools: Vec<Tool>) -> Vec<Value> {
    tools.into_iter().map(|tool| tool.definition).collect()
}
