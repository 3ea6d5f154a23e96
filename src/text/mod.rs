//! Tokenizer, chat templates, incremental detokenizer, stop strings and tool calls.
//!
//! It runs in the parent process, because a worker may die in the middle of an answer, and the answer must survive: the
//! parent has the ids so far and their text. The [detokenizer](Text::detokenizer) guarantees that only whole UTF-8
//! characters leave, for any ids. A worker only uses [`Vocabulary`], which it reads for its first answer with a constraint.

mod answer;
mod charsmap;
mod conversation;
mod detokenizer;
mod error;
mod files;
pub mod fuzzing;
mod growth;
mod length;
mod model;
#[cfg(test)]
mod published;
mod reasoning;
mod rendering;
#[cfg(test)]
mod round_trip;
mod same_tokenizer;
mod source_tokenizer;
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
    answer::{AnswerParser, AnswerParserOptions, ReasoningOptions},
    conversation::{Conversation, Message, PromptEnding},
    detokenizer::Detokenizer,
    error::TextError,
    model::{ModelCard, Text},
    reasoning::ReasoningFormat,
    rendering::{RenderRequest, Renderer, TemplateFault, TemplateSource},
    same_tokenizer::{TokenizerMismatch, check_same_tokens},
    source_tokenizer::SourceTokenizer,
    stop_strings::Chunk,
    templates::TemplateFile,
    token::TokenText,
    tool_call::{Arguments, CalledFunction, ToolCall},
    tools::{
        AnswerDelta, Call, Calls, SchemaSyntax, ToolCallParser, ToolCallParserOptions, ToolFormat,
        ToolSignature, ToolSupport,
    },
    vocabulary::Vocabulary,
};
