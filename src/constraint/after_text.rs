//! A constraint on the answer after a text that is free, such as the model's reasoning.

use serde_json::Value;

use super::schema;
use crate::job::Constraint;

/// The constraint on an answer that may begin with text between two marks, or that begins within it (`is_open`). `None` for
/// grammars, which have a start of their own, and for schemas that are not JSON.
#[must_use]
pub fn after_text(constraint: &Constraint, (open, close): (&str, &str), is_open: bool) -> Option<Constraint> {
    let form = match constraint {
        Constraint::Schema(text) => {
            let schema: Value = serde_json::from_str(text).ok()?;
            format!("%json {}", schema::embedded(schema))
        }
        Constraint::Regex(regex) => format!("/{}/", escape_slashes(regex)),
        Constraint::Lark(_) => return None,
    };
    let start = if is_open { "text SPACE? form" } else { "form | OPEN text SPACE? form" };
    let open = format!("OPEN: /\\s*/ {}\n", Value::from(open));
    let open = if is_open { "" } else { open.as_str() };
    let close = escape(close);
    Some(Constraint::Lark(format!(
        "start: {start}\n{open}text[lazy]: /(?s:.*){close}/\nSPACE: /[ \\n]{{1,4}}/\nform: {form}\n"
    )))
}

/// A regular expression between slashes.
fn escape_slashes(regex: &str) -> String {
    let mut escaped = String::new();
    let mut is_escaped = false;
    for c in regex.chars() {
        if c == '/' && !is_escaped {
            escaped.push('\\');
        }
        is_escaped = c == '\\' && !is_escaped;
        match c {
            '\n' => escaped.push_str("\\n"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A text as a regular expression between slashes.
fn escape(text: &str) -> String {
    fancy_regex::escape(text).replace('/', "\\/").replace('\n', "\\n")
}
