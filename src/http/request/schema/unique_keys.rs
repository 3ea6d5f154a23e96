//! JSON objects with unique names.
//!
//! Of two fields with the same name, `serde_json` keeps the last and other readers keep the first: a proxy that checks
//! requests may have read another value than eka does. Such objects are refused. `serde_json` limits the nesting to 128.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Reads an object.
///
/// # Errors
/// When `body` is not a JSON object, or an object has the same name twice, at any depth.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let object = json.deserialize_map(Object)?;
    json.end()?;
    Ok(object)
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{name:?} comes twice in one object")));
            }
            object.insert(name, entries.next_value_seed(Any)?);
        }
        Ok(object)
    }
}

/// Any value.
struct Any;

impl<'de> DeserializeSeed<'de> for Any {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Any)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Value, A::Error> {
        Object.visit_map(entries).map(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repeated_name_is_refused_at_any_depth() {
        for twice in [r#"{"a": 1, "a": 1}"#, r#"{"b": [{"a": 1, "\u0061": 2}]}"#] {
            let message = object(twice.as_bytes()).unwrap_err().to_string();
            assert!(message.starts_with("\"a\" comes twice"), "{message}");
        }
        object(br#"{"a": {"a": 1}, "b": {"a": 1}}"#).unwrap();
        for other in ["", "[]", "{} {}", "null", "{\"a\": 1,}"] {
            object(other.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn it_reads_the_same_as_serde_json(
            text in r#"\{"a": (null|true|-?[0-9]{1,25}|[0-9]\.[0-9]{1,20}e[0-9]|"[a-z\u0900-\u097f]*"|\[[0-9](, [0-9]){0,3}\]|\{"b": \{\}\})\}"#
        ) {
            let theirs: Option<Map<String, Value>> = serde_json::from_str(&text).ok();
            prop_assert_eq!(object(text.as_bytes()).ok(), theirs, "{}", text);
        }
    }
}
