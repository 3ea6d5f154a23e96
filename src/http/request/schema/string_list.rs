//! Lists of short strings, of which none may be empty.

use serde_json::{Value, json};

use super::{
    json_schema::{JsonType, Schemas},
    location::Location,
    types::{FieldType, array, string},
};
use crate::http::field_error::FieldError;

/// An array of short strings.
pub(crate) struct StringList {
    max_strings: usize,
    max_bytes: usize,
    /// Why no string may be empty.
    empty: &'static str,
    /// A single string may be sent without an array.
    or_one: bool,
}

/// At most `max_strings` strings of at most `max_bytes`; `empty` is why none may be empty.
pub(crate) const fn string_list(max_strings: usize, max_bytes: usize, empty: &'static str) -> StringList {
    StringList { max_strings, max_bytes, empty, or_one: false }
}

impl StringList {
    /// Also accepts a single string without an array.
    pub(crate) const fn or_one(self) -> Self {
        Self { or_one: true, ..self }
    }

    fn check(&self, strings: &[String], at: &Location) -> Result<(), FieldError> {
        let wrong =
            strings.iter().enumerate().find(|(_, text)| text.is_empty() || text.len() > self.max_bytes);
        let Some((index, text)) = wrong else { return Ok(()) };
        Err(at.invalid(match text.len() {
            0 => format!("string {index} is empty; {}", self.empty),
            bytes => format!("string {index} has {bytes} bytes, at most {}", self.max_bytes),
        }))
    }
}

impl FieldType for StringList {
    type Value = Vec<String>;
    const JSON: JsonType = JsonType::Any;

    fn read(&self, value: Value, at: &Location) -> Result<Vec<String>, FieldError> {
        let strings = match value {
            Value::String(text) if self.or_one => vec![text],
            Value::Array(strings) if strings.len() > self.max_strings => {
                return Err(at.invalid(format!("{} strings, at most {}", strings.len(), self.max_strings)));
            }
            value @ Value::Array(_) => array(string()).read(value, at)?,
            other if self.or_one => return Err(at.wrong_type("a string or an array of strings", &other)),
            other => return Err(at.wrong_type("an array of strings", &other)),
        };
        self.check(&strings, at)?;
        Ok(strings)
    }

    fn schema(&self, schemas: &mut Schemas) -> Value {
        let text = || string().bytes(1..=usize::MAX);
        let list = array(text()).items(0..=self.max_strings).schema(schemas);
        if self.or_one { json!({ "oneOf": [text().schema(schemas), list] }) } else { list }
    }
}
