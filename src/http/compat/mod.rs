//! Fields of other servers' APIs that eka does not have, and the values at which that makes no difference.
//!
//! Clients send every field of the library that they are written for, mostly at the value that turns it off. Such a request
//! is answered as if the field were absent. At any other value it is refused, because its answer would not be the one that
//! was asked for. Each line of the tables is a name, what is off, and what to send instead. `null` is off everywhere.
//!
//! The names are those of OpenAI, vLLM, llama-server, SGLang, TGI and Ollama, and the samplers of text-generation-webui and
//! Aphrodite that clients send to all of these.

mod openai;
mod peers;

use serde_json::Value;

pub(super) use self::{
    openai::{
        CALL, CALLED_FUNCTION, CHAT, COMPLETIONS, ITEM, MESSAGE, OPENAI, PART, RESPONSES, SINGLE,
        STREAM_OPTIONS, TEMPLATE, TEXT_OPTIONS, TOKENIZE, TOOL, WITHOUT_TOOLS,
    },
    peers::PEERS,
};

/// A field that eka does not have.
#[derive(Debug)]
pub(in crate::http) struct OtherField {
    pub(in crate::http) name: &'static str,
    pub(in crate::http) off: Off,
    /// What has the same effect here; a clause to end an error with, or nothing.
    hint: &'static str,
}

/// The values at which a field changes nothing in an answer.
#[derive(Debug)]
pub(in crate::http) enum Off {
    /// All of this kind: labels, hints for a cache, settings of what is off itself.
    Any(Kind),
    /// These, as JSON; numbers are compared by value.
    Values(&'static [&'static str]),
    /// An object whose fields are all off.
    Object(&'static [OtherField]),
    /// An array of any of these strings.
    Items(&'static [&'static str]),
}

/// What JSON calls a value.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) enum Kind {
    Text,
    Number,
    Flag,
    List,
    Object,
    Anything,
}

impl Kind {
    /// With its article, for an error.
    pub(in crate::http) const fn described(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Number => "a number",
            Self::Flag => "a boolean",
            Self::List => "an array",
            Self::Object => "an object",
            Self::Anything => "any value",
        }
    }

    /// As JSON schema calls it; `None` for no restriction.
    pub(in crate::http) const fn schema(self) -> Option<&'static str> {
        match self {
            Self::Text => Some("string"),
            Self::Number => Some("number"),
            Self::Flag => Some("boolean"),
            Self::List => Some("array"),
            Self::Object => Some("object"),
            Self::Anything => None,
        }
    }

    fn is_of(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_number(),
            Self::Flag => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
            Self::Anything => true,
        }
    }
}

impl Off {
    /// Whether this value changes nothing.
    pub(in crate::http) fn allows(&self, value: &Value) -> bool {
        match self {
            Self::Any(kind) => kind.is_of(value),
            Self::Values(values) => values.iter().any(|off| is_same(off, value)),
            Self::Object(fields) => value.as_object().is_some_and(|object| {
                object.iter().all(|(name, value)| value.is_null() || find(fields, name).allows(value))
            }),
            Self::Items(items) => value.as_array().is_some_and(|array| {
                array.iter().all(|item| item.as_str().is_some_and(|item| items.contains(&item)))
            }),
        }
    }
}

fn find<'a>(fields: &'a [OtherField], name: &str) -> &'a Off {
    const NONE: &Off = &Off::Values(&[]);
    fields.iter().find(|field| field.name == name).map_or(NONE, |field| &field.off)
}

/// Whether a value is what `off` is; fields of it that are null are absent.
fn is_same(off: &str, value: &Value) -> bool {
    let off: Value = serde_json::from_str(off).unwrap_or_default();
    if let (Some(off), Some(value)) = (off.as_object(), value.as_object()) {
        return off.iter().eq(value.iter().filter(|(_, value)| !value.is_null()));
    }
    off == *value || (off.is_number() && off.as_f64() == value.as_f64())
}

impl OtherField {
    /// A field that changes nothing at `values`, which are JSON.
    pub(in crate::http) const fn off(
        name: &'static str,
        values: &'static [&'static str],
        hint: &'static str,
    ) -> Self {
        Self { name, off: Off::Values(values), hint }
    }

    /// What else can be sent, as the end of an error that says to leave the field out.
    pub(in crate::http) fn instead(&self) -> String {
        let values = match self.off {
            Off::Values(values) if !values.is_empty() => format!(" or send {}", values.join(" or ")),
            Off::Object(_) => " or send {}".into(),
            Off::Items(_) => " or send []".into(),
            Off::Any(_) | Off::Values(_) => String::new(),
        };
        values + self.hint
    }
}

const fn off(name: &'static str, values: &'static [&'static str], hint: &'static str) -> OtherField {
    OtherField::off(name, values, hint)
}

/// A field that no value but null turns off.
const fn unsupported(name: &'static str, hint: &'static str) -> OtherField {
    OtherField::off(name, &[], hint)
}

/// A field that never changes an answer.
const fn inert(name: &'static str, kind: Kind) -> OtherField {
    OtherField { name, off: Off::Any(kind), hint: "" }
}

/// An object that changes nothing where all of its fields are off.
const fn object(name: &'static str, fields: &'static [OtherField]) -> OtherField {
    OtherField { name, off: Off::Object(fields), hint: "" }
}

/// An array that changes nothing where all of its strings are among these.
const fn array(name: &'static str, items: &'static [&'static str]) -> OtherField {
    OtherField { name, off: Off::Items(items), hint: "" }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::{openai::NO_REASONING, *};

    #[test]
    fn every_off_value_is_json_and_no_name_stands_twice_in_a_table() {
        let tables = [
            OPENAI,
            COMPLETIONS,
            CHAT,
            RESPONSES,
            WITHOUT_TOOLS,
            SINGLE,
            MESSAGE,
            PART,
            CALL,
            CALLED_FUNCTION,
            ITEM,
            TOOL,
            STREAM_OPTIONS,
            TEXT_OPTIONS,
            TOKENIZE,
            TEMPLATE,
            PEERS,
        ];
        for table in tables {
            let names: BTreeSet<_> = table.iter().map(|field| field.name).collect();
            assert_eq!(names.len(), table.len());
            for field in table {
                let Off::Values(values) = field.off else { continue };
                for value in values {
                    let value: Value = serde_json::from_str(value).unwrap();
                    assert!(field.off.allows(&value), "{}", field.name);
                }
            }
        }
    }

    #[test]
    fn an_object_whose_fields_are_null_is_empty() {
        let empty = Off::Values(&["{}"]);
        assert!(empty.allows(&json!({ "enable_thinking": null })) && empty.allows(&json!({})));
        assert!(!empty.allows(&json!({ "enable_thinking": false })));
    }

    #[test]
    fn an_object_is_off_where_all_of_its_fields_are() {
        let reasoning = Off::Object(NO_REASONING);
        for off in [json!({}), json!({ "effort": null, "summary": "auto" }), json!({ "effort": "none" })] {
            assert!(reasoning.allows(&off), "{off}");
        }
        for on in [json!({ "effort": "high" }), json!({ "budget": 1 }), json!("none")] {
            assert!(!reasoning.allows(&on), "{on}");
        }
    }
}
