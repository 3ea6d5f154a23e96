//! Objects of a schema that allow no further properties.
//!
//! JSON Schema allows any further property of an object unless the schema forbids it, and a model that may write any text
//! there does not stop. Clients mean the properties that they list. So an object with `properties` and without
//! `additionalProperties` is closed, as in xgrammar and llama.cpp; `"x-additional-properties": "open"` leaves it open.
//!
//! A schema whose parts apply to the same object stays as it is: each part would forbid the properties of the others.

use serde_json::{Map, Value};

use crate::constraint::each_inner_schema;

/// The keyword that leaves an object open.
const KEYWORD: &str = "x-additional-properties";

/// Keywords that say which further properties an object has.
const DECIDED: [&str; 3] = ["additionalProperties", "unevaluatedProperties", "patternProperties"];

/// Keywords with schemas that apply to the same value as the schema itself.
const IN_PLACE: [&str; 9] =
    ["allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "not", "dependentSchemas"];

/// The schema with closed objects.
pub(super) fn closed(mut schema: Value) -> Value {
    let is_closable = !overlaps(&schema);
    walk(&mut schema, &mut |object| {
        let is_open = object.shift_remove(KEYWORD).is_some_and(|value| value == "open");
        let is_decided = DECIDED.iter().any(|keyword| object.contains_key(*keyword));
        if is_closable && !is_open && !is_decided && object.get("properties").is_some_and(Value::is_object) {
            object.insert("additionalProperties".into(), false.into());
        }
    });
    schema
}

/// Whether parts of the schema apply to the same object.
fn overlaps(schema: &Value) -> bool {
    let mut overlaps = false;
    walk(&mut schema.clone(), &mut |object| {
        let parts: usize = IN_PLACE.iter().filter(|keyword| object.contains_key(**keyword)).count();
        let alternatives = object.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
        let conditions = ["if", "not", "dependentSchemas", "unevaluatedProperties"];
        overlaps |= alternatives > 1
            || parts > 1
            || (parts > 0 && object.contains_key("properties"))
            || conditions.iter().any(|keyword| object.contains_key(*keyword));
    });
    overlaps
}

/// Calls `act` with every schema within this one. The JSON parser bounds the depth.
fn walk(schema: &mut Value, act: &mut dyn FnMut(&mut Map<String, Value>)) {
    if let Value::Object(object) = schema {
        act(object);
    }
    each_inner_schema(schema, &mut |inner| walk(inner, act));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_closed_unless_the_schema_says_otherwise() {
        let schema = json!({
            "type": "object",
            "properties": {
                "inner": { "properties": { "additionalProperties": { "type": "string" } } },
                "open": { "properties": {}, "x-additional-properties": "open" },
                "decided": { "properties": {}, "additionalProperties": { "type": "integer" } },
                "any": { "type": "object" },
                "list": { "items": { "$ref": "#/$defs/named" } },
                "maybe": { "anyOf": [{ "properties": {} }, { "type": "null" }] },
            },
            "$defs": { "named": { "properties": {} } },
        });
        let closed = closed(schema);
        let of = |path: &str| closed.pointer(path).unwrap().get("additionalProperties");
        for path in ["", "/properties/inner", "/$defs/named", "/properties/maybe/anyOf/0"] {
            assert_eq!(of(path), Some(&json!(false)), "{path}");
        }
        for path in ["/properties/open", "/properties/any"] {
            assert_eq!(of(path), None, "{path}");
        }
        assert_eq!(closed["properties"]["open"], json!({ "properties": {} }));
        assert!(of("/properties/decided").unwrap().is_object());
    }

    #[test]
    fn parts_of_one_object_stay_open() {
        for schema in [
            json!({ "allOf": [{ "properties": { "a": {} } }, { "properties": { "b": {} } }] }),
            json!({ "properties": { "a": {} }, "anyOf": [{ "required": ["a"] }, { "required": ["b"] }] }),
            json!({ "properties": { "a": {} }, "if": {}, "then": {} }),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
