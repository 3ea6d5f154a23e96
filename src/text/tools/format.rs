//! How a model writes calls of tools: the texts around a call, and the syntax of the call itself.

use std::fmt;

use rand::distr::{Alphanumeric, SampleString};

/// How a model writes calls.
pub struct ToolFormat {
    /// Its name, for tests and the debugger.
    pub(super) name: &'static str,
    /// Whether a model with this template writes this format.
    pub(super) is_of: fn(template: &str) -> bool,
    /// The marker before calls.
    pub(super) marker: &'static str,
    /// An answer that begins with this character is a call, without a marker.
    pub(super) bare: Option<char>,
    /// Text between the marker and the first call.
    pub(super) open: &'static str,
    /// The syntax of a call.
    pub(super) syntax: Syntax,
    /// Texts after a call that belong to it.
    pub(super) after_call: &'static [&'static str],
    /// Texts after a call that another call follows.
    pub(super) between: &'static [&'static str],
    /// Text after the last call.
    pub(super) close: &'static str,
    /// How the ids of calls are made.
    pub(super) id: IdStyle,
    /// How calls are written where the answer must have them.
    pub(super) written: Written,
}

/// The syntax of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Syntax {
    /// `{"name": …, "arguments": {…}}` with these names.
    Object { name: &'static str, arguments: &'static str },
    /// The name, then an object of arguments.
    Named(NamedSyntax),
    /// A tag for the name and one for each argument.
    Tagged(TagSyntax),
    /// `name(key="value", other=1)`, as in Python.
    Python,
    /// `call:name{key:<quote>value<quote>,other:1}`, as Gemma writes it.
    Gemma { quote: &'static str },
}

/// Texts around the name of a call whose arguments are JSON.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamedSyntax {
    /// Before the name.
    pub(super) before: &'static str,
    /// Characters that end the name.
    pub(super) ends: &'static [char],
    /// The end of the text between the name and the arguments.
    pub(super) between: &'static str,
}

/// The tags of a call whose arguments are tagged texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct TagSyntax {
    /// Before and after the name. An empty second text ends the name at a line break or at a tag.
    pub(super) name: (&'static str, &'static str),
    /// Before and after the key of an argument.
    pub(super) key: (&'static str, &'static str),
    /// Before and after the value of an argument.
    pub(super) value: (&'static str, &'static str),
    /// The end of the call, which may also be the format's `close`.
    pub(super) end: &'static str,
    /// Line breaks directly within the value's tags are not part of the value.
    pub(super) value_in_lines: bool,
}

/// The text of calls that a grammar asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// Before the first call, beginning with the marker if there is one.
    pub(super) first: &'static str,
    /// The beginning of `first` that the prompt ends with, if the answer must have calls.
    pub(super) prompt: &'static str,
    /// Between two calls.
    pub(super) next: &'static str,
    /// After the last call.
    pub(super) last: &'static str,
    /// For [`Syntax::Named`]: the text between name and arguments, where it is more than the parser needs.
    pub(super) named: &'static str,
}

/// How the id of a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdStyle {
    /// `call_` and 24 letters and digits.
    Call,
    /// Nine letters and digits: other ids are rejected by Mistral's templates.
    Nine,
    /// `functions.name:index`, which Kimi's templates show to the model.
    Function,
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

    /// The texts of the format that may be special tokens of the model, which have no text otherwise.
    pub fn special_texts(&'static self) -> impl Iterator<Item = &'static str> {
        let syntax: [&str; 2] = match self.syntax {
            Syntax::Named(NamedSyntax { before, between, .. }) => [before, between],
            Syntax::Gemma { quote } => [quote, ""],
            Syntax::Object { .. } | Syntax::Tagged(_) | Syntax::Python => ["", ""],
        };
        let around = [self.marker, self.open, self.close, "[CALL_ID]"];
        let around = around.into_iter().chain(self.after_call.iter().chain(self.between).copied());
        around.chain(syntax).map(str::trim).filter(|text| !text.is_empty())
    }

    /// The end of the prompt if the answer must be calls, so that the answer matches the grammar.
    #[must_use]
    pub const fn answer_prefix(&self) -> &'static str {
        self.written.prompt
    }

    /// An id that no other call of a conversation has; `index` is the number of the call within the answer.
    pub(super) fn new_id(&self, name: &str, index: usize) -> String {
        let random = |prefix: &str, length| {
            let mut id = prefix.to_owned();
            Alphanumeric.append_string(&mut rand::rng(), &mut id, length);
            id
        };
        match self.id {
            IdStyle::Call => random("call_", 24),
            IdStyle::Nine => random("", 9),
            IdStyle::Function => format!("functions.{name}:{index}"),
        }
    }
}

impl fmt::Debug for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ToolFormat").field(&self.name).finish()
    }
}

impl PartialEq for ToolFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ToolFormat {}
