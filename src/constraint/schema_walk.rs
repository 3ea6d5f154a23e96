//! Visits every schema within a schema.

use serde_json::{Map, Value};

/// Keywords whose value is an object of schemas with names that are not keywords.
const BY_NAME: [&str; 6] =
    ["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"];

/// Calls `act` with `schema` and every schema within it, each with its place, until one fails. Property names and literal
/// values (`const`, `enum`) are not schemas.
///
/// # Errors
/// The first error of `act`.
pub(super) fn each<E, F>(schema: &Value, place: &str, act: &mut F) -> Result<(), E>
where
    F: FnMut(&Map<String, Value>, &str) -> Result<(), E>,
{
    match schema {
        Value::Object(object) => {
            act(object, place)?;
            object.iter().try_for_each(|(name, value)| match (name.as_str(), value) {
                ("const" | "enum" | "default" | "examples" | "example", _) => Ok(()),
                (name, Value::Object(named)) if BY_NAME.contains(&name) => named
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
pub(crate) fn each_inner(schema: &mut Value, act: &mut dyn FnMut(&mut Value)) {
    match schema {
        Value::Object(object) => {
            for (name, value) in object {
                match (name.as_str(), value) {
                    ("const" | "enum" | "default" | "examples" | "example", _) => {}
                    (name, Value::Object(named)) if BY_NAME.contains(&name) => {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_properties_and_literal_values_are_not_schemas() {
        let schema = json!({
            "properties": { "pattern": { "title": "1" } },
            "dependentSchemas": { "allOf": { "title": "2" } },
            "dependencies": { "not": { "title": "3" } },
            "items": [{ "title": "4" }],
            "const": { "title": "no" },
        });
        let (mut titles, mut visited) = (String::new(), 0);
        let visit: Result<(), ()> = each(&schema, "#", &mut |object, _| {
            visited += 1;
            titles.push_str(object.get("title").and_then(Value::as_str).unwrap_or_default());
            Ok(())
        });
        visit.unwrap();
        assert_eq!((titles.as_str(), visited), ("1234", 5));
    }
}
