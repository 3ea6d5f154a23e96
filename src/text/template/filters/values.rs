//! Arguments of filters.

use minijinja::{Error, State, Value};

use super::super::{
    call_arguments::{refuse, undefined},
    repr::{to_text, type_name},
};

/// The argument of a filter on text: any value converts to text.
pub(super) fn text_of(value: &Value) -> String {
    to_text(value)
}

/// The argument of a filter on items.
pub(super) fn items_of(value: &Value) -> Result<Vec<Value>, Error> {
    if value.is_none() {
        return Err(refuse("NoneType is not iterable"));
    }
    value.try_iter()?.checked().collect()
}

/// Number of items.
pub(super) fn length(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let value = &given[0];
    if value.is_undefined() {
        return Ok(Value::from(0));
    }
    value.len().map(Value::from).ok_or_else(|| refuse(format!("{} has no length", type_name(value))))
}

/// Rejects an undefined value.
pub(super) fn defined(value: &Value) -> Result<&Value, Error> {
    if value.is_undefined() { Err(undefined()) } else { Ok(value) }
}
