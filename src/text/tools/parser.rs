//! Splits an answer's text into content and calls while it is generated.
//!
//! What could become a call is held back until it is one or cannot be one any more. The rules, for every format:
//!
//! - **A call** has the syntax of the format, at a place where the format has calls, and the name of one of the request's tools.
//!   It counts as a call as soon as its name and the beginning of its arguments are read, and is streamed from there on. An
//!   object without arguments counts when it is complete, with `{}` for arguments.
//! - **Content** is all other text, unchanged: text around calls, and text that looked like a call but has an unknown name, has
//!   another syntax, or ends before it counts as a call. White space before a marker and after the last call is dropped.
//! - **An object that is malformed after its arguments** (its last brace is missing or replaced) is a complete call, because
//!   its arguments are complete. The text after them is parsed as if the object had ended.
//! - **Unmatched closing brackets** directly after a call's object are dropped.
//! - **A call whose arguments do not end**, because of a stop string, the token limit or the model, is sent incomplete. Then
//!   [`ToolCallParser::is_truncated`] is true, and the answer's `finish_reason` is `stop` or `length`, never `tool_calls`: with
//!   `tool_calls` every call has complete arguments.
//!
//! The rules apply character by character, so the result does not depend on the boundaries of tokens.

use std::sync::Arc;

use super::{
    format::{Syntax, ToolFormat},
    reader::CallReader,
    schema_types::ToolSignature,
    step::Step,
};

/// The tool calls that an answer may have, and their format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCallParserOptions {
    /// How the model writes them.
    pub format: &'static ToolFormat,
    /// The tools.
    pub tools: Arc<[ToolSignature]>,
    /// The answer ends after one call.
    pub single: bool,
    /// The prompt ended with the format's [answer prefix](ToolFormat::answer_prefix).
    pub opened: bool,
}

/// The content and calls that a piece of text adds to an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerDelta {
    /// The model's reasoning before its answer.
    pub reasoning: String,
    /// Text outside of calls.
    pub content: String,
    /// Calls that begin or continue.
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
    /// Its arguments as JSON, or the next part of them.
    pub arguments: String,
}

impl AnswerDelta {
    /// Whether nothing was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.reasoning.is_empty() && self.content.is_empty() && self.calls.is_empty()
    }

    /// Adds what comes next.
    pub fn append(&mut self, next: &Self) {
        self.reasoning.push_str(&next.reasoning);
        self.content.push_str(&next.content);
        for call in &next.calls {
            match self.calls.last_mut() {
                Some(last) if last.index == call.index => last.arguments.push_str(&call.arguments),
                _ => self.calls.push(call.clone()),
            }
        }
    }
}

/// Parses the tool calls of one answer.
#[derive(Debug)]
pub struct ToolCallParser {
    options: ToolCallParserOptions,
    state: State,
    /// Text that is not parsed yet, because its meaning depends on the text after it.
    rest: String,
    /// Parsed text of a call that may still turn out to be content.
    held: String,
    /// Number of calls that have begun.
    calls: usize,
    /// The end of the prompt, at the beginning of `held`. It is part of the first call, but never content.
    prefix: &'static str,
}

#[derive(Debug)]
enum State {
    /// Only white space so far.
    Start,
    Content,
    /// After a marker.
    Opened,
    /// Before an object; anything else is an error.
    BeforeCall,
    Call {
        reader: Box<CallReader>,
        sent: usize,
    },
    AfterCall,
    /// After the only call that is allowed.
    Over,
}

impl ToolCallParser {
    /// At the beginning of an answer.
    #[must_use]
    pub fn new(options: ToolCallParserOptions) -> Self {
        let ToolFormat { marker, bare, written, .. } = *options.format;
        let state = if bare.is_some() { State::Start } else { State::Content };
        let prefix = if options.opened { written.prompt } else { "" };
        // What precedes the marker in the prompt is not a part of the call.
        let prefix = prefix.find(marker).map_or("", |at| &prefix[at..]);
        let mut parser =
            Self { options, state, rest: prefix.to_owned(), held: String::new(), calls: 0, prefix };
        while parser.step(&mut AnswerDelta::default()) {}
        parser
    }

