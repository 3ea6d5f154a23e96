//! Grammars in Lark's syntax of answers with calls.
//!
//! A grammar matches text. Special tokens have none, so it asks for the same characters as ordinary tokens; the parser reads
//! both.

use std::fmt::Write;

use serde_json::Value;

use super::{
    format::{Calls, Syntax, TagSyntax, ToolFormat},
    literal::quoted,
};

/// Most calls of one answer that must be calls. Small models repeat themselves until their tokens are used up.
const MAX_CALLS: usize = 32;

impl ToolFormat {
    /// A grammar of answers with these calls. Each tool has a name and a JSON schema for its arguments; `json` makes a schema
    /// fit for the grammar.
    pub fn grammar<'a>(
        &self,
        calls: Calls,
        tools: impl Iterator<Item = (&'a str, &'a Value)>,
        json: fn(Value) -> Value,
    ) -> String {
        let mut rules = Rules { text: String::new(), json };
        let mut names = Vec::new();
        for (place, (name, schema)) in tools.enumerate() {
            let rule = format!("call_{place}");
            self.call(&mut rules, &rule, name, schema);
            names.push(rule);
        }
        format!("{}\ncall: {}\n{}", self.start(calls), names.join(" | "), rules.text)
    }

    /// The start rule, and the rules of text around calls.
    fn start(&self, calls: Calls) -> String {
        let written = self.written;
        let (next, last) = (literal(written.next), literal(written.last));
        let more =
            if calls.single { String::new() } else { format!(" ({next} call){{0,{}}}", MAX_CALLS - 1) };
        if calls.required {
            let first = literal(written.first.strip_prefix(written.prompt).unwrap_or(written.first));
            return format!("start: {first} call{more} {last}");
        }
        let marker = escape(self.marker);
        if let Some(bare) = self.bare {
            let (first, bare) = (literal(written.first), escape(&bare.to_string()));
            return format!(
                "start: {first} call{more} {last} | TEXT?\n\
                 TEXT: /\\s*[^{bare}\\s](?s:.*)/ & ~/(?s:.*){marker}(?s:.*)/"
            );
        }
        let at = written.first.find(self.marker).map_or(0, |at| at + self.marker.len());
        let first = literal(&written.first[at..]);
        let text = format!(
            "lead[lazy]: /(?s:.*){marker}/\n\
             TEXT: /(?s:.+)/ & ~/(?s:.*){marker}(?s:.*)/"
        );
        // Text may come between calls that have a marker each.
        if written.next.contains(self.marker) && !calls.single {
            format!("start: (lead {first} call {last})* TEXT?\n{text}")
        } else {
            format!("start: TEXT? | lead {first} call{more} {last}\n{text}")
        }
    }

    /// The rule of a call of one tool.
    fn call(&self, rules: &mut Rules, rule: &str, name: &str, schema: &Value) {
        match self.syntax {
            Syntax::Object { name: key, arguments } => {
                let begin = quoted(&format!("{{\"{key}\": \"{name}\", \"{arguments}\": "));
                rules.add(rule, &format!("{begin} {rule}_arguments \"}}\""));
                rules.json(&format!("{rule}_arguments"), schema.clone());
            }
            Syntax::Named(_) => {
                let begin = quoted(&format!("{name}{}", self.written.named));
                rules.add(rule, &format!("{begin} {rule}_arguments"));
                rules.json(&format!("{rule}_arguments"), schema.clone());
            }
            Syntax::Tagged(tags) => tagged(rules, rule, tags, (name, schema)),
            Syntax::Python => {
                let values = Values { key: |key| format!("{key}="), separator: ", ", text: None };
                let arguments = rules.arguments(rule, schema, &values);
                rules.add(rule, &format!("{} {arguments} \")\"", quoted(&format!("{name}("))));
            }
            Syntax::Gemma { quote } => {
                let values =
                    Values { key: |key| format!("{key}:"), separator: ",", text: Some((quote, quote)) };
                let arguments = rules.arguments(rule, schema, &values);
                rules.add(rule, &format!("{} {arguments} \"}}\"", quoted(&format!("{name}{{"))));
            }
        }
    }
}

/// Rules of a grammar.
struct Rules {
    text: String,
    json: fn(Value) -> Value,
}

/// How arguments are written where they are not one JSON object.
struct Values {
    key: fn(&str) -> String,
    separator: &'static str,
    /// Marks around texts; `None` for JSON strings.
    text: Option<(&'static str, &'static str)>,
}

impl Rules {
    fn add(&mut self, rule: &str, right: &str) {
        // Writing to a `String` does not fail.
        let _ = writeln!(self.text, "{rule}: {right}");
    }

    fn json(&mut self, rule: &str, schema: Value) {
        let schema = (self.json)(schema);
        self.add(rule, &format!("%json {schema}"));
    }

