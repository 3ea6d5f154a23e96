//! Jinja2's filters.
//!
//! All of them are here, although minijinja has most: its own print floats in another way, compare what Python does not
//! compare, and give lists where Jinja2 gives generators, which are always true and end.

mod markup;
mod numbers;
mod select;
mod sequences;
mod text;

pub(super) use self::markup::escape_text;

use minijinja::{Environment, Error, State, Value};

use super::{
    arguments::{refuse, undefined},
    environment::add_filter,
    repr::{to_text, type_name},
    tojson::tojson,
};

/// Adds every filter.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "tojson", tojson);
    for add in [text::add, numbers::add, sequences::add, select::add, markup::add] {
        add(environment);
    }
}

/// What a filter that works on text is given: anything is text.
fn text_of(value: &Value) -> String {
    to_text(value)
}

/// What a filter that works on items is given.
fn items_of(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_none() {
        return Err(refuse("NoneType is not iterable"));
    }
    value.try_iter()?.checked().collect()
}

/// How many items there are.
fn length(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let value = &given[0];
    if value.is_undefined() {
        return Ok(Value::from(0));
    }
    value.len().map(Value::from).ok_or_else(|| refuse(format!("{} has no length", type_name(value))))
}

/// Refuses an undefined value.
fn defined(value: &Value) -> Result<&Value, Error> {
    if value.is_undefined() { Err(undefined()) } else { Ok(value) }
}
