//! A call as tags: one for its name, and one for each argument, whose value is a text without quotation marks.

use std::sync::Arc;

use super::{format::TagSyntax, literal, partial_call::PartialCall, schema_types::ToolSignature, step::Step};

/// Longest name of a tool or an argument with its tags, in bytes.
const MAX_NAME: usize = 512;

/// A call that is being read.
#[derive(Debug)]
pub(super) struct Tagged {
    syntax: TagSyntax,
    tools: Arc<[ToolSignature]>,
    state: State,
    /// The text of the state so far.
    text: String,
    key: String,
    call: PartialCall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Name,
    /// Before an argument or the end of the call.
    Between,
    Key,
    BeforeValue,
    Value,
}

impl Tagged {
    pub(super) fn new(syntax: TagSyntax, tools: Arc<[ToolSignature]>) -> Self {
        let (text, key, call) = (String::new(), String::new(), PartialCall::default());
        Self { syntax, tools, state: State::Name, text, key, call }
    }

    pub(super) const fn call(&self) -> &PartialCall {
        &self.call
    }

    pub(super) fn take(&mut self, c: char) -> Step {
        let skips_space = !matches!(self.state, State::Key | State::Value);
        if skips_space && self.text.is_empty() && c.is_whitespace() {
            return Step::More;
        }
        self.text.push(c);
        match self.state {
            State::Name => self.take_name(),
            State::Between => self.take_between(),
            State::Key => self.take_key(),
            State::BeforeValue => self.take_before_value(),
            State::Value => self.take_value(),
        }
    }

    /// The text before `end`, if the text ends with it.
    fn before(&self, end: &str) -> Option<&str> {
        self.text.strip_suffix(end).filter(|_| !end.is_empty())
    }

    fn enter(&mut self, state: State) {
        self.text.clear();
        self.state = state;
    }

    fn take_name(&mut self) -> Step {
        let (before, after) = self.syntax.name;
        if !self.text.starts_with(before) {
            return if before.starts_with(&self.text) { Step::More } else { Step::Broken };
        }
        let (ends, states) = if after.is_empty() {
            (["\n", self.syntax.key.0, self.syntax.end], [State::Between, State::Key, State::Between])
        } else {
            ([after, "", ""], [State::Between; 3])
        };
        let found = ends.iter().zip(states).find_map(|(end, state)| Some((self.before(end)?, state, *end)));
        let Some((text, state, end)) = found else {
            return if self.text.len() > MAX_NAME { Step::Broken } else { Step::More };
        };
        let name = text[before.len()..].trim().to_owned();
        if name.is_empty() {
            return Step::Broken;
        }
        let is_over = after.is_empty() && end == self.syntax.end;
        self.call.begin(name);
        self.enter(state);
        if is_over { self.complete(Step::Complete) } else { Step::Named }
    }

    fn take_between(&mut self) -> Step {
        let TagSyntax { key: (key, _), end, .. } = self.syntax;
        if self.text == key {
            self.enter(State::Key);
        } else if self.text == end {
            return self.complete(Step::Complete);
        } else if !key.starts_with(&self.text) && !end.starts_with(&self.text) {
            return self.complete(Step::Broken);
        }
        Step::More
    }

    fn take_key(&mut self) -> Step {
        if let Some(key) = self.before(self.syntax.key.1) {
            self.key = key.trim().to_owned();
            let has_tag = !self.syntax.value.0.is_empty();
            self.enter(if has_tag { State::BeforeValue } else { State::Value });
        } else if self.text.len() > MAX_NAME {
            return self.complete(Step::Broken);
        }
        Step::More
    }

    fn take_before_value(&mut self) -> Step {
        let tag = self.syntax.value.0;
        if self.text == tag {
            self.enter(State::Value);
        } else if !tag.starts_with(&self.text) {
            return self.complete(Step::Broken);
        }
        Step::More
    }

    fn take_value(&mut self) -> Step {
        let Some(mut value) = self.before(self.syntax.value.1) else { return Step::More };
        if self.syntax.value_in_lines {
            value = value.strip_prefix('\n').unwrap_or(value);
            value = value.strip_suffix('\n').unwrap_or(value);
        }
        let tool = self.tools.iter().find(|tool| Some(tool.name.as_str()) == self.call.name());
        let value = tool.map_or_else(|| literal::quoted(value), |tool| tool.to_json(&self.key, value));
        self.call.add_argument(&self.key, &value);
        self.enter(State::Between);
        Step::More
    }

    /// Ends the arguments, which are whole between two tags.
    fn complete(&mut self, step: Step) -> Step {
        self.call.end_arguments();
        step
    }
}