    /// The arguments in the order of the schema, with separators.
    ///
    /// A separator precedes every argument but the first, and which one is first depends on those that are left out. So the
    /// rule of each place is: this argument and those after it, or those after it.
    fn arguments(&mut self, rule: &str, schema: &Value, values: &Values) -> String {
        let properties = properties(schema);
        let separator = literal(values.separator);
        for (place, property) in properties.iter().enumerate().rev() {
            let value = format!("{rule}_value_{place}");
            self.value(&value, property, values.text);
            let pair = format!("{} {value}", quoted(&(values.key)(property.key)));
            let is_last = place + 1 == properties.len();
            let optional = |text: String| if property.is_required { text } else { format!("({text})?") };
            let rest = if is_last { String::new() } else { format!(" {rule}_more_{}", place + 1) };
            self.add(
                &format!("{rule}_more_{place}"),
                &or_empty(&format!("{}{rest}", optional(format!("{separator} {pair}")))),
            );
            let skipped = match (property.is_required, is_last) {
                (true, _) => String::new(),
                (false, true) => " | \"\"".into(),
                (false, false) => format!(" | {rule}_first_{}", place + 1),
            };
            self.add(&format!("{rule}_first_{place}"), &format!("{pair}{rest}{skipped}"));
        }
        if properties.is_empty() { String::new() } else { format!("{rule}_first_0") }
    }

    /// The rule of a value.
    fn value(&mut self, rule: &str, property: &Property<'_>, marks: Option<(&str, &str)>) {
        match (property.text(), marks) {
            (Some(text), Some((before, after))) => self.text_value(rule, &text, (before, after)),
            _ => self.json(rule, property.schema_with_definitions()),
        }
    }

    /// A text between marks.
    fn text_value(&mut self, rule: &str, text: &TextValue, (before, after): (&str, &str)) {
        let (before, end) = (literal(before), literal(after));
        match text {
            TextValue::Words(words) => {
                let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
                self.add(rule, &format!("{before} ({}) {end}", words.join(" | ")));
            }
            TextValue::Any { min, max } => {
                let max = max.map_or_else(String::new, |max| max.to_string());
                let after = escape(after);
                // The lexer does not go back, so the text and the mark after it are one token, which ends at the first mark.
                self.add(rule, &format!("{before} {rule}_text"));
                self.text += &format!(
                    "{rule}_text[lazy]: /(?s:.{{{min},{max}}}){after}/ & ~/(?s:.*){after}(?s:.+)/\n"
                );
            }
        }
    }
}

/// A right side of a rule that may be empty.
fn or_empty(right: &str) -> String {
    if right.trim().is_empty() { "\"\"".into() } else { right.to_owned() }
}

/// The rule of a call in tags.
fn tagged(rules: &mut Rules, rule: &str, tags: TagSyntax, (name, schema): (&str, &Value)) {
    let line = if tags.value_in_lines || !tags.name.1.is_empty() { "\n" } else { "" };
    let inner = if tags.value_in_lines { "\n" } else { "" };
    let mut right = quoted(&format!("{}{name}{}{line}", tags.name.0, tags.name.1));
    for (place, property) in properties(schema).iter().enumerate() {
        let value = format!("{rule}_value_{place}");
        let key = quoted(&format!("{}{}{}", tags.key.0, property.key, tags.key.1));
        let (before, after) = (format!("{}{inner}", tags.value.0), format!("{inner}{}", tags.value.1));
        match property.text() {
            Some(text) => rules.text_value(&value, &text, (&before, &after)),
            None => {
                rules.json(&format!("{value}_json"), property.schema_with_definitions());
                rules.add(&value, &format!("{} {value}_json {}", literal(&before), literal(&after)));
            }
        }
        let pair = format!("{key} {value} {}", literal(line));
        right += &if property.is_required { format!(" {pair}") } else { format!(" ({pair})?") };
    }
    rules.add(rule, &format!("{right} {}", quoted(tags.end)));
}

/// A property of an object.
struct Property<'a> {
    root: &'a Value,
    key: &'a str,
    schema: &'a Value,
    is_required: bool,
}

/// A property that is a text.
enum TextValue {
    /// One of these.
    Words(Vec<String>),
    /// Any text with a number of characters in this range.
    Any { min: u64, max: Option<u64> },
}

/// The properties of a schema, in its order.
fn properties(schema: &Value) -> Vec<Property<'_>> {
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |key: &str| required.is_some_and(|names| names.iter().any(|name| name == key));
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    properties
        .map(|(key, value)| Property { root: schema, key, schema: value, is_required: is_required(key) })
        .collect()
}

impl Property<'_> {
    /// The text that the property is; `None` for other types.
    fn text(&self) -> Option<TextValue> {
        let words = match (self.schema.get("enum"), self.schema.get("const")) {
            (Some(Value::Array(values)), _) => Some(values.iter().collect::<Vec<_>>()),
            (_, Some(value)) => Some(vec![value]),
            _ => None,
        };
        if let Some(words) = words {
            let words: Option<Vec<_>> =
                words.into_iter().map(|word| word.as_str().map(str::to_owned)).collect();
            return words.map(TextValue::Words);
        }
        let count = |keyword: &str| self.schema.get(keyword).and_then(Value::as_u64);
        let is_text = self.schema.get("type").is_some_and(|kind| kind == "string");
        is_text.then(|| TextValue::Any { min: count("minLength").unwrap_or(0), max: count("maxLength") })
    }

    /// Its schema, with the definitions that it may refer to.
    fn schema_with_definitions(&self) -> Value {
        let mut schema = self.schema.clone();
        for keyword in ["$defs", "definitions"] {
            if let (Some(definitions), Value::Object(object)) = (self.root.get(keyword), &mut schema) {
                object.entry(keyword).or_insert_with(|| definitions.clone());
            }
        }
        schema
    }
}

/// A literal of a grammar; nothing for an empty text.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { quoted(text) }
}

/// A text as a regular expression between slashes.
fn escape(text: &str) -> String {
    fancy_regex::escape(text).replace('/', "\\/").replace('\n', "\\n")
}
