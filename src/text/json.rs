//! The `tojson` filter of chat templates, as `transformers` defines it: Python's `json.dumps`, no HTML escaping.

use std::io;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use super::tool_call::WrittenArguments;

/// Writes `value` as JSON, with `json.dumps`' arguments `indent`, `ensure_ascii`, `separators` and `sort_keys`.
pub(super) fn tojson(value: Value, arguments: Kwargs) -> Result<Value, Error> {
    let mut written = Vec::new();
    let mut value = with_places(&value, &mut written)?;
    let style = Style::from_arguments(&arguments)?;
    if arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        value.sort_all_objects();
    }
    arguments.assert_all_used()?;
    let mut json = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut json, style)).map_err(not_json)?;
    let mut json = String::from_utf8(json).map_err(not_json)?;
    for (place, text) in written {
        json = json.replacen(&format!("\"{place}\""), &text, 1);
    }
    Ok(Value::from_safe_string(json))
}

/// A value with a string of its own in the place of each text of arguments; which text belongs there.
fn with_places(value: &Value, written: &mut Vec<(String, String)>) -> Result<serde_json::Value, Error> {
    if let Some(text) = WrittenArguments::text_of(value) {
        let place = format!("{:032x}", rand::random::<u128>());
        written.push((place.clone(), text.to_owned()));
        return Ok(place.into());
    }
    match value.kind() {
        ValueKind::Map => {
            let pairs = value.try_iter()?.map(|key| {
                let item = with_places(&value.get_item(&key)?, written)?;
                Ok((key.to_string(), item))
            });
            pairs.collect::<Result<_, Error>>().map(serde_json::Value::Object)
        }
        ValueKind::Seq => value.try_iter()?.map(|item| with_places(&item, written)).collect(),
        _ => serde_json::to_value(value).map_err(not_json),
    }
}

fn not_json(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidOperation, "tojson: not JSON").with_source(error)
}

/// How `json.dumps` lays out.
struct Style {
    /// Spaces a level is indented by; without, everything is on one line.
    indent: Option<usize>,
    depth: usize,
    is_empty: bool,
    between_items: String,
    after_key: String,
    ensure_ascii: bool,
}

impl Style {
    fn from_arguments(arguments: &Kwargs) -> Result<Self, Error> {
        let indent = arguments.get::<Option<usize>>("indent")?;
        let between_items = if indent.is_some() { "," } else { ", " };
        let mut style = Self {
            indent,
            depth: 0,
            is_empty: false,
            between_items: between_items.to_owned(),
            after_key: ": ".to_owned(),
            ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        };
        if let Some(separators) = arguments.get::<Option<Vec<String>>>("separators")? {
            let [between_items, after_key] = <[String; 2]>::try_from(separators).map_err(|_| {
                Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")
            })?;
            (style.between_items, style.after_key) = (between_items, after_key);
        }
        Ok(style)
    }

    fn open<W: ?Sized + io::Write>(&mut self, to: &mut W, bracket: u8) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        to.write_all(&[bracket])
    }

    fn close<W: ?Sized + io::Write>(&mut self, to: &mut W, bracket: u8) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(to)?;
        }
        self.is_empty = false;
        to.write_all(&[bracket])
    }

    fn next<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.is_empty = false;
        if !first {
            to.write_all(self.between_items.as_bytes())?;
        }
        self.new_line(to)
    }

    fn new_line<W: ?Sized + io::Write>(&self, to: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(to, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Style {
    fn begin_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.open(to, b'[')
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.close(to, b']')
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.next(to, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.open(to, b'{')
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.close(to, b'}')
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.next(to, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(self.after_key.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, to: &mut W, text: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return to.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(ascii) if ascii.is_ascii() => to.write_all(&[ascii])?,
                _ => write!(to, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, to: &mut W, escape: CharEscape) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(to, escape)
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    use super::*;

    fn dumps(expression: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        environment.render_str(&format!("{{{{ {expression} }}}}"), context! {}).unwrap()
    }

    #[test]
    fn layout_is_that_of_json_dumps() {
        assert_eq!(dumps("{'b': [1, 2.0, true], 'a': {}} | tojson"), r#"{"b": [1, 2.0, true], "a": {}}"#);
        assert_eq!(dumps("{'b': 1, 'a': []} | tojson(sort_keys=true)"), r#"{"a": [], "b": 1}"#);
        assert_eq!(dumps("[1, {'a': 2}] | tojson(separators=[',', ':'])"), r#"[1,{"a":2}]"#);
        assert_eq!(dumps("[[], [1]] | tojson(indent=1)"), "[\n [],\n [\n  1\n ]\n]");
    }

    #[test]
    fn text_stays_as_it_is_unless_ascii_is_asked_for() {
        assert_eq!(dumps(r#"'"é</😀\n' | tojson"#), "\"\\\"é</😀\\n\"");
        assert_eq!(dumps("'é😀' | tojson(ensure_ascii=true)"), r#""\u00e9\ud83d\ude00""#);
    }
}
