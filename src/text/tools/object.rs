//! The object of a call, read character by character: its arguments are told before it is complete.

/// How far the object has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More is to come.
    More,
    /// Its last brace was read.
    Complete,
    /// It is no call.
    Broken,
}

/// The object of a call.
#[derive(Debug, Default)]
pub(super) struct Object {
    place: Place,
    key: String,
    /// The value that is being read.
    value: String,
    nesting: Nesting,
    name: Option<String>,
    /// As the model writes them.
    arguments: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
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

/// Where in a value a character stands.
#[derive(Clone, Copy, Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    fn take(&mut self, c: char) {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            '{' | '[' if !self.in_string => self.depth += 1,
            '}' | ']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    const fn is_over(&self) -> bool {
        self.depth == 0 && !self.in_string
    }
}

impl Object {
    /// The tool's name, once it is complete.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The arguments so far.
    pub(super) fn arguments(&self) -> Option<&str> {
        self.arguments.as_deref()
    }

    /// Reads the next character.
    pub(super) fn take(&mut self, c: char) -> Step {
        if c.is_ascii_whitespace() && !matches!(self.place, Place::Key | Place::Value) {
            return Step::More;
        }
        self.place = match (self.place, c) {
            (Place::Start, '{') => Place::BeforeKey,
            (Place::BeforeKey, '"') => {
                self.key.clear();
                Place::Key
            }
            (Place::Key, '"') => Place::BeforeColon,
            (Place::Key, c) => {
                self.key.push(c);
                Place::Key
            }
            (Place::BeforeColon, ':') => Place::BeforeValue,
            (Place::BeforeValue, c) => return self.begin_value(c),
            (Place::Value, c) => return self.go_on(c),
            (Place::AfterValue, ',') => Place::BeforeKey,
            (Place::BeforeKey | Place::AfterValue, '}') => return self.complete(),
            _ => return Step::Broken,
        };
        Step::More
    }

    fn is_arguments(&self) -> bool {
        // Models that were trained on one of the names write the other now and then.
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    fn begin_value(&mut self, c: char) -> Step {
        let is_fit = match self.key.as_str() {
            "name" => c == '"' && self.name.is_none(),
            _ if self.is_arguments() => c == '{' && self.arguments.is_none(),
            _ => !matches!(c, ',' | '}' | ']' | ':'),
        };
        if !is_fit {
            return Step::Broken;
        }
        (self.value, self.nesting, self.place) = (String::new(), Nesting::default(), Place::Value);
        self.nesting.take(c);
        self.push(c);
        Step::More
    }

    fn go_on(&mut self, c: char) -> Step {
        // A number or a word ends with what follows it.
        let was_word = self.nesting.is_over();
        if was_word && (c.is_ascii_whitespace() || matches!(c, ',' | '}')) {
            self.place = Place::AfterValue;
            return self.take(c);
        }
        self.nesting.take(c);
        self.push(c);
        if !was_word && self.nesting.is_over() {
            self.place = Place::AfterValue;
            if self.key == "name" {
                self.name = serde_json::from_str(&self.value).ok();
                return if self.name.is_some() { Step::More } else { Step::Broken };
            }
        }
        Step::More
    }

    fn push(&mut self, c: char) {
        if self.is_arguments() {
            self.arguments.get_or_insert_default().push(c);
        } else {
            self.value.push(c);
        }
    }

    const fn complete(&self) -> Step {
        if self.name.is_some() { Step::Complete } else { Step::Broken }
    }
}
