//! Methods of Python's strings, lists, dictionaries and numbers.
//!
//! Jinja2's immutable sandbox has no methods that change a list or a dictionary, so there are none here.

mod containers;
mod kinds;
mod strings;

use minijinja::{Error, ErrorKind, State, Value, value::ValueKind};

pub(super) use self::{
    kinds::is_space,
    strings::{charge, lines},
};

use super::{
    arguments::Arguments,
    call_arguments::{refuse, undefined},
    repr::{as_float, is_builtin, type_name},
};

/// Methods that the immutable sandbox rejects.
const CHANGING: &[&str] = &[
    "append",
    "extend",
    "pop",
    "insert",
    "remove",
    "reverse",
    "sort",
    "clear",
    "update",
    "setdefault",
    "popitem",
];

/// Calls a method, which minijinja does not support.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    given: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::String => return strings::call(state, value, name, given),
        ValueKind::Number => return number(value, name, given),
        _ => {}
    }
    let is_list = value.is_tuple() || type_name(value) == "list";
    if is_list || value.kind() == ValueKind::Map {
        if CHANGING.contains(&name) && !value.is_tuple() {
            return Err(refuse(format!("{name} would change a value, and templates may not")));
        }
        return if is_list {
            containers::list(value, name, given)
        } else {
            containers::dict(value, name, given)
        };
    }
    Err(Error::from(ErrorKind::UnknownMethod))
}

/// Whether Python's type of the value has the method.
pub(super) fn exists(value: &Value, name: &str) -> bool {
    match type_name(value) {
        "str" => strings::METHODS.contains(&name) || kinds::METHODS.contains(&name),
        "dict" if !is_builtin(value, "Namespace") => {
            containers::DICT_METHODS.contains(&name) || CHANGING[6..].contains(&name) || name == "pop"
        }
        "list" => containers::LIST_METHODS.contains(&name) || CHANGING[..8].contains(&name),
        "tuple" => containers::LIST_METHODS[..2].contains(&name),
        _ => false,
    }
}

/// Names that a lookup in a dictionary must not be confused with.
pub(super) fn is_a_name(name: &str) -> bool {
    strings::METHODS.contains(&name)
        || kinds::METHODS.contains(&name)
        || containers::DICT_METHODS.contains(&name)
        || containers::LIST_METHODS.contains(&name)
        || CHANGING.contains(&name)
}

/// Whether the value can be called.
pub(super) fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain || is_builtin(value, "Macro")
}

fn number(value: &Value, name: &str, given: &[Value]) -> Result<Value, Error> {
    match (name, as_float(value)) {
        ("is_integer", float) => {
            Arguments::bind("is_integer", &[], 0, given)?;
            Ok(Value::from(float.is_none_or(|float| float.fract() == 0.0)))
        }
        ("bit_length", None) => {
            Arguments::bind("bit_length", &[], 0, given)?;
            let size = i128::try_from(value.clone())?.unsigned_abs();
            Ok(Value::from(u128::BITS - size.leading_zeros()))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Tests the kinds of characters of a string.
pub(super) fn has_kind(text: &str, method: &str) -> bool {
    kinds::ask(text, method).unwrap_or_default()
}
