//! Methods of lists, tuples and dictionaries.

use minijinja::{Error, ErrorKind, Value};

use super::super::{
    arguments::Arguments,
    call_arguments::refuse,
    objects::{DictView, View},
};

/// Methods of lists; tuples have the first two.
pub(super) const LIST_METHODS: &[&str] = &["count", "index", "copy"];

/// Methods of dictionaries.
pub(super) const DICT_METHODS: &[&str] = &["get", "items", "keys", "values", "copy", "fromkeys"];

/// Calls a method of a list or tuple.
pub(super) fn list(value: &Value, name: &str, given: &[Value]) -> Result<Value, Error> {
    match name {
        "count" => {
            let arguments = Arguments::bind("count", &[""], 1, given)?;
            let wanted = arguments.value(0);
            Ok(Value::from(value.try_iter()?.filter(|item| *item == wanted).count()))
        }
        "index" => index(value, given),
        "copy" if !value.is_tuple() => {
            Arguments::bind("copy", &[], 0, given)?;
            Ok(Value::from(value.try_iter()?.collect::<Vec<_>>()))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn index(value: &Value, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("index", &["", "", ""], 1, given)?;
    let length = i64::try_from(value.len().unwrap_or_default()).unwrap_or(i64::MAX);
    let place =
        |bound: i64| usize::try_from(if bound < 0 { bound + length } else { bound }).unwrap_or_default();
    let start = arguments.integer(1)?.map_or(0, place);
    let end = arguments.integer(2)?.map_or(usize::MAX, place);
    let wanted = arguments.value(0);
    let found = value.try_iter()?.enumerate().skip(start).take_while(|(place, _)| *place < end);
    let mut found = found.filter(|(_, item)| *item == wanted);
    found.next().map(|(place, _)| Value::from(place)).ok_or_else(|| refuse("index: not in list"))
}

/// Calls a method of a dictionary.
pub(super) fn dict(value: &Value, name: &str, given: &[Value]) -> Result<Value, Error> {
    let view = match name {
        "keys" => View::Keys,
        "values" => View::Values,
        "items" => View::Items,
        "get" => {
            let arguments = Arguments::bind("get", &["", ""], 1, given)?;
            let found = value.as_object().and_then(|object| object.get_value(&arguments.value(0)));
            return Ok(found.or_else(|| arguments.get(1).cloned()).unwrap_or_else(|| Value::from(())));
        }
        "copy" => {
            Arguments::bind("copy", &[], 0, given)?;
            let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
            return Ok(Value::from_pairs(pairs.into_iter().flatten()));
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    Arguments::bind("view", &[], 0, given)?;
    Ok(Value::from_object(DictView::new(value.clone(), view)))
}
