//! A call in Python's syntax: `weather(city="Pune", days=3)`.

use super::{literal, partial_call::PartialCall, step::Step};

/// Longest name of a tool or an argument, in bytes.
const MAX_NAME: usize = 512;

/// A call that is being read.
#[derive(Debug, Default)]
pub(super) struct Python {
    state: State,
    text: String,
    key: String,
    call: PartialCall,
    depth: usize,
    /// The quotation mark of the string that is being read.
    string: Option<char>,
    is_escaped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Name,
    /// Before an argument or the end of the call.
    Between,
    Key,
    Value,
}

impl Python {
    pub(super) const fn call(&self) -> &PartialCall {
        &self.call
    }

    pub(super) fn take(&mut self, c: char) -> Step {
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        match (self.state, c) {
            (State::Name | State::Between, c) if c.is_whitespace() => {}
            (State::Name, '(') if !self.text.is_empty() => return self.take_name(),
            (State::Between, ',') if self.call.arguments().is_some_and(|arguments| arguments.len() > 1) => {}
            (State::Between, ')') => return self.complete(Step::Complete),
            (State::Between, c) if !"\"'([{,)=".contains(c) => {
                self.text.push(c);
                self.state = State::Key;
            }
            (State::Key, '=') => {
                self.key = self.text.trim().to_owned();
                self.text.clear();
                self.state = State::Value;
            }
            (State::Name, c) if is_name(c) && self.text.len() < MAX_NAME => self.text.push(c),
            // The keys of JSON schemas need not be names in Python.
            (State::Key, c) if !"(,)".contains(c) && self.text.len() < MAX_NAME => self.text.push(c),
            (State::Value, c) => return self.take_value(c),
            _ => return self.complete(Step::Broken),
        }
        Step::More
    }

    fn take_name(&mut self) -> Step {
        self.call.begin(std::mem::take(&mut self.text));
        self.state = State::Between;
        Step::Named
    }

    fn take_value(&mut self, c: char) -> Step {
        if self.string.is_none() && self.depth == 0 && matches!(c, ',' | ')') {
            self.end_value();
            self.state = State::Between;
            return if c == ')' { self.complete(Step::Complete) } else { Step::More };
        }
        match (self.string, c) {
            _ if self.is_escaped => self.is_escaped = false,
            (Some(_), '\\') => self.is_escaped = true,
            (Some(quote), c) if c == quote => self.string = None,
            (None, '"' | '\'') => self.string = Some(c),
            (None, '[' | '(' | '{') => self.depth += 1,
            (None, ']' | ')' | '}') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.text.push(c);
        Step::More
    }

    fn end_value(&mut self) {
        let text = std::mem::take(&mut self.text);
        let value = literal::to_json(text.trim()).unwrap_or_else(|| literal::quoted(text.trim()));
        self.call.add_argument(&self.key, &value);
    }

    /// Ends the arguments.
    fn complete(&mut self, step: Step) -> Step {
        self.call.end_arguments();
        step
    }
}
