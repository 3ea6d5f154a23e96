//! The `tojson` filter of chat templates, as `transformers` defines it: Python's `json.dumps`, no HTML escaping.

use minijinja::{
    Error, State, Value,
    value::{ObjectRepr, ValueKind},
};

use super::{
    arguments::Arguments,
    call_arguments::refuse,
    methods::charge,
    objects::{DictView, Generator, Range},
    repr::{MAX_DEPTH, as_float, float, is_builtin, to_text, type_name},
};
use crate::text::tool_call::WrittenArguments;

/// Maximum indentation per level, in characters.
const MAX_INDENT: usize = 255;

/// Writes a value as JSON, with the arguments of `json.dumps`: `ensure_ascii`, `indent`, `separators` and `sort_keys`.
pub(super) fn tojson(state: &mut State<'_, '_>, given: &[Value]) -> Result<Value, Error> {
    let parameters = ["x", "ensure_ascii", "indent", "separators", "sort_keys"];
    let arguments = Arguments::bind("tojson", &parameters, 1, given)?;
    let style = Style::from_arguments(&arguments)?;
    let mut json = String::new();
    style.push(state, &mut json, &arguments.value(0), 0)?;
    charge(state, json.len())?;
    Ok(Value::from(json))
}

/// The layout options of `json.dumps`.
struct Style {
    /// Indentation of a level; without it, everything is on one line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
    ensure_ascii: bool,
    sort_keys: bool,
    /// Whether arguments of a tool call are written as the model wrote them: only where the template asks for no layout of
    /// its own.
    keeps_written: bool,
}

impl Style {
    fn from_arguments(arguments: &Arguments) -> Result<Self, Error> {
        let indent = match arguments.get(2) {
            None => None,
            Some(indent) if indent.is_none() => None,
            Some(indent) if indent.kind() == ValueKind::String => Some(to_text(indent)),
            Some(_) => {
                let width = usize::try_from(arguments.integer(2)?.unwrap_or_default()).unwrap_or_default();
                Some(" ".repeat(width.min(MAX_INDENT)))
            }
        };
        let separators = arguments.get(3).filter(|separators| !separators.is_none());
        let (ensure_ascii, sort_keys) = (arguments.flag(1), arguments.flag(4));
        let keeps_written = indent.is_none() && separators.is_none() && !ensure_ascii && !sort_keys;
        let (mut between_items, mut after_key) =
            (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
        if let Some(separators) = separators {
            let separators: Vec<Value> = separators.try_iter()?.collect();
            let [items, keys] = separators.as_slice() else {
                return Err(refuse("tojson: separators must be two strings"));
            };
            (between_items, after_key) = (to_text(items), to_text(keys));
        }
        Ok(Self { indent, between_items, after_key, ensure_ascii, sort_keys, keeps_written })
    }

    fn push(
        &self,
        state: &State<'_, '_>,
        json: &mut String,
        value: &Value,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse("tojson: the value is nested too deep"));
        }
        state.consume_fuel(1)?;
        if let Some(written) = WrittenArguments::text_of(value)
            && (self.keeps_written || WrittenArguments::is_text(value))
        {
            json.push_str(written);
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => json.push_str("null"),
            ValueKind::Bool => json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json.push_str(&number(value)),
            ValueKind::String => self.push_string(json, &to_text(value)),
            ValueKind::Map if !is_builtin(value, "Namespace") => {
                self.push_object(state, json, value, depth)?
            }
            _ if is_list(value) => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.push_all(json, &items, ['[', ']'], depth, |style, json, item| {
                    style.push(state, json, item, depth + 1)
                })?;
            }
            _ => return Err(refuse(format!("tojson: {} is not JSON serializable", type_name(value)))),
        }
        Ok(())
    }

    fn push_object(
        &self,
        state: &State<'_, '_>,
        json: &mut String,
        map: &Value,
        depth: usize,
    ) -> Result<(), Error> {
        let pairs = map.as_object().and_then(|object| object.try_iter_pairs());
        let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
        if self.sort_keys {
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.push_all(json, &pairs, ['{', '}'], depth, |style, json, (key, value)| {
            style.push_string(json, &key_text(key)?);
            json.push_str(&style.after_key);
            style.push(state, json, value, depth + 1)
        })
    }

    fn push_all<T>(
        &self,
        json: &mut String,
        items: &[T],
        brackets: [char; 2],
        depth: usize,
        push: impl Fn(&Self, &mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        json.push(brackets[0]);
        for (place, item) in items.iter().enumerate() {
            if place > 0 {
                json.push_str(&self.between_items);
            }
            self.push_line(json, depth + 1);
            push(self, json, item)?;
        }
        if !items.is_empty() {
            self.push_line(json, depth);
        }
        json.push(brackets[1]);
        Ok(())
    }

    fn push_line(&self, json: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            json.push('\n');
            json.push_str(&indent.repeat(depth));
        }
    }

    fn push_string(&self, json: &mut String, text: &str) {
        json.push('"');
        for c in text.chars() {
            match c {
                '"' => json.push_str("\\\""),
                '\\' => json.push_str("\\\\"),
                '\n' => json.push_str("\\n"),
                '\r' => json.push_str("\\r"),
                '\t' => json.push_str("\\t"),
                '\x08' => json.push_str("\\b"),
                '\x0c' => json.push_str("\\f"),
                c if c < ' ' || self.ensure_ascii && !c.is_ascii() => push_escape(json, c),
                c => json.push(c),
            }
        }
        json.push('"');
    }
}

