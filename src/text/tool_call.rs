//! Calls of tools in a conversation, with their arguments as the model wrote them.
//!
//! Templates treat arguments as an object: some loop over its fields, most write it with `tojson`. A model also writes what
//! is not JSON (a raw line break in a string, `True`, half of an object where its tokens ran out), and JSON that is not
//! written as `tojson` writes it (`1.0` or `1e400`, escapes, a name that comes twice). If such a text were parsed and
//! written again, the prompt of the next turn would be refused, or differ from what the model wrote, and nothing that is
//! kept of the last turn would fit. So a text stays a text: `tojson` writes it as it is, and only what looks into it sees
//! an object.

use std::{fmt, sync::Arc};

use minijinja::value::{Enumerator, Object, ObjectRepr, Serde, Value, serializing_for_value};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Map;

/// A call that an assistant made, in the shape of OpenAI's chat completions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What its result refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type")]
    kind: ToolKind,
    /// The function that was called.
    pub function: CalledFunction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToolKind {
    Function,
}

/// The function of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalledFunction {
    /// The tool's name.
    pub name: String,
    /// With which arguments.
    pub arguments: Arguments,
}

/// Arguments of a call.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Arguments {
    /// As the model wrote them.
    Written(String),
    /// As a client made them.
    Object(Map<String, serde_json::Value>),
}

impl ToolCall {
    /// A call of the function `name`.
    pub fn new(id: Option<String>, name: impl Into<String>, arguments: Arguments) -> Self {
        Self { id, kind: ToolKind::Function, function: CalledFunction { name: name.into(), arguments } }
    }
}

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Object(object) => object.serialize(serializer),
            Self::Written(text) if serializing_for_value() => {
                Value::from_object(WrittenArguments::from(text.as_str())).serialize(serializer)
            }
            Self::Written(text) => serializer.serialize_str(text),
        }
    }
}

/// A text of arguments as a template sees it: an object where it is the text of one, else text.
#[derive(Debug)]
pub(super) struct WrittenArguments {
    text: String,
    object: Option<Value>,
}

impl From<&str> for WrittenArguments {
    fn from(text: &str) -> Self {
        let object: Option<Map<String, serde_json::Value>> = serde_json::from_str(text).ok();
        Self { text: text.to_owned(), object: object.map(|object| Value::from(Serde(object))) }
    }
}

impl WrittenArguments {
    /// The text of `value`, if it is such arguments; `tojson` writes it as it is.
    pub(super) fn text_of(value: &Value) -> Option<&str> {
        value.downcast_object_ref::<Self>().map(|written| written.text.as_str())
    }

    /// Whether `value` is a string to a template.
    pub(super) fn is_text(value: &Value) -> bool {
        value.downcast_object_ref::<Self>().is_some_and(|written| written.object.is_none())
    }
}

impl Object for WrittenArguments {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        if self.object.is_some() { ObjectRepr::Map } else { ObjectRepr::Plain }
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let found = self.object.as_ref()?.get_item(key).ok()?;
        (!found.is_undefined()).then_some(found)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names = self.object.as_ref().and_then(|object| object.try_iter().ok());
        names.map_or(Enumerator::NonEnumerable, |names| Enumerator::Values(names.collect()))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Some(object) => write!(f, "{object}"),
            None => f.write_str(&self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> ToolCall {
        ToolCall::new(Some("1".into()), "now", Arguments::Written(text.into()))
    }

    fn seen(call: &ToolCall) -> Value {
        Value::from(Serde(call)).get_attr("function").unwrap().get_attr("arguments").unwrap()
    }

    #[test]
    fn arguments_are_an_object_to_a_template_and_keep_their_text() {
        let text = r#"{"b":1.0, "a": "\u0061", "b": 2}"#;
        let arguments = seen(&written(text));
        assert_eq!(WrittenArguments::text_of(&arguments), Some(text));
        assert_eq!(arguments.get_attr("a").unwrap().as_str(), Some("a"));
        assert_eq!(arguments.get_attr("b").unwrap().to_string(), "2", "the last of two, as in Python");
        assert_eq!(arguments.try_iter().unwrap().count(), 2);
        assert!(!WrittenArguments::is_text(&arguments) && arguments.get_attr("c").unwrap().is_undefined());
    }

    #[test]
    fn arguments_that_are_no_object_are_a_string_to_a_template() {
        for text in [r#"{"a": True}"#, r#"{"a": 1"#, "[1]", "{\"a\": \"b\nc\"}", r#"{"a": 1e400}"#] {
            let arguments = seen(&written(text));
            assert_eq!(WrittenArguments::text_of(&arguments), Some(text));
            assert!(WrittenArguments::is_text(&arguments) && arguments.to_string() == text);
        }
        let object = Arguments::Object(Map::new());
        assert_eq!(WrittenArguments::text_of(&seen(&ToolCall::new(None, "now", object))), None);
    }

    #[test]
    fn calls_cross_a_pipe_as_they_were_written() {
        let object = serde_json::json!({ "b": 1.0, "a": {} }).as_object().cloned().unwrap();
        for call in
            [written("{\"a\": 1e400,}"), written("{}"), ToolCall::new(None, "a", Arguments::Object(object))]
        {
            let json = serde_json::to_string(&call).unwrap();
            assert_eq!(serde_json::from_str::<ToolCall>(&json).unwrap(), call, "{json}");
        }
    }
}
