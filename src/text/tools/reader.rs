//! An answer's text, taken apart into content and calls while it comes.
//!
//! What could become a call is held back until it is one or cannot be one any more; then it is content, to the letter. It
//! is one as soon as it names a tool that was sent and its arguments begin, for from there on it is told as it comes.

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

    /// Tells what was held back. A call that is not complete stays so.
    pub fn finish(&mut self) -> Told {
        let begun = matches!(self.place, Place::Call { told: 1.., .. } | Place::AfterCall | Place::Over);
        let text = std::mem::take(&mut self.held) + &std::mem::take(&mut self.rest);
        let is_layout = self.calls > 0 && text.trim().is_empty();
        let content = if begun || is_layout { String::new() } else { text };
        Told { content, calls: Vec::new() }
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
        let Place::Call { object, told: sent } = &mut self.place else { return false };
        let rest = std::mem::take(&mut self.rest);
        for (at, c) in rest.char_indices() {
            let mut step = object.take(c);
            let is_named = |name: &str| self.reading.names.iter().any(|other| other == name);
            if object.name().is_some_and(|name| !is_named(name)) {
                step = Step::Broken;
            }
            if step == Step::More {
                continue;
            }
            // What breaks an object is no part of it once it is told.
            let end = if step == Step::Complete { at + c.len_utf8() } else { at };
            self.held.push_str(&rest[..end]);
            self.rest = rest[end..].to_owned();
            if step == Step::Broken && *sent == 0 {
                return self.give_up(told);
            }
            tell(object, sent, &self.reading, &mut self.calls, step, told);
            self.held.clear();
            self.place = if self.reading.single { Place::Over } else { Place::AfterCall };
            return true;
        }
        self.held.push_str(&rest);
        tell(object, sent, &self.reading, &mut self.calls, Step::More, told);
        false
    }

    fn after_call(&mut self) -> bool {
        let ToolFormat { between, close, bare, .. } = self.reading.format;
        let rest = self.rest.trim_start();
        let Some(first) = rest.chars().next() else { return false };
        let space = self.rest.len() - rest.len();
        if between.contains(&first) {
            self.rest.drain(..=space);
            self.place = Place::BeforeCall;
        } else if *bare && first == '{' {
            self.place = Place::BeforeCall;
        } else if !close.is_empty() && rest.starts_with(close) {
            self.rest.drain(..space + close.len());
            self.place = Place::Content;
        } else if close.starts_with(rest) {
            return false;
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

/// Tells what is new of a call, once its name is known and its arguments begin, or it is complete without any.
fn tell(
    object: &Object,
    sent: &mut usize,
    reading: &Reading,
    calls: &mut usize,
    step: Step,
    told: &mut Told,
) {
    let without = if step == Step::Complete { Some("{}") } else { None };
    let (Some(name), Some(arguments)) = (object.name(), object.arguments().or(without)) else { return };
    let mut call = Call { arguments: arguments[*sent..].to_owned(), ..Call::default() };
    if *sent == 0 {
        *calls += 1;
        (call.id, call.name) = (Some(reading.format.new_id()), Some(name.to_owned()));
    }
    call.index = *calls - 1;
    *sent = arguments.len();
    if call.id.is_some() || !call.arguments.is_empty() {
        told.calls.push(call);
    }
}

/// How many bytes at the end of `text` could be the beginning of `marker`.
fn beginning(text: &str, marker: &str) -> usize {
    let most = marker.len().saturating_sub(1).min(text.len());
    (1..=most).rev().find(|length| text.as_bytes().ends_with(&marker.as_bytes()[..*length])).unwrap_or(0)
}
