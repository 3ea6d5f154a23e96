//! What the tables of compatibility fields are made of.

use serde_json::{Map, Value, json};

use super::{
    json_schema::{JsonType, described, nullable, only_null_beside, with},
    location::Location,
};
use crate::http::field_error::FieldError;

/// Fields of another API that are accepted at the same values, because these change nothing.
#[derive(Debug)]
pub(crate) struct CompatField {
    pub(crate) names: &'static [&'static str],
    pub(crate) accepted: Accepted,
    /// What to send instead: a clause to end an error with, or empty.
    pub(crate) hint: &'static str,
}

/// The values at which a field changes nothing in an answer.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// All of a JSON type: labels, hints for a cache, settings of a feature that is off.
    Any(JsonType),
    /// These, as JSON; numbers are compared by value.
    Values(&'static [&'static str]),
    /// An object whose fields all have accepted values.
    Object(&'static [CompatField]),
    /// An array of any of these strings.
    Items(&'static [&'static str]),
}

impl Accepted {
    /// Whether this value changes nothing.
    pub(crate) fn allows(&self, value: &Value) -> bool {
        match self {
            Self::Any(json_type) => json_type.matches(value),
            Self::Values(values) => values.iter().any(|off| is_same(off, value)),
            Self::Object(fields) => value.as_object().is_some_and(|object| {
                let allows = |name: &str, value| {
                    CompatField::find(*fields, name).is_some_and(|field| field.accepted.allows(value))
                };
                object.iter().all(|(name, value)| value.is_null() || allows(name, value))
            }),
            Self::Items(items) => value.as_array().is_some_and(|array| {
                array.iter().all(|item| item.as_str().is_some_and(|item| items.contains(&item)))
            }),
        }
    }
}

/// Whether `value` equals `off`, which is JSON. Fields that are null count as absent.
pub(super) fn is_same(off: &str, value: &Value) -> bool {
    let off = parsed(off);
    if let (Some(off), Some(value)) = (off.as_object(), value.as_object()) {
        return off.iter().eq(value.iter().filter(|(_, value)| !value.is_null()));
    }
    off == *value || (off.is_number() && off.as_f64() == value.as_f64())
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_default()
}

/// The schema of these values.
fn one_of_values(values: Vec<Value>) -> Value {
    let Some(Value::Object(off)) = values.first() else { return json!({ "enum": values }) };
    // Further fields may be null, which `enum` would not allow.
    let mut schema = json!({ "type": "object" });
    for (name, value) in off {
        schema["properties"][name] = json!({ "const": value });
    }
    only_null_beside(with(
        schema,
        "required",
        (!off.is_empty()).then(|| off.keys().cloned().collect::<Vec<_>>()),
    ))
}

impl CompatField {
    /// The field `name` of a table.
    pub(super) fn find<'a>(fields: impl IntoIterator<Item = &'a Self>, name: &str) -> Option<&'a Self> {
        fields.into_iter().find(|field| field.names.contains(&name))
    }

    /// Checks that `value` is accepted.
    pub(super) fn check(&self, value: &Value, at: &Location) -> Result<(), FieldError> {
        match &self.accepted {
            accepted if accepted.allows(value) => Ok(()),
            Accepted::Any(json_type) => Err(at.wrong_type(json_type.described(), value)),
            _ => Err(FieldError::Unsupported { param: at.path().to_owned(), instead: self.instead() }),
        }
    }

    /// Which values are accepted and what to send instead, for an error that ends with "leave it out".
    fn instead(&self) -> String {
        let values = match self.accepted {
            Accepted::Values(values) if !values.is_empty() => format!(" or send {}", values.join(" or ")),
            Accepted::Object(_) => " or send {}".into(),
            Accepted::Items(_) => " or send []".into(),
            Accepted::Any(_) | Accepted::Values(_) => String::new(),
        };
        let separator = if self.hint.is_empty() { "" } else { "; " };
        [&values, separator, self.hint].concat()
    }

    /// Adds the descriptions of the fields, by the values that are accepted, to those of an object.
    pub(super) fn describe<'a>(
        fields: impl IntoIterator<Item = &'a Self>,
        properties: &mut Map<String, Value>,
    ) {
        for field in fields {
            let schema = match &field.accepted {
                Accepted::Any(json_type) => json_type.schema(),
                Accepted::Values(values) => one_of_values(values.iter().map(|value| parsed(value)).collect()),
                Accepted::Object(fields) => {
                    let mut inner = Map::new();
                    Self::describe(*fields, &mut inner);
                    only_null_beside(json!({ "type": "object", "properties": inner }))
                }
                Accepted::Items(items) => {
                    json!({ "type": "array", "items": { "type": "string", "enum": items } })
                }
            };
            let about = "Accepted; these values change nothing in an answer.";
            let schema = described(nullable(schema), about.into());
            for name in field.names {
                properties.entry(*name).or_insert_with(|| schema.clone());
            }
        }
    }
}

/// Declares tables of fields. Each line has names, the values that are accepted, and perhaps what to send instead:
///
/// ```text
/// compat_fields! {
///     /// In all routes.
///     pub(crate) PEERS {
///         "mirostat", "mirostat_mode": off(0);
///         "n_predict": off(-1), "use max_tokens";
///         "request_id": any(String);
///         "samplers": unsupported();
///     }
/// }
/// ```
///
/// `object(TABLE)` accepts an object whose fields are accepted by another table, `items("a", "b")` an array of these strings,
/// and `off_json` a value that is no Rust expression. `null` is always accepted.
macro_rules! compat_fields {
    (@accepted off($($value:expr),*)) => {
        $crate::http::request::schema::Accepted::Values(&[$(stringify!($value)),*])
    };
    (@accepted off_json($value:literal)) => { $crate::http::request::schema::Accepted::Values(&[$value]) };
    (@accepted unsupported()) => { $crate::http::request::schema::Accepted::Values(&[]) };
    (@accepted any($json_type:ident)) => {
        $crate::http::request::schema::Accepted::Any($crate::http::request::schema::JsonType::$json_type)
    };
    (@accepted object($table:ident)) => { $crate::http::request::schema::Accepted::Object($table) };
    (@accepted items($($item:literal),+)) => { $crate::http::request::schema::Accepted::Items(&[$($item),+]) };
    ($(
        $(#[doc = $about:literal])*
        $vis:vis $table:ident {
            $( $($name:literal),+: $kind:ident($($argument:tt)*) $(, $hint:literal)?; )*
        }
    )*) => { $(
        $(#[doc = $about])*
        $vis const $table: &[$crate::http::request::schema::CompatField] = &[$(
            $crate::http::request::schema::CompatField {
                names: &[$($name),+],
                accepted: $crate::http::request::schema::compat_fields!(@accepted $kind($($argument)*)),
                hint: concat!($($hint)?),
            },
        )*];
    )* };
}

pub(crate) use compat_fields;
