//! Which parameters of a tool are texts: formats without quotation marks do not tell `"3"` from `3`.

use std::collections::{BTreeMap, HashSet};

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
        let texts = properties.into_iter().flatten().filter_map(|(key, property)| {
            let texts = Texts::of(schema, property)?;
            Some((key.clone(), if texts.or_null { TextType::TextOrNull } else { TextType::Text }))
        });
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

/// The texts that a property may be, if it may be nothing else than a text or null.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Texts<'a> {
    /// Any of these words.
    pub(super) words: Vec<&'a str>,
    /// Texts that match one of these schemas.
    pub(super) schemas: Vec<&'a Value>,
    /// Null is allowed too.
    pub(super) or_null: bool,
}

impl<'a> Texts<'a> {
    /// The texts of a property of `root`; `None` for other and for mixed types.
    ///
    /// Every definition is read once, however often it is referred to: a few kilobytes of references to references would
    /// take minutes.
    pub(super) fn of(root: &'a Value, property: &'a Value) -> Option<Self> {
        let mut texts = Self::default();
        texts.add(root, property, (MAX_REFERENCES, &mut HashSet::new()))?;
        (!texts.words.is_empty() || !texts.schemas.is_empty()).then_some(texts)
    }

    /// Adds what `schema` allows; `None` if that is not only texts and null.
    fn add(
        &mut self,
        root: &'a Value,
        schema: &'a Value,
        (depth, seen): (usize, &mut HashSet<&'a str>),
    ) -> Option<()> {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            if !seen.insert(reference) {
                return Some(());
            }
            let target = root.pointer(reference.strip_prefix('#')?)?;
            return self.add(root, target, (depth.checked_sub(1)?, seen));
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return values.iter().try_for_each(|value| self.add_value(value));
        }
        if let Some(value) = schema.get("const") {
            return self.add_value(value);
        }
        match schema.get("type") {
            Some(Value::String(name)) => return self.add_type(name, schema),
            Some(Value::Array(names)) => {
                return names.iter().try_for_each(|name| self.add_type(name.as_str()?, schema));
            }
            _ => {}
        }
        let either = schema.get("anyOf").or_else(|| schema.get("oneOf"))?.as_array()?;
        either.iter().try_for_each(|one| self.add(root, one, (depth.checked_sub(1)?, seen)))
    }

    fn add_value(&mut self, value: &'a Value) -> Option<()> {
        match value {
            Value::String(word) => self.words.push(word),
            Value::Null => self.or_null = true,
            _ => return None,
        }
        Some(())
    }

    fn add_type(&mut self, name: &str, schema: &'a Value) -> Option<()> {
        match name {
            "string" => self.schemas.push(schema),
            "null" => self.or_null = true,
            _ => return None,
        }
        Some(())
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

    #[test]
    fn references_to_references_are_read_once() {
        let many = |name: &str| json!({ "anyOf": vec![json!({ "$ref": format!("#/$defs/{name}") }); 1_000] });
        let schema = json!({
            "properties": { "p": { "$ref": "#/$defs/a" } },
            "$defs": { "a": many("b"), "b": many("c"), "c": many("d"), "d": { "type": "string" } },
        });
        let texts = Texts::of(&schema, &schema["properties"]["p"]).unwrap();
        assert_eq!((texts.schemas.len(), texts.or_null), (1, false));
    }
}
