//! Grammars in Lark's syntax of answers with calls.
//!
//! A grammar matches text. Special tokens have none, so it asks for the same characters as ordinary tokens; the parser reads
//! both.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    format::{Calls, Syntax, TagSyntax, ToolFormat},
    literal::quoted,
    schema_types::Texts,
};

/// Most calls of one answer that must be calls. Small models repeat themselves until their tokens are used up.
const MAX_CALLS: usize = 32;

/// How the compiler of grammars takes schemas.
#[derive(Clone, Copy, Debug)]
pub struct SchemaSyntax {
    /// A schema for use after `%json`.
    pub json: fn(Value) -> Value,
    /// A regular expression, to be used between slashes, of the whole texts in which a `pattern` is found.
    pub whole_match: fn(&str) -> String,
    /// The `pattern`s of a `format`; none for a format that is not enforced.
    pub patterns_of: fn(&str) -> Vec<String>,
}

impl ToolFormat {
    /// Whether each argument is written for itself, and not all of them as one JSON object.
    #[must_use]
    pub const fn has_separate_arguments(&self) -> bool {
        matches!(self.syntax, Syntax::Tagged(_) | Syntax::Python | Syntax::Gemma { .. })
    }

    /// A grammar of answers with these calls. Each tool has a name and a JSON schema for its arguments.
    pub fn grammar<'a>(
        &self,
        calls: Calls,
        tools: impl Iterator<Item = (&'a str, &'a Value)>,
        syntax: SchemaSyntax,
    ) -> String {
        let mut rules = Rules { text: String::new(), syntax };
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
    syntax: SchemaSyntax,
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
        let schema = (self.syntax.json)(schema);
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
        match (property.texts(), marks) {
            (Some(texts), Some((before, after))) => {
                // Null is a word without marks.
                let null = if texts.or_null { " | \"null\"" } else { "" };
                let texts = Texts { or_null: false, ..texts };
                self.text_value(&format!("{rule}_marked"), &texts, (before, after));
                self.add(rule, &format!("{rule}_marked{null}"));
            }
            _ => self.json(rule, property.schema_with_definitions()),
        }
    }

    /// A text between marks.
    ///
    /// The lexer does not go back, so the text and the mark after it are one token, which ends at the first mark.
    fn text_value(&mut self, rule: &str, texts: &Texts<'_>, (before, after): (&str, &str)) {
        let after = escape(after);
        let null = texts.or_null.then_some("null");
        let words = texts.words.iter().copied().chain(null).map(|word| format!("/{}{after}/", escape(word)));
        let schemas = texts.schemas.iter().map(|schema| self.whole_text(schema, &after));
        let any: Vec<_> = words.chain(schemas).collect();
        self.add(rule, &format!("{} {rule}_text", literal(before)));
        let one_mark = format!("~/(?s:.*){after}(?s:.+)/");
        self.text += &format!("{rule}_text[lazy]: ({}) & {one_mark}\n", any.join(" | "));
    }

    /// The regular expressions of a text and the mark after it.
    fn whole_text(&self, schema: &Value, after: &str) -> String {
        let all_of = schema.get("allOf").and_then(Value::as_array).into_iter().flatten();
        let parts: Vec<_> = std::iter::once(schema).chain(all_of).collect();
        let length =
            |keyword: &str| parts.iter().filter_map(|part| part.get(keyword)?.as_u64()).collect::<Vec<_>>();
        let min = length("minLength").into_iter().max().unwrap_or(0);
        let max = length("maxLength").into_iter().min().map_or_else(String::new, |max| max.to_string());
        let mut expressions = vec![format!("/(?s:.{{{min},{max}}}){after}/")];
        for part in parts {
            let keyword = |name: &str| part.get(name).and_then(Value::as_str);
            let of_format = keyword("format").map(self.syntax.patterns_of).unwrap_or_default();
            let patterns = keyword("pattern").map(str::to_owned).into_iter().chain(of_format);
            expressions.extend(
                patterns.map(|pattern| format!("/(?:{}){after}/", (self.syntax.whole_match)(&pattern))),
            );
        }
        format!("({})", expressions.join(" & "))
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
        match property.texts() {
            Some(texts) => rules.text_value(&value, &texts, (&before, &after)),
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

/// The properties of a schema, in its order.
fn properties<'a>(schema: &'a Value) -> Vec<Property<'a>> {
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: Vec<&str> = required.filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let property = |(key, value): (&'a String, &'a Value)| Property {
        root: schema,
        key,
        schema: value,
        is_required: required.contains(&key.as_str()),
    };
    let described = properties.into_iter().flatten().map(property);
    // A required name without a description may be anything.
    let others = required.iter().copied().filter(|key| properties.is_none_or(|all| !all.contains_key(*key)));
    let others = others.map(|key| Property { root: schema, key, schema: &Value::Null, is_required: true });
    described.chain(others).collect()
}

impl Property<'_> {
    /// The texts that it may be; `None` for other types.
    fn texts(&self) -> Option<Texts<'_>> {
        Texts::of(self.root, self.schema)
    }

    /// Its schema, with the definitions that it may refer to.
    fn schema_with_definitions(&self) -> Value {
        let mut schema = if self.schema.is_null() { json!({}) } else { self.schema.clone() };
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
