//! Which parameters of a tool are texts: formats without quotation marks do not tell `"3"` from `3`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::literal;

/// Deepest `$ref` that is followed.
const MAX_REFERENCES: usize = 8;

/// The name of a tool, and the types of its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolSignature {
    /// Its name.
    pub name: String,
    /// Parameters that are texts, or texts or null.
    texts: BTreeMap<String, TextType>,
}

/// The type of a parameter that is a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextType {
    Text,
    TextOrNull,
}

impl ToolSignature {
    /// The signature of a tool whose arguments have this JSON schema.
    #[must_use]
    pub fn new(name: impl Into<String>, schema: &Value) -> Self {
        let properties = schema.get("properties").and_then(Value::as_object);
        let texts = properties
            .into_iter()
            .flatten()
            .filter_map(|(key, property)| Some((key.clone(), text_type(schema, property)?)));
        Self { name: name.into(), texts: texts.collect() }
    }

    /// The value of a parameter as JSON, from its text without quotation marks.
    pub(super) fn to_json(&self, key: &str, text: &str) -> String {
        let is_null = matches!(text.trim(), "null" | "None");
        match self.texts.get(key) {
            Some(TextType::Text) => literal::quoted(text),
            Some(TextType::TextOrNull) if !is_null => literal::quoted(text),
            _ => literal::to_json(text.trim()).unwrap_or_else(|| literal::quoted(text)),
        }
    }
}

/// The type of a property that is a text; `None` for other and for mixed types.
fn text_type(root: &Value, property: &Value) -> Option<TextType> {
    let types = types(root, property, MAX_REFERENCES)?;
    let texts = types.iter().filter(|name| **name == "string").count();
    let nulls = types.iter().filter(|name| **name == "null").count();
    match types.len() {
        all if texts == 0 || texts + nulls < all => None,
        _ if nulls > 0 => Some(TextType::TextOrNull),
        _ => Some(TextType::Text),
    }
}

/// The types that a schema allows, where it says so.
fn types<'a>(root: &'a Value, schema: &'a Value, references: usize) -> Option<Vec<&'a str>> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.strip_prefix('#')?)?;
        return types(root, target, references.checked_sub(1)?);
    }
    if let Some(kind) = schema.get("type") {
        return match kind {
            Value::String(name) => Some(vec![name]),
            Value::Array(names) => names.iter().map(Value::as_str).collect(),
            _ => None,
        };
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return Some(values.iter().map(type_of).collect());
    }
    if let Some(value) = schema.get("const") {
        return Some(vec![type_of(value)]);
    }
    let either = schema.get("anyOf").or_else(|| schema.get("oneOf"))?.as_array()?;
    let all: Option<Vec<_>> = either.iter().map(|one| types(root, one, references.checked_sub(1)?)).collect();
    all.map(|all| all.concat())
}

const fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Null => "null",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_keeps_its_characters_and_other_types_are_json() {
        let schema = json!({
            "properties": {
                "text": { "type": "string" }, "word": { "enum": ["3", "b"] }, "maybe": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                "count": { "type": "integer" }, "mixed": { "type": ["string", "integer"] }, "named": { "$ref": "#/$defs/n" },
                "loop": { "$ref": "#/properties/loop" },
            },
            "$defs": { "n": { "type": "string" } },
        });
        let tool = ToolSignature::new("a", &schema);
        for (key, text, json) in [
            ("text", "3", "\"3\""),
            ("text", "a\n\"b\"", "\"a\\n\\\"b\\\"\""),
            ("word", "3", "\"3\""),
            ("maybe", "null", "null"),
            ("maybe", "3", "\"3\""),
            ("count", "3", "3"),
            ("count", " three ", "\" three \""),
            ("mixed", "3", "3"),
            ("named", "true", "\"true\""),
            ("loop", "[1, {\"a\": 2}]", "[1, {\"a\": 2}]"),
            ("unknown", "True", "true"),
            ("unknown", "b", "\"b\""),
        ] {
            assert_eq!(tool.to_json(key, text), json, "{key} {text}");
        }
    }
}