fn push_escape(json: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        json.push_str(&format!("\\u{unit:04x}"));
    }
}

fn is_list(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let is_other = value.downcast_object_ref::<Range>().is_some()
        || value.downcast_object_ref::<DictView>().is_some()
        || value.downcast_object_ref::<Generator>().is_some();
    matches!(object.repr(), ObjectRepr::Seq | ObjectRepr::Iterable) && !is_other
}

fn number(value: &Value) -> String {
    match as_float(value) {
        Some(number) if number.is_nan() => "NaN".into(),
        Some(number) if number.is_infinite() => {
            if number > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        Some(number) => float(number),
        None => to_text(value),
    }
}

/// Keys are strings in JSON; Python writes numbers, booleans and None as such.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(to_text(key)),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(number(key)),
        _ => {
            Err(refuse(format!("tojson: keys must be str, int, float, bool or None, not {}", type_name(key))))
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Value, context};

    use crate::text::{template::environment, tool_call::WrittenArguments};

    fn dumps(expression: &str) -> String {
        let environment = environment::new().unwrap();
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
    fn arguments_of_a_call_keep_their_text_unless_the_template_asks_for_a_layout() {
        let environment = environment::new().unwrap();
        let render = |layout: &str, written: &str| {
            let call = WrittenArguments::from(written);
            let context = context! { call => Value::from_object(call) };
            environment.render_str(&format!("{{{{ call | tojson{layout} }}}}"), context).unwrap()
        };
        let written = r#"{"b":1, "a":"é"}"#;
        assert_eq!(render("", written), written);
        assert_eq!(render("(indent=2)", written), "{\n  \"b\": 1,\n  \"a\": \"é\"\n}");
        assert_eq!(render("(sort_keys=true)", written), r#"{"a": "é", "b": 1}"#);
        assert_eq!(render("(separators=[',', ':'])", written), r#"{"b":1,"a":"é"}"#);
        assert_eq!(render("(ensure_ascii=true)", written), r#"{"b": 1, "a": "\u00e9"}"#);
        // What is not an object has no layout.
        assert_eq!(render("(indent=2)", "{\"a\": tru"), "{\"a\": tru");
    }

    #[test]
    fn text_is_unchanged_unless_ascii_is_requested() {
        assert_eq!(dumps(r#"'"é</😀\n' | tojson"#), "\"\\\"é</😀\\n\"");
        assert_eq!(dumps("'é😀' | tojson(ensure_ascii=true)"), r#""\u00e9\ud83d\ude00""#);
    }
}
