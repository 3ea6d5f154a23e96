//! The object of a call, read character by character: its arguments are streamed before it is complete.
//!
//! It becomes a call when its name and the beginning of its arguments are read, whichever comes last, and nothing that
//! follows changes that: a client may have been sent its beginning. Every decision is made at a character, so it does not
//! depend on how the text was cut into tokens.

use super::{
    partial_call::PartialCall,
    step::{Nesting, Step},
};

/// Which member of the object a value belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    #[default]
    Other,
}

/// The object of a call.
#[derive(Debug, Default)]
pub(super) struct Object {
    state: State,
    key: String,
    /// The member whose value is being read.
    member: Member,
    /// A name that is being read, with its quotation marks.
    spelled: String,
    nesting: Nesting,
    /// Its arguments are as the model wrote them.
    call: PartialCall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// Before a key, or the end of an object that has none.
    BeforeKey,
    Key,
    BeforeColon,
    BeforeValue,
    Value,
    AfterValue,
}

impl Object {
    pub(super) const fn call(&self) -> &PartialCall {
        &self.call
    }

    /// Reads the next character.
    pub(super) fn take(&mut self, c: char) -> Step {
        if c.is_ascii_whitespace() && !matches!(self.state, State::Key | State::Value) {
            return Step::More;
        }
        self.state = match (self.state, c) {
            (State::Start, '{') => State::BeforeKey,
            (State::BeforeKey, '"') => {
                self.key.clear();
                State::Key
            }
            (State::Key, '"') => State::BeforeColon,
            (State::Key, c) => {
                self.key.push(c);
                State::Key
            }
            (State::BeforeColon, ':') => State::BeforeValue,
            (State::BeforeValue, c) => return self.begin_value(c),
            (State::Value, c) => return self.go_on(c),
            (State::AfterValue, ',') => State::BeforeKey,
            (State::BeforeKey | State::AfterValue, '}') => return self.complete(),
            _ => return Step::Broken,
        };
        Step::More
    }

    fn begin_value(&mut self, c: char) -> Step {
        let Some(member) = self.next_slot() else { return Step::Broken };
        let is_fit = match member {
            Member::Name => c == '"',
            Member::Arguments => c == '{',
            Member::Other => !matches!(c, ',' | '}' | ']' | ':'),
        };
        if !is_fit {
            return Step::Broken;
        }
        (self.member, self.nesting, self.state) = (member, Nesting::default(), State::Value);
        self.nesting.take(c);
        self.push(c);
        Step::More
    }

    /// The member of the last key; `None` for a key that occurred before.
    fn next_slot(&self) -> Option<Member> {
        match self.key.as_str() {
            _ if self.call.is_call() => Some(Member::Other),
            "name" | "tool_name" => self.call.name.is_none().then_some(Member::Name),
            // Models that were trained on one of the names write the other now and then.
            "arguments" | "parameters" => self.call.arguments.is_none().then_some(Member::Arguments),
            _ => Some(Member::Other),
        }
    }

    fn go_on(&mut self, c: char) -> Step {
        // A number or a word ends with what follows it.
        let was_word = self.nesting.is_over();
        if was_word && (c.is_ascii_whitespace() || matches!(c, ',' | '}')) {
            self.state = State::AfterValue;
            return self.take(c);
        }
        self.nesting.take(c);
        self.push(c);
        if was_word || !self.nesting.is_over() {
            return Step::More;
        }
        self.state = State::AfterValue;
        self.end_value()
    }

    fn end_value(&mut self) -> Step {
        match self.member {
            Member::Name => {
                self.call.name = serde_json::from_str(&self.spelled).ok();
                if self.call.name.is_some() { Step::Named } else { Step::Broken }
            }
            Member::Arguments => {
                self.call.has_whole_arguments = true;
                Step::More
            }
            Member::Other => Step::More,
        }
    }

    fn push(&mut self, c: char) {
        match self.member {
            Member::Name => self.spelled.push(c),
            Member::Arguments => self.call.arguments.get_or_insert_default().push(c),
            Member::Other => {}
        }
    }

    fn complete(&mut self) -> Step {
        if self.call.name.is_none() {
            return Step::Broken;
        }
        self.call.arguments.get_or_insert_with(|| "{}".to_owned());
        self.call.has_whole_arguments = true;
        Step::Complete
    }
}
