//! How a model writes calls of tools.

use std::fmt;

use rand::distr::{Alphanumeric, SampleString};

/// How a model writes calls.
pub struct ToolFormat {
    /// Whether a model with this template writes this format.
    pub(super) is_of: fn(template: &str) -> bool,
    /// The marker before calls.
    pub(super) marker: &'static str,
    /// An answer that begins with an object is a call, without a marker.
    pub(super) bare: bool,
    /// Text between the marker and the first call.
    pub(super) open: &'static str,
    /// Separators of two calls.
    pub(super) between: &'static [char],
    /// Text after the last call.
    pub(super) close: &'static str,
    /// Text that an answer begins with if it must be calls.
    pub(super) answer_prefix: &'static str,
    /// The name of a call's arguments.
    pub(super) arguments: &'static str,
    /// How the ids of calls begin, and how many characters follow.
    pub(super) id: (&'static str, usize),
    /// The grammar's start rules.
    pub(super) start: fn(Calls) -> &'static str,
}

/// How many calls a grammar allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// At least one, and nothing but calls.
    pub required: bool,
    /// At most one.
    pub single: bool,
}

impl ToolFormat {
    /// The marker before calls.
    #[must_use]
    pub const fn marker(&self) -> &'static str {
        self.marker
    }

    /// The end of the prompt if the answer must be calls, so that the answer matches [`ToolFormat::grammar`].
    #[must_use]
    pub const fn answer_prefix(&self) -> &'static str {
        self.answer_prefix
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
    pub(super) fn new_id(&self) -> String {
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
