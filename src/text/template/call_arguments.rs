//! The arguments of a call as minijinja passes them, and the errors of calls.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, from_args},
};

/// An operation that Python rejects with a `TypeError` or `ValueError`.
pub(super) fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// The error of Jinja2 for the use of an undefined value.
pub(super) fn undefined() -> Error {
    Error::new(ErrorKind::UndefinedError, "an undefined value was used")
}

/// The arguments of a call, not parsed.
pub(super) struct CallArguments<'a> {
    pub(super) positional: &'a [Value],
    pub(super) named: Vec<(String, Value)>,
}

/// Separates positional from named arguments, which minijinja passes as one last value.
pub(super) fn split(given: &[Value]) -> Result<CallArguments<'_>, Error> {
    let (positional, kwargs): (&[Value], Kwargs) = from_args(given)?;
    let named = kwargs.args().map(|name| Ok((name.to_owned(), kwargs.get::<Value>(name)?)));
    let named = named.collect::<Result<_, Error>>()?;
    Ok(CallArguments { positional, named })
}
