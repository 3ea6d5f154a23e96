//! A call as a name, and then an object of arguments: `weather[ARGS]{"city": "Pune"}`.

use super::{
    format::NamedSyntax,
    partial_call::PartialCall,
    step::{Nesting, Step},
};

/// Longest text before the arguments, in bytes. Names of tools have 64.
const MAX_HEADER: usize = 512;

/// A call that is being read.
#[derive(Debug)]
pub(super) struct Named {
    syntax: NamedSyntax,
    /// The text before the arguments so far.
    header: String,
    call: PartialCall,
    nesting: Nesting,
}

impl Named {
    pub(super) fn new(syntax: NamedSyntax) -> Self {
        Self { syntax, header: String::new(), call: PartialCall::default(), nesting: Nesting::default() }
    }

    pub(super) const fn call(&self) -> &PartialCall {
        &self.call
    }

    pub(super) fn take(&mut self, c: char) -> Step {
        if self.call.name.is_none() { self.take_header(c) } else { self.take_arguments(c) }
    }

    fn take_header(&mut self, c: char) -> Step {
        if self.header.is_empty() && c.is_whitespace() {
            return Step::More;
        }
        self.header.push(c);
        let NamedSyntax { before, ends, between } = self.syntax;
        let Some(rest) = self.header.strip_prefix(before) else {
            return if before.starts_with(&self.header) { Step::More } else { Step::Broken };
        };
        if !rest.ends_with(between) {
            return if self.header.len() > MAX_HEADER { Step::Broken } else { Step::More };
        }
        let name = rest.split(ends).next().unwrap_or_default().trim();
        if name.is_empty() {
            return Step::Broken;
        }
        self.call.name = Some(name.to_owned());
        Step::Named
    }

    fn take_arguments(&mut self, c: char) -> Step {
        match &mut self.call.arguments {
            None if c.is_whitespace() => return Step::More,
            None if c != '{' => return Step::Broken,
            arguments => arguments.get_or_insert_default().push(c),
        }
        self.nesting.take(c);
        self.call.has_whole_arguments = self.nesting.is_over();
        if self.call.has_whole_arguments { Step::Complete } else { Step::More }
    }
}
