//! Visits every schema within a schema.

use serde_json::{Map, Value};

/// Calls `act` with `schema` and every schema within it, each with its place, until one fails. Property names and literal
/// values (`const`, `enum`) are not schemas.
///
/// # Errors
/// That of `act`.
pub(super) fn each<E, F>(schema: &Value, place: &str, act: &mut F) -> Result<(), E>
where
    F: FnMut(&Map<String, Value>, &str) -> Result<(), E>,
{
    match schema {
        Value::Object(object) => {
            act(object, place)?;
            object.iter().try_for_each(|(name, value)| match (name.as_str(), value) {
                ("const" | "enum" | "default" | "examples" | "example", _) => Ok(()),
                ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => named
                    .iter()
                    .try_for_each(|(inner, value)| each(value, &format!("{place}/{name}/{inner}"), act)),
                _ => each(value, &format!("{place}/{name}"), act),
            })
        }
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(at, item)| each(item, &format!("{place}/{at}"), act))
        }
        _ => Ok(()),
    }
}

/// Calls `act` with the schemas one level below this one. Property names and literal values are not schemas.
pub(super) fn each_inner(schema: &mut Value, act: &mut dyn FnMut(&mut Value)) {
    match schema {
        Value::Object(object) => {
            for (name, value) in object {
                match (name.as_str(), value) {
                    ("const" | "enum" | "default" | "examples" | "example", _) => {}
                    ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                        named.values_mut().for_each(&mut *act);
                    }
                    (_, value) => act(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(act),
        _ => {}
    }
}
