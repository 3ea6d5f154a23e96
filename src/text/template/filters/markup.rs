//! Filters for HTML and URLs.

use minijinja::{Environment, Error, State, Value, value::ValueKind};

use super::{
    super::{arguments::Arguments, call_arguments::refuse, register::add_filter, repr::to_text},
    values::{items_of, text_of},
};

/// Adds the filters of this module.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_filter(environment, "escape", escape);
    add_filter(environment, "e", escape);
    add_filter(environment, "forceescape", |_, a| Ok(escaped(&text_of(&a[0]))));
    add_filter(environment, "safe", |_, a| Ok(Value::from_safe_string(text_of(&a[0]))));
    add_filter(environment, "striptags", strip_tags);
    add_filter(environment, "urlencode", url_encode);
    add_filter(environment, "xmlattr", xml_attributes);
}

fn escape(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    Ok(if given[0].is_safe() { given[0].clone() } else { escaped(&text_of(&given[0])) })
}

fn escaped(text: &str) -> Value {
    Value::from_safe_string(escape_text(text))
}

/// As `markupsafe` does it.
pub(in super::super) fn escape_text(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn strip_tags(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let text = without(&text_of(&given[0]), "<!--", "-->");
    let text = without(&text, "<", ">");
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    Ok(Value::from(unescape(&text)))
}

/// The text without the parts between two marks.
fn without(text: &str, open: &str, close: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once(open) {
        let Some((_, after)) = inside.split_once(close) else { break };
        kept.push_str(before);
        rest = after;
    }
    kept + rest
}

fn unescape(text: &str) -> String {
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", "\u{a0}"),
        ("&amp;", "&"),
    ];
    entities.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}

fn url_encode(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let value = &given[0];
    let is_text = value.kind() == ValueKind::String || value.try_iter().is_err() || value.is_none();
    if is_text {
        return Ok(Value::from(quoted(&to_text(value), Quoting::Path)));
    }
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten().collect()
        }
        _ => items_of(value)?
            .iter()
            .map(|pair| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)))
            .collect::<Result<_, Error>>()?,
    };
    let part = |value: &Value| quoted(&to_text(value), Quoting::Query);
    let parts: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", part(key), part(value))).collect();
    Ok(Value::from(parts.join("&")))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    /// Slashes stay.
    Path,
    /// Spaces are plus signs.
    Query,
}

fn quoted(text: &str, quoting: Quoting) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                quoted.push(char::from(byte))
            }
            b'/' if quoting == Quoting::Path => quoted.push('/'),
            b' ' if quoting == Quoting::Query => quoted.push('+'),
            _ => quoted.push_str(&format!("%{byte:02X}")),
        }
    }
    quoted
}

fn xml_attributes(_: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::bind("xmlattr", &["d", "autospace"], 1, given)?;
    let map = arguments.value(0);
    let pairs = map.as_object().and_then(|object| object.try_iter_pairs());
    let mut attributes = Vec::new();
    for (key, value) in
        pairs.into_iter().flatten().filter(|(_, value)| !value.is_none() && !value.is_undefined())
    {
        let key = to_text(&key);
        if key.contains([' ', '\t', '\n', '/', '>', '=']) {
            return Err(refuse(format!("xmlattr: invalid character in attribute name {key:?}")));
        }
        attributes.push(format!("{}=\"{}\"", escape_text(&key), escape_text(&to_text(&value))));
    }
    let spaced = arguments.get(1).is_none_or(Value::is_true) && !attributes.is_empty();
    Ok(Value::from((if spaced { " " } else { "" }).to_owned() + &attributes.join(" ")))
}
