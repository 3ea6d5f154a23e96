//! Calls of tools, as models write them.
//!
//! A model calls a tool by writing a JSON object with the tool's name and its arguments, in a format that it was trained
//! on. The chat template shows the model earlier calls in the same format, and so it is the template's text that says which
//! one it is. Each format is a file below and a row of [`FORMATS`]; [`CallReader`] reads any of them, and the start rule of
//! a format says by a grammar where calls may stand.

mod hermes;
mod llama;
mod mistral;
mod object;
mod reader;
#[cfg(test)]
mod tests;

use std::fmt;

use rand::distr::{Alphanumeric, SampleString};

pub use self::reader::{Call, CallReader, Reading, Told};

/// All formats, the more particular first.
pub(super) const FORMATS: [&ToolFormat; 3] = [&hermes::FORMAT, &mistral::FORMAT, &llama::FORMAT];

/// How a model writes calls.
pub struct ToolFormat {
    /// Whether this template's model writes so.
    is_of: fn(template: &str) -> bool,
    /// What stands before calls.
    marker: &'static str,
    /// An answer that begins with an object is a call, without a marker.
    bare: bool,
    /// What stands between the marker and the first call.
    open: &'static str,
    /// One of these stands between two calls.
    between: &'static [char],
    /// What stands after the last call.
    close: &'static str,
    /// What an answer that must be calls is made to begin with.
    opening: &'static str,
    /// The name of a call's arguments.
    arguments: &'static str,
    /// How the ids of calls begin, and how many characters follow.
    id: (&'static str, usize),
    /// The grammar's start rules.
    start: fn(Calls) -> &'static str,
}

/// How many calls a grammar allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// At least one, and nothing but calls.
    pub required: bool,
    /// At most one.
    pub single: bool,
}

/// What a model's chat template says about tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSupport {
    /// It passes none on.
    None,
    /// It passes them on, and calls are written in a way that eka cannot read.
    Unread,
    /// Calls are written like this.
    Read(&'static ToolFormat),
}

impl ToolSupport {
    /// What the text of a chat template says.
    #[must_use]
    pub fn of(template: &str) -> Self {
        if !template.contains("tools") {
            return Self::None;
        }
        FORMATS.into_iter().find(|format| (format.is_of)(template)).map_or(Self::Unread, Self::Read)
    }
}

impl ToolFormat {
    /// What stands before calls.
    #[must_use]
    pub const fn marker(&self) -> &'static str {
        self.marker
    }

    /// What the prompt ends with when calls must come, so that the answer is what [`ToolFormat::grammar`] describes.
    #[must_use]
    pub const fn opening(&self) -> &'static str {
        self.opening
    }

    /// A grammar in Lark's syntax of answers with these calls. Each tool has a name, and a JSON schema for its arguments.
    pub fn grammar<'a>(&self, calls: Calls, tools: impl Iterator<Item = (&'a str, String)>) -> String {
        let (mut names, mut rules) = (Vec::new(), String::new());
        for (place, (name, schema)) in tools.enumerate() {
            let begin = format!("{{\\\"name\\\": \\\"{name}\\\", \\\"{}\\\": ", self.arguments);
            rules += &format!("call_{place}: \"{begin}\" arguments_{place} \"}}\"\n");
            rules += &format!("arguments_{place}: %json {schema}\n");
            names.push(format!("call_{place}"));
        }
        format!("{}\ncall: {}\n{rules}", (self.start)(calls), names.join(" | "))
    }

    /// An id that no other call has.
    fn new_id(&self) -> String {
        let (prefix, length) = self.id;
        let mut id = prefix.to_owned();
        Alphanumeric.append_string(&mut rand::rng(), &mut id, length);
        id
    }
}

impl fmt::Debug for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolFormat").field("marker", &self.marker).finish_non_exhaustive()
    }
}

impl PartialEq for ToolFormat {
    fn eq(&self, other: &Self) -> bool {
        self.marker == other.marker
    }
}

impl Eq for ToolFormat {}
