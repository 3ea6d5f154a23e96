//! The reader of one call, whatever its syntax: character by character, so that it does not depend on the boundaries of tokens.

use std::sync::Arc;

use super::{
    format::Syntax, gemma::Gemma, named::Named, object::Object, partial_call::PartialCall, python::Python,
    schema_types::ToolSignature, step::Step, tagged::Tagged,
};

/// A call that is being read.
#[derive(Debug)]
pub(super) enum CallReader {
    Object(Object),
    Named(Named),
    Tagged(Tagged),
    Python(Python),
    Gemma(Gemma),
}

macro_rules! each {
    ($reader:expr, $call:ident => $value:expr) => {
        match $reader {
            CallReader::Object($call) => $value,
            CallReader::Named($call) => $value,
            CallReader::Tagged($call) => $value,
            CallReader::Python($call) => $value,
            CallReader::Gemma($call) => $value,
        }
    };
}

impl CallReader {
    /// At the beginning of a call of one of `tools`.
    pub(super) fn new(syntax: Syntax, tools: &Arc<[ToolSignature]>) -> Self {
        match syntax {
            Syntax::Object { .. } => Self::Object(Object::default()),
            Syntax::Named(syntax) => Self::Named(Named::new(syntax)),
            Syntax::Tagged(syntax) => Self::Tagged(Tagged::new(syntax, Arc::clone(tools))),
            Syntax::Python => Self::Python(Python::default()),
            Syntax::Gemma { quote } => Self::Gemma(Gemma::new(quote)),
        }
    }

    /// Reads the next character.
    pub(super) fn take(&mut self, c: char) -> Step {
        each!(self, call => call.take(c))
    }

    /// What has been read.
    pub(super) const fn call(&self) -> &PartialCall {
        each!(self, call => call.call())
    }
}
