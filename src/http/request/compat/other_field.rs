//! What a table of compatibility fields is made of.

use serde_json::Value;

/// A field that eka does not have.
#[derive(Debug)]
pub(crate) struct OtherField {
    pub(crate) name: &'static str,
    pub(crate) off: Off,
    /// What has the same effect here; a clause to end an error with, or nothing.
    hint: &'static str,
}

/// The values at which a field changes nothing in an answer.
#[derive(Debug)]
pub(crate) enum Off {
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
pub(crate) enum Kind {
    Text,
    Number,
    Flag,
    List,
    Object,
    Anything,
}

impl Kind {
    /// With its article, for an error.
    pub(crate) const fn described(self) -> &'static str {
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
    pub(crate) const fn schema(self) -> Option<&'static str> {
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
    pub(crate) fn allows(&self, value: &Value) -> bool {
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
    pub(crate) const fn off(name: &'static str, values: &'static [&'static str], hint: &'static str) -> Self {
        Self { name, off: Off::Values(values), hint }
    }

    /// What else can be sent, as the end of an error that says to leave the field out.
    pub(crate) fn instead(&self) -> String {
        let values = match self.off {
            Off::Values(values) if !values.is_empty() => format!(" or send {}", values.join(" or ")),
            Off::Object(_) => " or send {}".into(),
            Off::Items(_) => " or send []".into(),
            Off::Any(_) | Off::Values(_) => String::new(),
        };
        values + self.hint
    }
}

pub(super) const fn off(
    name: &'static str,
    values: &'static [&'static str],
    hint: &'static str,
) -> OtherField {
    OtherField::off(name, values, hint)
}

/// A field that no value but null turns off.
pub(super) const fn unsupported(name: &'static str, hint: &'static str) -> OtherField {
    OtherField::off(name, &[], hint)
}

/// A field that never changes an answer.
pub(super) const fn inert(name: &'static str, kind: Kind) -> OtherField {
    OtherField { name, off: Off::Any(kind), hint: "" }
}

/// An object that changes nothing where all of its fields are off.
pub(super) const fn object(name: &'static str, fields: &'static [OtherField]) -> OtherField {
    OtherField { name, off: Off::Object(fields), hint: "" }
}

/// An array that changes nothing where all of its strings are among these.
pub(super) const fn array(name: &'static str, items: &'static [&'static str]) -> OtherField {
    OtherField { name, off: Off::Items(items), hint: "" }
}
