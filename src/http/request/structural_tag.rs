//! Structural tags, as vLLM and xgrammar describe them, converted to a grammar in Lark's syntax: text, and within it tags whose
//! content has a form.
//!
//! | format | |
//! |---|---|
//! | `triggered_tags` | any text; where it has a `trigger`, one of the `tags` that begin with it follows |
//! | `tags_with_separator` | tags one after the other |
//! | `tag` | `begin`, a content, and `end` (one of them, if it is a list) |
//! | `sequence`, `or` | one after the other; one of them |
//! | `json_schema`, `regex`, `const_string`, `any_text` | contents |
//!
//! The older form, `{"structures": [{"begin", "schema", "end"}], "triggers": […]}`, is `triggered_tags` with JSON in each tag.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::closed_objects::closed;
use crate::{constraint::SCHEMA_SYNTAX, job::Constraint};

/// The constraint of a structural tag.
///
/// # Errors
/// What is wrong, with its place.
pub(super) fn constraint(tag: Map<String, Value>) -> Result<Constraint, String> {
    let mut grammar = Grammar::default();
    let tag = Value::Object(tag);
    let start = match (&tag["format"], &tag["structures"]) {
        (Value::Null, Value::Array(structures)) => {
            grammar.triggered(&of_structures(structures, &tag["triggers"]), "structural_tag")?
        }
        (Value::Null, _) => return Err("has neither `format` nor `structures`".into()),
        (format, _) => grammar.format(format, "format", "")?,
    };
    Ok(Constraint::Lark(format!("start: {start}\n{}", grammar.rules)))
}

/// The older form in the newer one.
fn of_structures(structures: &[Value], triggers: &Value) -> Value {
    let tags = structures.iter().map(|structure| {
        let content = json!({ "type": "json_schema", "json_schema": structure["schema"] });
        json!({ "begin": structure["begin"], "content": content, "end": structure["end"] })
    });
    json!({ "triggers": triggers, "tags": tags.collect::<Vec<_>>() })
}

/// The rules of a grammar so far.
#[derive(Default)]
struct Grammar {
    rules: String,
    count: usize,
}

impl Grammar {
    /// Adds a rule; gives its name.
    fn rule(&mut self, kind: &str, mark: &str, right: &str) -> String {
        self.count += 1;
        let name = format!("{kind}_{}", self.count);
        // Writing to a `String` does not fail.
        let _ = writeln!(self.rules, "{name}{mark}: {right}");
        name
    }

    /// What matches a format and the text `end` after it.
    fn format(&mut self, format: &Value, at: &str, end: &str) -> Result<String, String> {
        let field = |name: &str| text(&format[name], &format!("{at}.{name}"));
        let expression = match format["type"].as_str() {
            Some("const_string") => return Ok(literal(&(field("value")?.to_owned() + end))),
            // The lexer does not go back, so a text without a form and the text after it are one token.
            Some("any_text") => return Ok(self.any_text(end)),
            Some("regex") => {
                let whole = (SCHEMA_SYNTAX.whole_match)(&format!("^(?:{})$", field("pattern")?));
                return Ok(self.rule("text", "", &format!("/{whole}{}/", escape(end))));
            }
            Some("json_schema") => {
                let schema = &format["json_schema"];
                if !schema.is_object() && !schema.is_boolean() {
                    return Err(format!("{at}.json_schema is not a JSON schema"));
                }
                let schema = (SCHEMA_SYNTAX.json)(closed(schema.clone()));
                self.rule("json", "", &format!("%json {schema}"))
            }
            Some("tag") => self.tag(format, at, "")?,
            Some("sequence") => return self.sequence(format, at, end),
            Some("or") => {
                let elements = list(&format["elements"], &format!("{at}.elements"))?.iter().enumerate();
                let any = elements
                    .map(|(place, element)| self.format(element, &format!("{at}.elements[{place}]"), end));
                return Ok(format!("({})", any.collect::<Result<Vec<_>, _>>()?.join(" | ")));
            }
            Some("triggered_tags") if end.is_empty() => self.triggered(format, at)?,
            Some("tags_with_separator") => self.separated(format, at)?,
            Some("triggered_tags") => {
                return Err(format!(
                    "{at}: triggered_tags cannot be followed by {end:?}; use tags_with_separator"
                ));
            }
            Some(other) => {
                return Err(format!(
                    "{at}.type is {other:?}; expected triggered_tags, tags_with_separator, tag, sequence, or, json_schema, regex, \
                     const_string or any_text"
                ));
            }
            None => return Err(format!("{at}.type is missing")),
        };
        Ok(format!("{expression} {}", literal(end)))
    }

