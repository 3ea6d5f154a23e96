//! A call as Gemma writes it: `call:weather{city:<|"|>Pune<|"|>,days:3}`.

use super::{literal, partial_call::PartialCall, step::Step};

/// Before the name.
const BEFORE: &str = "call:";

/// Longest name of a tool, in bytes.
const MAX_NAME: usize = 512;

/// A call that is being read. Its arguments are sent as a whole: their keys have no quotation marks.
#[derive(Debug)]
pub(super) struct Gemma {
    /// The mark before and after a text.
    quote: &'static str,
    text: String,
    call: PartialCall,
    depth: usize,
    in_text: bool,
    /// Where the mark or the text after it begins.
    from: usize,
}

impl Gemma {
    pub(super) fn new(quote: &'static str) -> Self {
        let (text, call) = (String::new(), PartialCall::default());
        Self { quote, text, call, depth: 0, in_text: false, from: 0 }
    }

    pub(super) const fn call(&self) -> &PartialCall {
        &self.call
    }

    pub(super) fn take(&mut self, c: char) -> Step {
        if self.call.name.is_some() {
            return self.take_arguments(c);
        }
        if self.text.is_empty() && c.is_whitespace() {
            return Step::More;
        }
        if c == '{' {
            let name = self.text.strip_prefix(BEFORE).map(str::trim).filter(|name| !name.is_empty());
            let Some(name) = name.map(str::to_owned) else { return Step::Broken };
            self.call.begin(name);
            self.text = "{".into();
            (self.depth, self.from) = (1, 1);
            return Step::Named;
        }
        self.text.push(c);
        let is_beginning = self.text.starts_with(BEFORE) || BEFORE.starts_with(&self.text);
        if is_beginning && self.text.len() <= MAX_NAME { Step::More } else { Step::Broken }
    }

    fn take_arguments(&mut self, c: char) -> Step {
        self.text.push(c);
        if self.text[self.from..].ends_with(self.quote) {
            self.in_text = !self.in_text;
            self.from = self.text.len();
        } else if !self.in_text {
            match c {
                '{' | '[' => self.depth += 1,
                '}' | ']' => self.depth -= 1,
                _ => {}
            }
        }
        if self.depth > 0 {
            return Step::More;
        }
        let json = literal::convert(&self.text, self.quote).filter(|json| json.starts_with('{'));
        // The brace was sent with the name.
        self.call.arguments = Some(json.unwrap_or_else(|| "{}".into()));
        self.call.has_whole_arguments = true;
        Step::Complete
    }
}
