//! The name and the arguments of a call that is being read, whatever its syntax.

use super::literal;

/// What has been read of a call.
#[derive(Debug, Default)]
pub(super) struct PartialCall {
    /// The tool's name, once it is complete.
    pub(super) name: Option<String>,
    /// The arguments so far, as JSON.
    pub(super) arguments: Option<String>,
    /// Whether the arguments were read to their end.
    pub(super) has_whole_arguments: bool,
}

impl PartialCall {
    /// The tool's name, once it is complete.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The arguments so far, as JSON.
    pub(super) fn arguments(&self) -> Option<&str> {
        self.arguments.as_deref()
    }

    /// Whether it is a call, independent of the text after it.
    pub(super) const fn is_call(&self) -> bool {
        self.name.is_some() && self.arguments.is_some()
    }

    /// Whether it is a call whose arguments have begun and not ended.
    pub(super) const fn is_truncated(&self) -> bool {
        self.is_call() && !self.has_whole_arguments
    }

    /// Takes the name, and begins an object of arguments.
    pub(super) fn begin(&mut self, name: String) {
        (self.name, self.arguments) = (Some(name), Some("{".into()));
    }

    /// Adds an argument whose value is JSON already.
    pub(super) fn add_argument(&mut self, key: &str, value: &str) {
        let arguments = self.arguments.get_or_insert_with(|| "{".into());
        if arguments.len() > 1 {
            arguments.push_str(", ");
        }
        arguments.push_str(&literal::quoted(key));
        arguments.push_str(": ");
        arguments.push_str(value);
    }

    /// Ends the object of arguments, if it has begun and not ended.
    pub(super) fn end_arguments(&mut self) {
        if let Some(arguments) = self.arguments.as_mut().filter(|_| !self.has_whole_arguments) {
            arguments.push('}');
            self.has_whole_arguments = true;
        }
    }
}