    /// Any text up to the first `end`, and that, or up to the end of the answer.
    fn any_text(&mut self, end: &str) -> String {
        match end {
            "" => self.rule("TEXT", "", "/(?s:.+)/") + "?",
            end => self.rule("text", "[lazy]", &format!("/(?s:.*){}/", escape(end))),
        }
    }

    fn sequence(&mut self, format: &Value, at: &str, end: &str) -> Result<String, String> {
        let elements = list(&format["elements"], &format!("{at}.elements"))?;
        let last = elements.len() - 1;
        let parts = elements.iter().enumerate().map(|(place, element)| {
            let at = format!("{at}.elements[{place}]");
            if place < last && ["any_text", "triggered_tags"].iter().any(|kind| element["type"] == *kind) {
                return Err(format!(
                    "{at}: text without an end can only be the last element; put it into a tag"
                ));
            }
            self.format(element, &at, if place == last { end } else { "" })
        });
        Ok(format!("({})", parts.collect::<Result<Vec<_>, _>>()?.join(" ")))
    }

    /// A tag, without the beginning `read`.
    fn tag(&mut self, tag: &Value, at: &str, read: &str) -> Result<String, String> {
        let begin = text(&tag["begin"], &format!("{at}.begin"))?;
        let begin = literal(begin.strip_prefix(read).unwrap_or(begin));
        let ends = match &tag["end"] {
            Value::Array(ends) if !ends.is_empty() => ends.iter().collect(),
            one => vec![one],
        };
        let any = ends.into_iter().map(|end| {
            let end = text(end, &format!("{at}.end"))?;
            self.format(&tag["content"], &format!("{at}.content"), end)
        });
        let any = any.collect::<Result<Vec<_>, String>>()?.join(" | ");
        Ok(self.rule("tag", "", &format!("{begin} ({any})")))
    }

    /// Any text with tags, each after its trigger.
    fn triggered(&mut self, format: &Value, at: &str) -> Result<String, String> {
        let triggers = list(&format["triggers"], &format!("{at}.triggers"))?;
        let triggers: Vec<&str> = triggers
            .iter()
            .enumerate()
            .map(|(place, trigger)| text(trigger, &format!("{at}.triggers[{place}]")))
            .collect::<Result<_, _>>()?;
        let mut by_trigger = vec![Vec::new(); triggers.len()];
        for (place, tag) in list(&format["tags"], &format!("{at}.tags"))?.iter().enumerate() {
            let at = format!("{at}.tags[{place}]");
            let begin = text(&tag["begin"], &format!("{at}.begin"))?;
            let of = triggers.iter().position(|trigger| !trigger.is_empty() && begin.starts_with(trigger));
            let of = of.ok_or_else(|| format!("{at}.begin, {begin:?}, begins with none of the triggers"))?;
            let rule = self.tag(tag, &at, triggers[of])?;
            by_trigger[of].push(rule);
        }
        let mut branches = Vec::new();
        for (trigger, tags) in triggers.iter().zip(by_trigger).filter(|(_, tags)| !tags.is_empty()) {
            let lead = self.rule("lead", "[lazy]", &format!("/(?s:.*){}/", escape(trigger)));
            branches.push(format!("{lead} ({})", tags.join(" | ")));
        }
        let tags = format!("({})", branches.join(" | "));
        let any: Vec<_> = triggers.iter().map(|trigger| escape(trigger)).collect();
        let rest = self.rule("TEXT", "", &format!("/(?s:.+)/ & ~/(?s:.*)({})(?s:.*)/", any.join("|")));
        Ok(match (flag(format, "at_least_one"), flag(format, "stop_after_first")) {
            (true, true) => tags,
            (false, true) => format!("({tags} | {rest}?)"),
            (true, false) => format!("{tags}+ {rest}?"),
            (false, false) => format!("{tags}* {rest}?"),
        })
    }

