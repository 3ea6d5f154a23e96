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
    kind: Kind,
    /// What was called.
    pub function: CalledFunction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
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
        Self { id, kind: Kind::Function, function: CalledFunction { name: name.into(), arguments } }
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
