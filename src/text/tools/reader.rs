//! An answer's text, taken apart into content and calls while it comes.
//!
//! What could become a call is held back until it is one or cannot be one any more. The rules, for every format:
//!
//! - **A call** is an object where calls may stand, that names a tool of the request. It is one as soon as its name and the
//!   beginning of its arguments are read, and is streamed from there on. An object without arguments is one when it is
//!   complete, with `{}` for arguments.
//! - **Content** is everything else, to the letter: text around calls, and what looked like a call but names no tool, is
//!   not an object, or ends before it has become a call. White space before a marker and after the last call is layout.
//! - **An object that is broken behind its arguments** (its last brace is missing, something else stands there) is a
//!   call, and complete: its arguments are. What stands there is read as if the object had ended.
//! - **Closing brackets that close nothing** directly behind a call's object are dropped.
//! - **A call whose arguments do not end**, because of a stop string, the limit of tokens, or the model, is sent as far as
//!   it came. [`CallReader::is_cut`] then holds, and the answer's `finish_reason` is `stop` or `length`, never
//!   `tool_calls`: with `tool_calls` every call has whole arguments.
//!
//! Each rule is applied at a character, and so the result does not depend on how the text was cut into tokens.

use std::sync::Arc;

use super::{
    ToolFormat,
    object::{Object, Step},
};

/// How the calls of an answer are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// How the model writes them.
    pub format: &'static ToolFormat,
    /// The names of the tools.
    pub names: Arc<[String]>,
    /// The answer ends after one.
    pub single: bool,
    /// The prompt ended with the format's opening.
    pub opened: bool,
}

/// What a piece of text adds to an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Text that is no call.
    pub content: String,
    /// Calls that begin or go on.
    pub calls: Vec<Call>,
}

/// A call, or a piece of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its number within the answer.
    pub index: usize,
    /// Its id, where it begins.
    pub id: Option<String>,
    /// The tool's name, where it begins.
    pub name: Option<String>,
    /// Its arguments as JSON, or more of them.
    pub arguments: String,
}

impl Told {
    /// Whether nothing is told.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.content.is_empty() && self.calls.is_empty()
    }

    /// Adds what comes next.
    pub fn append(&mut self, next: &Self) {
        self.content.push_str(&next.content);
        for call in &next.calls {
            match self.calls.last_mut() {
                Some(last) if last.index == call.index => last.arguments.push_str(&call.arguments),
                _ => self.calls.push(call.clone()),
            }
        }
    }
}

/// Reads the calls of one answer.
#[derive(Debug)]
pub struct CallReader {
    reading: Reading,
    place: Place,
    /// Not looked at yet, for what follows decides.
    rest: String,
    /// Looked at; content if it is no call after all.
    held: String,
    /// Calls that began.
    calls: usize,
}

#[derive(Debug)]
enum Place {
    /// Nothing was said but white space.
    Start,
    Content,
    /// After a marker.
    Opened,
    /// Before an object, where nothing else may stand.
    BeforeCall,
    Call {
        object: Object,
        told: usize,
    },
    AfterCall,
    /// After the one call that was wanted.
    Over,
}

impl CallReader {
    /// At the beginning of an answer.
    #[must_use]
    pub fn new(reading: Reading) -> Self {
        let place = if reading.opened && !reading.format.opening.is_empty() {
            Place::Opened
        } else if reading.format.bare {
            Place::Start
        } else {
            Place::Content
        };
        Self { reading, place, rest: String::new(), held: String::new(), calls: 0 }
    }

