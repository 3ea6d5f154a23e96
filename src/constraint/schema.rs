//! JSON schemas: what is set for the compiler, and where a schema says what it cannot enforce.

use serde_json::{Map, Value, json};

use super::{ConstraintError, grammar::invalid};

/// White space between JSON's parts: a space, or a new line and some indentation. A model that may write any amount of it
/// may write nothing else until its tokens are used up, and small models do.
const WHITE_SPACE: &str = r"( |\n[ \t]{0,20})";

/// Under this name the compiler takes its own options from a schema. They are not for clients: one of them turns
/// mistakes into warnings that nobody would hear.
const OPTIONS: &str = "x-guidance";

/// The schema with the compiler's options.
pub(super) fn prepare(schema: &str) -> Result<Value, ConstraintError> {
    let mut object: Map<String, Value> =
        serde_json::from_str(schema).map_err(|e| invalid(&format!("a schema must be an object: {e}")))?;
    if object.contains_key(OPTIONS) {
        return Err(ConstraintError::Keyword { keyword: OPTIONS.into(), place: "#".into() });
    }
    object.insert(OPTIONS.into(), json!({ "whitespace_pattern": WHITE_SPACE }));
    Ok(Value::Object(object))
}

/// A schema to stand within a grammar after `%json`, with what is set for schemas that stand alone.
#[must_use]
pub fn embedded(mut schema: Value) -> Value {
    if let Value::Object(object) = &mut schema {
        object.insert(OPTIONS.into(), json!({ "whitespace_pattern": WHITE_SPACE }));
    }
    schema
}

/// The keyword that the compiler's words complain about, and where it stands.
pub(super) fn unenforceable(schema: &str, said: &str) -> Option<ConstraintError> {
    let keyword = if said.starts_with("oneOf constraints are not supported") {
        "oneOf"
    } else {
        said.split_once("Unimplemented keys: [\"")?.1.split('"').next()?
    };
    let schema = serde_json::from_str(schema).ok()?;
    let place = find(&schema, keyword, "#")?;
    Some(ConstraintError::Keyword { keyword: keyword.into(), place })
}

/// Where the first schema with this keyword is. The names of properties and values of the client's own are no keywords.
fn find(schema: &Value, keyword: &str, place: &str) -> Option<String> {
    match schema {
        Value::Object(object) if object.contains_key(keyword) => Some(place.to_owned()),
        Value::Object(object) => object.iter().find_map(|(name, value)| match (name.as_str(), value) {
            ("const" | "enum" | "default" | "examples" | "example", _) => None,
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => named
                .iter()
                .find_map(|(inner, value)| find(value, keyword, &format!("{place}/{name}/{inner}"))),
            _ => find(value, keyword, &format!("{place}/{name}")),
        }),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.into_iter().find_map(|(at, item)| find(item, keyword, &format!("{place}/{at}")))
        }
        _ => None,
    }
}
