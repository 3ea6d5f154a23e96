//! Calls of tools, as models write them.
//!
//! A model calls a tool by writing the tool's name and its arguments in a format that it was trained on. The chat template
//! shows the model earlier calls in the same format, so the format is recognised by the template's text. Each format is a row
//! of [`FORMATS`]: the texts around calls, and the syntax of a call, which has a reader. [`ToolCallParser`] parses any of
//! them, and [`grammar`] makes a grammar for answers that must be calls.
//!
//! A template without tools gets [`generic`] instructions, and calls in Hermes' format.

mod format;
mod formats;
mod gemma;
mod generic;
mod grammar;
mod literal;
mod named;
mod object;
mod parser;
mod partial_call;
mod python;
mod reader;
mod schema_types;
mod step;
mod tagged;
#[cfg(test)]
mod tests;

pub(super) use self::formats::FORMATS;
use self::formats::HERMES;
pub(super) use self::generic::without_tools;
pub use self::{
    format::{Calls, ToolFormat},
    grammar::SchemaSyntax,
    parser::{AnswerDelta, Call, ToolCallParser, ToolCallParserOptions},
    schema_types::ToolSignature,
};

/// A chat template's support for tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSupport {
    /// It ignores tools: the conversation describes them instead, with Hermes' format of calls.
    Generic,
    /// It shows tools, but in a format of calls that eka does not know. Calls are read in Hermes' format.
    UnknownFormat,
    /// It supports tools, with this format of calls.
    Native(&'static ToolFormat),
}

impl ToolSupport {
    /// The support in the text of a chat template.
    #[must_use]
    pub fn of(template: &str) -> Self {
        if !template.contains("tools") {
            return Self::Generic;
        }
        FORMATS.into_iter().find(|format| (format.is_of)(template)).map_or(Self::UnknownFormat, Self::Native)
    }

    /// The format of calls.
    #[must_use]
    pub const fn format(self) -> &'static ToolFormat {
        match self {
            Self::Generic | Self::UnknownFormat => &HERMES,
            Self::Native(format) => format,
        }
    }
}