    /// Whether all calls are told that are wanted.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.place, Place::Over)
    }

    /// Takes the next text.
    pub fn push(&mut self, text: &str) -> Told {
        self.rest.push_str(text);
        let mut told = Told::default();
        while self.step(&mut told) {}
        told
    }

    /// Whether the last call ended before its arguments did.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        matches!(&self.place, Place::Call { object, .. } if object.is_cut())
    }

    /// Tells what was held back. A call that is not complete stays so.
    pub fn finish(&mut self) -> Told {
        let text = std::mem::take(&mut self.held) + &std::mem::take(&mut self.rest);
        let is_told = match &self.place {
            Place::Call { object, .. } => object.is_call(),
            Place::AfterCall | Place::Over => true,
            Place::BeforeCall => self.calls > 0 && text.trim_matches(self.separators()).is_empty(),
            Place::Start | Place::Content | Place::Opened => self.calls > 0 && text.trim().is_empty(),
        };
        Told { content: if is_told { String::new() } else { text }, calls: Vec::new() }
    }

    /// What stands between two calls.
    fn separators(&self) -> impl Fn(char) -> bool + use<> {
        let between = self.reading.format.between;
        move |c| c.is_whitespace() || between.contains(&c)
    }

    /// Looks at the rest; whether anything is left to look at.
    fn step(&mut self, told: &mut Told) -> bool {
        match &self.place {
            Place::Start => self.start(),
            Place::Content => self.content(told),
            Place::Opened => self.opened(),
            Place::BeforeCall => self.before_call(told),
            Place::Call { .. } => self.call(told),
            Place::AfterCall => self.after_call(),
            Place::Over => {
                self.rest.clear();
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let Some(first) = self.rest.trim_start().chars().next() else { return false };
        self.place = if first == '{' { Place::BeforeCall } else { Place::Content };
        true
    }

    /// Tells text up to a marker, but for white space before it and the beginning of one at the end.
    fn content(&mut self, told: &mut Told) -> bool {
        let marker = self.reading.format.marker;
        let found = self.rest.find(marker);
        let end = found.unwrap_or_else(|| self.rest.len() - beginning(&self.rest, marker));
        let end = self.rest[..end].trim_end().len();
        told.content.extend(self.rest.drain(..end));
        if found.is_some() {
            self.skip();
            self.hold(marker.len());
            self.place = Place::Opened;
        }
        found.is_some()
    }

    fn opened(&mut self) -> bool {
        let open = self.reading.format.open;
        self.skip();
        if self.rest.starts_with(open) {
            self.hold(open.len());
            self.place = Place::BeforeCall;
            return true;
        }
        let undecided = open.starts_with(&self.rest);
        if !undecided {
            self.place = Place::BeforeCall;
        }
        !undecided
    }

    fn before_call(&mut self, told: &mut Told) -> bool {
        self.skip();
        match self.rest.chars().next() {
            None => false,
            Some('{') => {
                self.place = Place::Call { object: Object::default(), told: 0 };
                true
            }
            Some(_) => self.give_up(told),
        }
    }

    /// It was no call: all that was held back is content, and so is what follows.
    fn give_up(&mut self, told: &mut Told) -> bool {
        told.content.push_str(&std::mem::take(&mut self.held));
        self.place = Place::Content;
        true
    }

    fn call(&mut self, told: &mut Told) -> bool {
        let place = std::mem::replace(&mut self.place, Place::AfterCall);
        let Place::Call { mut object, told: sent } = place else { return false };
        let rest = std::mem::take(&mut self.rest);
        let Some(End { at, is_call }) = self.read(&mut object, &rest) else {
            self.held.push_str(&rest);
            let sent = self.tell(&object, sent, told);
            self.place = Place::Call { object, told: sent };
            return false;
        };
        self.held.push_str(&rest[..at]);
        self.rest = rest[at..].to_owned();
        if !is_call {
            return self.give_up(told);
        }
        self.tell(&object, sent, told);
        self.held.clear();
        if self.reading.single {
            self.place = Place::Over;
        }
        true
    }

    /// Reads `text` up to the end of the object, if it has one.
    fn read(&self, object: &mut Object, text: &str) -> Option<End> {
        text.char_indices().find_map(|(at, c)| match object.take(c) {
            Step::More => None,
            Step::Named => (!self.is_tool(object.name())).then_some(End { at, is_call: false }),
            Step::Complete => Some(End { at: at + c.len_utf8(), is_call: true }),
            // The character that breaks an object does not belong to it.
            Step::Broken => Some(End { at, is_call: object.is_call() }),
        })
    }

    fn is_tool(&self, name: Option<&str>) -> bool {
        self.reading.names.iter().any(|other| Some(other.as_str()) == name)
    }

    /// Adds to `told` what is new of a call, of which `sent` bytes of arguments were sent before. Returns how many are sent
    /// now.
    fn tell(&mut self, object: &Object, sent: usize, told: &mut Told) -> usize {
        let (Some(name), Some(arguments)) = (object.name(), object.arguments()) else { return sent };
        let mut call = Call { arguments: arguments[sent..].to_owned(), ..Call::default() };
        if sent == 0 {
            self.calls += 1;
            (call.id, call.name) = (Some(self.reading.format.new_id()), Some(name.to_owned()));
        }
        call.index = self.calls - 1;
        if !call.arguments.is_empty() {
            told.calls.push(call);
        }
        arguments.len()
    }

    fn after_call(&mut self) -> bool {
        let ToolFormat { between, close, bare, .. } = self.reading.format;
        let rest = self.rest.trim_start();
        let Some(first) = rest.chars().next() else { return false };
        let space = self.rest.len() - rest.len();
        if between.contains(&first) {
            self.hold(space + first.len_utf8());
            self.place = Place::BeforeCall;
        } else if *bare && first == '{' {
            self.place = Place::BeforeCall;
        } else if !close.is_empty() && rest.starts_with(close) {
            self.rest.drain(..space + close.len());
            self.place = Place::Content;
        } else if close.starts_with(rest) {
            return false;
        } else if matches!(first, '}' | ']') {
            self.rest.drain(..=space);
        } else {
            self.place = Place::Content;
        }
        true
    }

    fn skip(&mut self) {
        self.hold(self.rest.len() - self.rest.trim_start().len());
    }

    fn hold(&mut self, length: usize) {
        self.held.extend(self.rest.drain(..length));
    }
}

/// Where an object ends.
struct End {
    at: usize,
    is_call: bool,
}

/// How many bytes at the end of `text` could be the beginning of `marker`.
fn beginning(text: &str, marker: &str) -> usize {
    let most = marker.len().saturating_sub(1).min(text.len());
    (1..=most).rev().find(|length| text.as_bytes().ends_with(&marker.as_bytes()[..*length])).unwrap_or(0)
}