    /// Tags one after the other.
    fn separated(&mut self, format: &Value, at: &str) -> Result<String, String> {
        let tags = list(&format["tags"], &format!("{at}.tags"))?.iter().enumerate();
        let tags = tags.map(|(place, tag)| self.tag(tag, &format!("{at}.tags[{place}]"), ""));
        let tags = format!("({})", tags.collect::<Result<Vec<_>, _>>()?.join(" | "));
        let separator = literal(format["separator"].as_str().unwrap_or_default());
        let more =
            if flag(format, "stop_after_first") { String::new() } else { format!(" ({separator} {tags})*") };
        Ok(if flag(format, "at_least_one") { format!("({tags}{more})") } else { format!("({tags}{more})?") })
    }
}

fn flag(format: &Value, name: &str) -> bool {
    format[name].as_bool().unwrap_or(false)
}

fn text<'a>(value: &'a Value, at: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("{at} is missing, or not a text"))
}

fn list<'a>(value: &'a Value, at: &str) -> Result<&'a Vec<Value>, String> {
    value
        .as_array()
        .filter(|list| !list.is_empty())
        .ok_or_else(|| format!("{at} is missing, or not a list with items"))
}

/// A text as an item of a rule; nothing for the empty text.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
}

/// A text as a regular expression between slashes.
fn escape(text: &str) -> String {
    fancy_regex::escape(text).replace('/', "\\/").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint;

    fn lark(tag: Value) -> Result<String, String> {
        let Value::Object(tag) = tag else { unreachable!("an object") };
        match constraint(tag)? {
            Constraint::Lark(lark) => Ok(lark),
            other => Err(format!("{other:?}")),
        }
    }

    fn call(name: &str) -> Value {
        let content = json!({ "type": "json_schema", "json_schema": { "type": "object", "properties": { "a": { "type": "integer" } } } });
        json!({ "type": "tag", "begin": format!("<function={name}>"), "content": content, "end": "</function>" })
    }

    #[test]
    fn every_format_gives_a_grammar_that_compiles() {
        let triggered = json!({ "type": "triggered_tags", "triggers": ["<function=", "[x"], "tags": [call("f"), call("g")] });
        let content = |content: Value| json!({ "type": "tag", "begin": "<a>", "content": content, "end": ["</a>", "\n/"] });
        for format in [
            triggered.clone(),
            json!({ "type": "triggered_tags", "triggers": ["<"], "tags": [call("f")], "at_least_one": true, "stop_after_first": true }),
            json!({ "type": "tags_with_separator", "tags": [call("f"), call("g")], "separator": "\n", "at_least_one": true }),
            content(json!({ "type": "any_text" })),
            content(json!({ "type": "regex", "pattern": "[a-z]+/[0-9]{2}" })),
            content(json!({ "type": "const_string", "value": "x\"y" })),
            content(
                json!({ "type": "or", "elements": [{ "type": "const_string", "value": "x" }, call("f")] }),
            ),
            json!({ "type": "sequence", "elements": [content(json!({ "type": "any_text" })), triggered.clone()] }),
            json!({ "type": "any_text" }),
        ] {
            let lark = lark(json!({ "type": "structural_tag", "format": format })).unwrap();
            constraint::check(&Constraint::Lark(lark.clone()))
                .unwrap_or_else(|e| panic!("{format}: {e}\n{lark}"));
        }
        let structures = json!([{ "begin": "<function=f>", "schema": {}, "end": "</function>" }]);
        let older = lark(json!({ "structures": structures, "triggers": ["<function="] })).unwrap();
        constraint::check(&Constraint::Lark(older)).unwrap();
    }

    #[test]
    fn mistakes_are_said_with_their_place() {
        for (tag, message) in [
            (json!({}), "has neither `format` nor `structures`"),
            (json!({ "format": { "type": "qwen_xml" } }), "format.type is \"qwen_xml\"; expected"),
            (json!({ "format": {} }), "format.type is missing"),
            (json!({ "format": { "type": "or", "elements": [] } }), "format.elements is missing"),
            (
                json!({ "format": { "type": "triggered_tags", "triggers": ["<x"], "tags": [call("f")] } }),
                "format.tags[0].begin, \"<function=f>\", begins with none of the triggers",
            ),
            (
                json!({ "format": { "type": "sequence", "elements": [{ "type": "any_text" }, call("f")] } }),
                "format.elements[0]: text without an end",
            ),
            (
                json!({ "structures": [{ "begin": 1 }], "triggers": ["a"] }),
                "structural_tag.tags[0].begin is missing",
            ),
        ] {
            let error = lark(tag).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
