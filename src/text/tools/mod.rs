//! Calls of tools, as models write them.
//!
//! A model calls a tool by writing a JSON object with the tool's name and its arguments, in a format that it was trained
//! on. The chat template shows the model earlier calls in the same format, so the format is recognised by the template's
//! text. Each format is a file below and a row of [`FORMATS`]; [`ToolCallParser`] parses any of them, and the start rule of a
//! format is a grammar for the places of calls.

mod format;
mod hermes;
mod llama;
mod mistral;
mod object;
mod parser;
#[cfg(test)]
mod tests;

pub use self::{
    format::{Calls, ToolFormat},
    parser::{AnswerDelta, Call, ToolCallParser, ToolCallParserOptions},
};

/// All formats, the more particular first.
pub(super) const FORMATS: [&ToolFormat; 3] = [&hermes::FORMAT, &mistral::FORMAT, &llama::FORMAT];

/// A chat template's support for tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSupport {
    /// It ignores tools.
    None,
    /// It supports tools, but eka cannot parse its format of calls.
    UnknownFormat,
    /// It supports tools, with this format of calls.
    Read(&'static ToolFormat),
}

impl ToolSupport {
    /// The support in the text of a chat template.
    #[must_use]
    pub fn of(template: &str) -> Self {
        if !template.contains("tools") {
            return Self::None;
        }
        FORMATS.into_iter().find(|format| (format.is_of)(template)).map_or(Self::UnknownFormat, Self::Read)
    }
}
