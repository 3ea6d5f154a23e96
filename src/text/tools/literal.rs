//! Values in JSON, in Python's syntax and in Gemma's, converted to JSON.

use serde_json::Value;

/// Deepest nesting of a value.
const MAX_DEPTH: usize = 64;

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A value in JSON or in Python's syntax, as JSON; JSON stays as it is written. `None` for other texts.
pub(super) fn to_json(text: &str) -> Option<String> {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        return Some(text.to_owned());
    }
    convert(text, "")
}

/// A value in Python's syntax, or in Gemma's with this quotation mark, as JSON.
pub(super) fn convert(text: &str, quote: &str) -> Option<String> {
    let mut reader = Reader { rest: text, quote, json: String::new() };
    reader.skip();
    reader.value(MAX_DEPTH)?;
    reader.skip();
    reader.rest.is_empty().then_some(reader.json)
}

struct Reader<'a> {
    rest: &'a str,
    /// A quotation mark of any length; empty if there is none.
    quote: &'a str,
    json: String,
}

impl<'a> Reader<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text).filter(|_| !text.is_empty());
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Moves to the end of `length` bytes, which it returns.
    fn advance(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        if self.take(self.quote) {
            return self.until_quote();
        }
        match self.rest.chars().next()? {
            '"' | '\'' => self.string(),
            '[' => self.list(depth, ']'),
            '(' => self.list(depth, ')'),
            '{' => self.object(depth),
            _ => self.scalar(),
        }
    }

    fn until_quote(&mut self) -> Option<()> {
        let text = self.advance(self.rest.find(self.quote)?);
        self.json += &quoted(text);
        self.take(self.quote).then_some(())
    }

    fn string(&mut self) -> Option<()> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices();
        let (_, quote) = characters.next()?;
        while let Some((at, c)) = characters.next() {
            match c {
                _ if c == quote => {
                    self.advance(at + 1);
                    self.json += &quoted(&text);
                    return Some(());
                }
                '\\' => text.push(escaped(&mut characters)?),
                _ => text.push(c),
            }
        }
        None
    }

    fn list(&mut self, depth: usize, end: char) -> Option<()> {
        self.advance(1);
        self.json.push('[');
        let mut is_first = true;
        loop {
            self.skip();
            if !std::mem::replace(&mut is_first, false) && !self.rest.starts_with(end) {
                self.separate(end)?;
            }
            if self.rest.starts_with(end) {
                self.advance(1);
                self.json.push(']');
                return Some(());
            }
            self.value(depth)?;
        }
    }

    fn object(&mut self, depth: usize) -> Option<()> {
        self.advance(1);
        self.json.push('{');
        let mut is_first = true;
        loop {
            self.skip();
            if !std::mem::replace(&mut is_first, false) && !self.rest.starts_with('}') {
                self.separate('}')?;
            }
            if self.take("}") {
                self.json.push('}');
                return Some(());
            }
            self.key()?;
            self.skip();
            self.take(":").then_some(())?;
            self.json += ": ";
            self.skip();
            self.value(depth)?;
        }
    }

    /// The comma before all items but the first. One after the last item is accepted.
    fn separate(&mut self, end: char) -> Option<()> {
        self.take(",").then_some(())?;
        self.skip();
        if !self.rest.starts_with(end) {
            self.json += ", ";
        }
        Some(())
    }

    /// A key in quotation marks, or without them in Gemma's syntax.
    fn key(&mut self) -> Option<()> {
        if self.take(self.quote) {
            return self.until_quote();
        }
        if self.rest.starts_with(['"', '\'']) {
            return self.string();
        }
        if self.quote.is_empty() {
            return None;
        }
        let key = self.advance(self.rest.find(':')?).trim();
        self.json += &quoted(key);
        Some(())
    }

    fn scalar(&mut self) -> Option<()> {
        let length = self.rest.find([',', ']', ')', '}']).unwrap_or(self.rest.len());
        let word = self.advance(length).trim();
        self.json += match word {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other if serde_json::from_str::<Value>(other).is_ok() => other,
            _ => return None,
        };
        Some(())
    }
}

/// The character that an escape in a string of Python or JSON means, after its backslash.
fn escaped(characters: &mut std::str::CharIndices<'_>) -> Option<char> {
    let (_, c) = characters.next()?;
    let length = match c {
        'n' => return Some('\n'),
        't' => return Some('\t'),
        'r' => return Some('\r'),
        'b' => return Some('\u{8}'),
        'f' => return Some('\u{c}'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        other => return Some(other),
    };
    let digits: String = characters.take(length).map(|(_, digit)| digit).collect();
    // Half of a surrogate pair is not a character.
    let code = u32::from_str_radix(&digits, 16).ok()?;
    Some(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_python_become_json() {
        for (python, json) in [
            ("'a'", r#""a""#),
            (r#""a\n\'é\x41\u0915""#, r#""a\n'éAक""#),
            ("[1, -2.5, 'a']", r#"[1, -2.5, "a"]"#),
            ("(1, True)", "[1, true]"),
            ("{'a': None, \"b\": [False,],}", r#"{"a": null, "b": [false]}"#),
            ("{}", "{}"),
            ("1e5", "1e5"),
        ] {
            assert_eq!(to_json(python).as_deref(), Some(json), "{python}");
        }
        for other in ["", "a", "'a", "[1", "{'a' 1}", "[1 2]", "'a' b", "f(1)", "{a: 1}", "[,]", "\\", "'\\"]
        {
            assert_eq!(to_json(other), None, "{other}");
        }
        assert_eq!(to_json(&"[".repeat(100_000)), None);
    }

    #[test]
    fn values_of_gemma_become_json() {
        let json = r#"{"a": "x, \"y\"", "b": [1, "z"], "c": {"d": true}}"#;
        let text = "{a:<|\"|>x, \"y\"<|\"|>,b:[1,<|\"|>z<|\"|>],c:{<|\"|>d<|\"|>:true}}";
        assert_eq!(convert(text, "<|\"|>").as_deref(), Some(json));
    }
}
