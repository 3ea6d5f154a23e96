//! Everything that knows text: tokenizer, chat template, incremental detokenizer, stop strings.
//!
//! It lives on the parent's side of the pipe, because the child may die at any moment and a half-told answer must
//! not: the parent has the ids so far, and what it has made of them. The rule that is easiest to get wrong is kept
//! in [`decoder`](Text::decoder): text leaves only as whole UTF-8 characters, whatever the ids are. One piece crosses the
//! pipe: [`Vocabulary`], which a worker reads for its first answer with a constraint.

mod conversation;
mod detokenizer;
mod error;
mod files;
pub mod fuzzing;
mod growth;
mod length;
mod model;
mod rendering;
#[cfg(test)]
mod round_trip;
mod same_tokenizer;
mod special_tokens;
mod stop_strings;
mod template;
mod templates;
#[cfg(test)]
mod tests;
mod token;
mod token_bytes;
mod tool_call;
mod tools;
mod utf8;
mod vocabulary;

pub use self::{
    conversation::{Conversation, Message},
    detokenizer::Detokenizer,
    error::TextError,
    model::{ModelCard, Text},
    rendering::{RenderRequest, Renderer, TemplateFault, TemplateSource},
    same_tokenizer::{TokenizerMismatch, check_same_tokens},
    stop_strings::Chunk,
    templates::TemplateFile,
    token::TokenText,
    tool_call::{Arguments, CalledFunction, ToolCall},
    tools::{Call, CallReader, Calls, Reading, Told, ToolFormat, ToolSupport},
    vocabulary::Vocabulary,
};
