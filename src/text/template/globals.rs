//! Functions that templates find by name: Python's, Jinja2's, and those of `transformers`.

use std::{fmt, time::SystemTime};

use minijinja::{Environment, Error, ErrorKind, State, Value, value::from_args};

use super::{
    arguments::{Arguments, integer},
    call_arguments::refuse,
    objects::{Cycler, Dict, Joiner, Range},
    register::add_function,
    repr::to_text,
    strftime,
};

/// Adds the functions. `lipsum` is not one of them: no prompt needs filler text, and its words are random.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_function(environment, "raise_exception", |_, a| raise_exception(a));
    add_function(environment, "strftime_now", strftime_now);
    add_function(environment, "range", range);
    add_function(environment, "cycler", |_, a| Cycler::value(a));
    add_function(environment, "joiner", |_, a| {
        Ok(Joiner::value(a.first().cloned().unwrap_or_else(|| Value::from(", "))))
    });
    add_function(environment, "namespace", namespace);
    environment.add_global("dict", Value::from_object(Dict));
    environment.remove_global("debug");
}

/// The message that a template passed to `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("raise_exception", &["message"], 1, given)?;
    let raised = Raised(to_text(&arguments.value(0)));
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(raised))
}

fn strftime_now(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("strftime_now", &["format"], 1, given)?;
    Ok(Value::from(strftime::format(SystemTime::now(), arguments.required_text(0)?)))
}

fn range(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let bounds =
        given.iter().map(|bound| integer(bound).ok_or_else(|| refuse("range: bounds must be integers")));
    let range = match bounds.collect::<Result<Vec<_>, Error>>()?.as_slice() {
        [stop] => Range::new(0, *stop, 1),
        [start, stop] => Range::new(*start, *stop, 1),
        [start, stop, step] => Range::new(*start, *stop, *step),
        _ => Err(refuse("range expected 1 to 3 arguments")),
    }?;
    Ok(Value::from_object(range))
}

/// minijinja's functions, without the names that `transformers` removes.
fn namespace(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let is_hidden = |name: &Value| name.as_str().is_some_and(|name| name.starts_with('_'));
    let mut names = given.iter().filter_map(|value| value.try_iter().ok()).flatten();
    if let Some(name) = names.find(is_hidden) {
        return Err(refuse(format!("namespace: a name may not begin with an underscore: {name}")));
    }
    let (defaults,) = from_args(given)?;
    minijinja::functions::namespace(defaults)
}
