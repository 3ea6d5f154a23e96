//! Python's `str()` and `repr()` of values.
//!
//! minijinja prints most values as Python does, but not floats (`1e+16`), views of dictionaries, ranges and characters that
//! cannot be printed, and a template that prints an argument of a tool call must print what the model was trained on.

use std::fmt::Write;

use minijinja::{
    Error, State, Value,
    value::{ObjectRepr, ValueKind},
};

use super::objects::{DictView, Generator, Group, Range};

/// Maximum nesting of containers that are printed; the JSON parser allows 128 levels.
pub(super) const MAX_DEPTH: usize = 150;

/// Bytes after which printing stops: a short list that contains itself several times may print as petabytes. A rendering
/// does not have the fuel for this many bytes, so truncated text is never returned.
const MAX_LENGTH: usize = 24 << 20;

/// Charges fuel for the text of a value.
///
/// # Errors
/// No fuel is left.
pub(super) fn charge_text(state: &State<'_, '_>, value: &Value, text: &str) -> Result<(), Error> {
    // As minijinja charges: walking a container is slower than copying a string.
    let bytes_per_step = if value.as_object().is_some() { 4 } else { 64 };
    state.consume_fuel((text.len() / bytes_per_step) as u64)
}

/// `str(value)`.
pub(super) fn to_text(value: &Value) -> String {
    match value.as_str() {
        Some(text) if value.kind() == ValueKind::String => text.to_owned(),
        _ if value.is_undefined() => String::new(),
        _ => repr(value),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> String {
    let mut text = String::new();
    push(&mut text, value, 0);
    text
}

fn push(text: &mut String, value: &Value, depth: usize) {
    match value.kind() {
        ValueKind::Undefined => text.push_str("Undefined"),
        ValueKind::None => text.push_str("None"),
        ValueKind::String => push_string(text, value.as_str().unwrap_or_default()),
        ValueKind::Number => match as_float(value) {
            Some(number) => text.push_str(&float(number)),
            None => text.push_str(&value.to_string()),
        },
        ValueKind::Bytes => push_bytes(text, value.as_bytes().unwrap_or_default()),
        _ if depth > MAX_DEPTH || text.len() > MAX_LENGTH => text.push_str("..."),
        _ => push_object(text, value, depth),
    }
}

fn push_object(text: &mut String, value: &Value, depth: usize) {
    let Some(object) = value.as_object() else {
        text.push_str(&value.to_string());
        return;
    };
    if let Some(range) = value.downcast_object_ref::<Range>() {
        text.push_str(&range.to_string());
    } else if let Some(view) = value.downcast_object_ref::<DictView>() {
        text.push_str(view.name());
        push_items(text, view.items(), ["([", "])"], depth);
    } else if value.downcast_object_ref::<Generator>().is_some() {
        text.push_str("<generator object>");
    } else if let Some(group) = value.downcast_object_ref::<Group>() {
        push_items(text, group.parts().into_iter(), ["(", ")"], depth);
    } else if is_builtin(value, "Loop") {
        let [index, length] = ["index", "length"].map(|name| value.get_attr(name).unwrap_or_default());
        text.push_str(&format!("<LoopContext {index}/{length}>"));
    } else if value.is_tuple() {
        let items = object.try_iter().into_iter().flatten();
        let close = if object.enumerator_len() == Some(1) { ",)" } else { ")" };
        push_items(text, items, ["(", close], depth);
    } else {
        match object.repr() {
            ObjectRepr::Map => push_map(text, value, depth),
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                push_items(text, object.try_iter().into_iter().flatten(), ["[", "]"], depth);
            }
            _ => text.push_str(&value.to_string()),
        }
    }
}

fn push_items(text: &mut String, items: impl Iterator<Item = Value>, brackets: [&str; 2], depth: usize) {
    text.push_str(brackets[0]);
    for (place, item) in items.enumerate() {
        if text.len() > MAX_LENGTH {
            break;
        }
        if place > 0 {
            text.push_str(", ");
        }
        push(text, &item, depth + 1);
    }
    text.push_str(brackets[1]);
}

fn push_map(text: &mut String, map: &Value, depth: usize) {
    // The only map that prints in another way is a namespace, which has a type that minijinja keeps to itself.
    let is_namespace = is_builtin(map, "Namespace");
    text.push_str(if is_namespace { "<Namespace {" } else { "{" });
    let pairs = map.as_object().and_then(|object| object.try_iter_pairs());
    for (place, (key, value)) in pairs.into_iter().flatten().enumerate() {
        if text.len() > MAX_LENGTH {
            break;
        }
        if place > 0 {
            text.push_str(", ");
        }
        push(text, &key, depth + 1);
        text.push_str(": ");
        push(text, &value, depth + 1);
    }
    text.push_str(if is_namespace { "}>" } else { "}" });
}

/// The value, if it is a number and not an integer.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        f64::try_from(value.clone()).ok()
    } else {
        None
    }
}

/// A float with the fewest digits that name it, and with an exponent where Python writes one.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn push_string(text: &mut String, string: &str) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for c in string.chars() {
        match c {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            c if c == quote => text.extend(['\\', c]),
            c if is_printable(c) => text.push(c),
            c => push_escape(text, c),
        }
    }
    text.push(quote);
}

fn push_escape(text: &mut String, c: char) {
    let code = u32::from(c);
    let written = match code {
        0..=0xff => write!(text, "\\x{code:02x}"),
        0x100..=0xffff => write!(text, "\\u{code:04x}"),
        _ => write!(text, "\\U{code:08x}"),
    };
    debug_assert!(written.is_ok(), "a string takes everything");
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    text.push_str("b'");
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'\\' | b'\'' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => push_escape(text, char::from(byte)),
        }
    }
    text.push('\'');
}

/// `str.isprintable` of one character.
pub(super) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // The standard library keeps the same table for escaping, where combining marks are safe behind another character.
    let mut behind_another = String::from("a");
    behind_another.push(c);
    behind_another.escape_debug().nth(1) == Some(c)
}

/// `ascii(text)`: the text with an escape for everything outside ASCII.
pub(super) fn escape_non_ascii(string: &str) -> String {
    let mut text = String::new();
    for c in string.chars() {
        if c.is_ascii() { text.push(c) } else { push_escape(&mut text, c) }
    }
    text
}

/// Python's name of the type, for messages.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Map => "dict",
        _ if value.is_tuple() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Iterable if value.downcast_object_ref::<Generator>().is_some() => "generator",
        ValueKind::Iterable if value.downcast_object_ref::<DictView>().is_some() => "dict view",
        ValueKind::Iterable if value.downcast_object_ref::<Range>().is_some() => "range",
        ValueKind::Iterable => "list",
        _ => "object",
    }
}

/// Whether the value is an object of minijinja's that has no public type: a namespace or a macro.
pub(super) fn is_builtin(value: &Value, type_name: &str) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with(type_name))
}