    /// Whether the only call that is allowed is complete.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Parses the next text.
    pub fn push(&mut self, text: &str) -> AnswerDelta {
        self.rest.push_str(text);
        let mut delta = AnswerDelta::default();
        while self.step(&mut delta) {}
        delta
    }

    /// Whether the last call ended before its arguments did.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        matches!(&self.state, State::Call { reader, .. } if reader.call().is_truncated())
    }

    /// Returns the text held back. An incomplete call stays incomplete.
    pub fn finish(&mut self) -> AnswerDelta {
        let text = self.take_held() + &std::mem::take(&mut self.rest);
        let is_dropped = match &self.state {
            State::Call { reader, .. } => reader.call().is_call(),
            State::AfterCall | State::Over => true,
            State::BeforeCall => self.calls > 0 && self.is_separator(&text),
            State::Start | State::Content | State::Opened => self.calls > 0 && text.trim().is_empty(),
        };
        let content = if is_dropped { String::new() } else { text };
        AnswerDelta { content, ..AnswerDelta::default() }
    }

    /// Whether `text` is nothing but what separates two calls.
    fn is_separator(&self, text: &str) -> bool {
        let text = text.trim();
        text.is_empty() || self.options.format.between.iter().any(|between| between.trim() == text)
    }

    /// The text held back, without the end of the prompt.
    fn take_held(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let prefix = std::mem::take(&mut self.prefix);
        held.strip_prefix(prefix).map(str::to_owned).unwrap_or(held)
    }

    /// Parses the next part of the rest; returns whether it may be possible to continue.
    fn step(&mut self, delta: &mut AnswerDelta) -> bool {
        match &self.state {
            State::Start => self.start(),
            State::Content => self.content(delta),
            State::Opened => self.opened(),
            State::BeforeCall => self.before_call(),
            State::Call { .. } => self.call(delta),
            State::AfterCall => self.after_call(),
            State::Over => {
                self.rest.clear();
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let Some(first) = self.rest.trim_start().chars().next() else { return false };
        let is_call = Some(first) == self.options.format.bare;
        if is_call && self.options.format.open.starts_with(first) {
            self.state = State::Opened;
        } else {
            self.state = if is_call { State::BeforeCall } else { State::Content };
        }
        true
    }

    /// Emits text up to a marker, without white space before it, and without the beginning of a marker at the end.
    fn content(&mut self, delta: &mut AnswerDelta) -> bool {
        let marker = self.options.format.marker;
        let found = self.rest.find(marker);
        let end = found.unwrap_or_else(|| self.rest.len() - beginning(&self.rest, marker));
        let end = self.rest[..end].trim_end().len();
        delta.content.extend(self.rest.drain(..end));
        if found.is_some() {
            self.skip();
            self.hold(marker.len());
            self.state = State::Opened;
        }
        found.is_some()
    }

    fn opened(&mut self) -> bool {
        let open = self.options.format.open;
        self.skip();
        if self.rest.starts_with(open) {
            self.hold(open.len());
            self.state = State::BeforeCall;
            return true;
        }
        let undecided = open.starts_with(&self.rest);
        if !undecided {
            self.state = State::BeforeCall;
        }
        !undecided
    }

    fn before_call(&mut self) -> bool {
        self.skip();
        if self.rest.is_empty() {
            return false;
        }
        let reader = CallReader::new(self.options.format.syntax, &self.options.tools);
        self.state = State::Call { reader: Box::new(reader), sent: 0 };
        true
    }

    /// The text was not a call: the text held back and the text after it are content.
    fn give_up(&mut self, delta: &mut AnswerDelta) -> bool {
        delta.content.push_str(&self.take_held());
        self.state = State::Content;
        true
    }

    fn call(&mut self, delta: &mut AnswerDelta) -> bool {
        let state = std::mem::replace(&mut self.state, State::AfterCall);
        let State::Call { mut reader, sent } = state else { return false };
        let rest = std::mem::take(&mut self.rest);
        let Some(End { at, is_call }) = self.read(&mut reader, &rest) else {
            self.held.push_str(&rest);
            let sent = self.emit(&reader, sent, delta);
            self.state = State::Call { reader, sent };
            return false;
        };
        self.held.push_str(&rest[..at]);
        self.rest = rest[at..].to_owned();
        if !is_call {
            return self.give_up(delta);
        }
        self.emit(&reader, sent, delta);
        self.held.clear();
        self.prefix = "";
        if self.options.single {
            self.state = State::Over;
        }
        true
    }

    /// Reads `text` up to the end of the object, if it has one.
    fn read(&self, reader: &mut CallReader, text: &str) -> Option<End> {
        text.char_indices().find_map(|(at, c)| match reader.take(c) {
            Step::More => None,
            Step::Named => (!self.is_tool(reader.call().name())).then_some(End { at, is_call: false }),
            Step::Complete => {
                Some(End { at: at + c.len_utf8(), is_call: self.is_tool(reader.call().name()) })
            }
            // The character that breaks an object does not belong to it.
            Step::Broken => Some(End { at, is_call: reader.call().is_call() }),
        })
    }

    fn is_tool(&self, name: Option<&str>) -> bool {
        self.options.tools.iter().any(|tool| Some(tool.name.as_str()) == name)
    }

    /// Emits the new part of a call, of which `sent` bytes of arguments were sent before. Returns how many are sent now.
    fn emit(&mut self, reader: &CallReader, sent: usize, delta: &mut AnswerDelta) -> usize {
        let (Some(name), Some(arguments)) = (reader.call().name(), reader.call().arguments()) else {
            return sent;
        };
        let mut call = Call { arguments: arguments[sent..].to_owned(), ..Call::default() };
        if sent == 0 {
            let id = self.options.format.new_id(name, self.calls);
            self.calls += 1;
            (call.id, call.name) = (Some(id), Some(name.to_owned()));
        }
        call.index = self.calls - 1;
        if !call.arguments.is_empty() {
            delta.calls.push(call);
        }
        arguments.len()
    }

    fn after_call(&mut self) -> bool {
        let ToolFormat { between, close, after_call, .. } = *self.options.format;
        let rest = self.rest.trim_start();
        let Some(first) = rest.chars().next() else { return false };
        let space = self.rest.len() - rest.len();
        let mut known = after_call.iter().chain(between).chain([&close]).filter(|text| !text.is_empty());
        if let Some(text) = after_call.iter().find(|text| rest.starts_with(**text)) {
            self.rest.drain(..space + text.len());
        } else if let Some(text) = between.iter().find(|text| rest.starts_with(**text)) {
            // A separator that is the beginning of the next call is read as a part of that.
            let is_call = self.begins_call(text);
            self.hold(space + if is_call { 0 } else { text.len() });
            self.state = State::BeforeCall;
        } else if !close.is_empty() && rest.starts_with(close) {
            self.rest.drain(..space + close.len());
            self.state = State::Content;
        } else if known.any(|text| text.starts_with(rest)) {
            return false;
        } else if matches!(first, '}' | ']') {
            self.rest.drain(..=space);
        } else {
            self.state = State::Content;
        }
        true
    }

    /// Whether a call itself begins with this text.
    fn begins_call(&self, text: &str) -> bool {
        match self.options.format.syntax {
            Syntax::Object { .. } => text == "{",
            Syntax::Tagged(tags) => !text.is_empty() && tags.name.0.starts_with(text),
            Syntax::Named(_) | Syntax::Python | Syntax::Gemma { .. } => false,
        }
    }

    fn skip(&mut self) {
        self.hold(self.rest.len() - self.rest.trim_start().len());
    }

    fn hold(&mut self, length: usize) {
        self.held.extend(self.rest.drain(..length));
    }
}

/// The end of an object.
struct End {
    at: usize,
    is_call: bool,
}

/// How many bytes at the end of `text` could be the beginning of `marker`.
fn beginning(text: &str, marker: &str) -> usize {
    let max = marker.len().saturating_sub(1).min(text.len());
    (1..=max).rev().find(|length| text.as_bytes().ends_with(&marker.as_bytes()[..*length])).unwrap_or(0)
}
