//! Grammars in llama.cpp's notation (GBNF), converted to Lark's.
//!
//! | GBNF | Lark |
//! |---|---|
//! | `root ::= "a" item-list` | `start: "a" r_item_list` |
//! | `[a-z]`, `.` | `/[a-z]/`, `/(?s:.)/` |
//! | `( )`, `\|`, `*`, `+`, `?`, `{2,3}` | the same |
//! | `# comment` | left out |

use std::fmt::Write;

/// Whether a grammar is in this notation.
pub(super) fn is_gbnf(grammar: &str) -> bool {
    grammar.contains("::=")
}

/// The grammar in Lark's notation.
///
/// # Errors
/// What is wrong, with the line.
pub(super) fn to_lark(grammar: &str) -> Result<String, String> {
    let tokens = tokens(grammar)?;
    let mut lark = String::new();
    let mut has_root = false;
    for (place, token) in tokens.iter().enumerate() {
        let begins_rule = |at: usize| matches!(tokens.get(at), Some(Token::Is));
        match token {
            Token::Name(name) if begins_rule(place + 1) => {
                has_root |= name == "root";
                // Writing to a `String` does not fail.
                let _ = write!(lark, "\n{}:", rule_name(name));
            }
            Token::Name(name) => lark = lark + " " + &rule_name(name),
            Token::Is if place > 0 && matches!(tokens[place - 1], Token::Name(_)) => {}
            Token::Is => return Err("`::=` does not follow the name of a rule".into()),
            Token::Literal(text) => lark = lark + " " + &serde_json::Value::from(text.as_str()).to_string(),
            Token::Class(class) => lark = lark + " /" + class + "/",
            // A repetition follows its item without a space.
            Token::Repeat(repeat) => lark.push_str(repeat),
            Token::Mark(mark) => {
                lark.push(' ');
                lark.push(*mark);
            }
        }
    }
    if has_root { Ok(lark.trim_start().to_owned() + "\n") } else { Err("it has no rule `root`".into()) }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    /// `::=`
    Is,
    Literal(String),
    /// A character class as a regular expression.
    Class(String),
    /// `*`, `+`, `?` or `{2,3}`
    Repeat(String),
    /// `(`, `)` or `|`
    Mark(char),
}

fn rule_name(name: &str) -> String {
    if name == "root" { "start".into() } else { format!("r_{}", name.replace('-', "_").to_lowercase()) }
}

fn tokens(grammar: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = grammar;
    while let Some(c) = rest.chars().next() {
        let line = || grammar[..grammar.len() - rest.len()].lines().count().max(1);
        let (token, length) = match c {
            c if c.is_whitespace() => (None, c.len_utf8()),
            '#' => (None, rest.find('\n').unwrap_or(rest.len())),
            ':' if rest.starts_with("::=") => (Some(Token::Is), 3),
            '"' => literal(rest)
                .map(|(text, length)| (Some(Token::Literal(text)), length))
                .ok_or_else(|| format!("line {}: a string does not end", line()))?,
            '[' => class(rest)
                .map(|(class, length)| (Some(Token::Class(class)), length))
                .ok_or_else(|| format!("line {}: a character class does not end", line()))?,
            '.' => (Some(Token::Class("(?s:.)".into())), 1),
            '*' | '+' | '?' => (Some(Token::Repeat(c.into())), 1),
            '{' => {
                let end =
                    rest.find('}').ok_or_else(|| format!("line {}: a repetition does not end", line()))?;
                (Some(Token::Repeat(rest[..=end].to_owned())), end + 1)
            }
            '(' | ')' | '|' => (Some(Token::Mark(c)), 1),
            c if c.is_ascii_alphanumeric() => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                (Some(Token::Name(rest[..length].to_owned())), length)
            }
            other => return Err(format!("line {}: unexpected {other:?}", line())),
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// A string with its escapes resolved, and its length in the grammar.
fn literal(rest: &str) -> Option<(String, usize)> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((text, at + 1)),
            '\\' => {
                let (_, escaped) = characters.next()?;
                let digits = match escaped {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    'n' => {
                        text.push('\n');
                        continue;
                    }
                    't' => {
                        text.push('\t');
                        continue;
                    }
                    'r' => {
                        text.push('\r');
                        continue;
                    }
                    other => {
                        text.push(other);
                        continue;
                    }
                };
                let hexadecimal: String = characters.by_ref().take(digits).map(|(_, digit)| digit).collect();
                text.push(char::from_u32(u32::from_str_radix(&hexadecimal, 16).ok()?)?);
            }
            c => text.push(c),
        }
    }
    None
}

/// A character class as a regular expression, and its length in the grammar.
fn class(rest: &str) -> Option<(String, usize)> {
    let mut class = String::new();
    let mut is_escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            '/' if !is_escaped => class.push_str("\\/"),
            '\n' => class.push_str("\\n"),
            // Within a class of the regular expression these would be operators.
            '[' if at > 0 && !is_escaped => class.push_str("\\["),
            '&' | '~' if !is_escaped => {
                class.push('\\');
                class.push(c);
            }
            c => class.push(c),
        }
        if c == ']' && !is_escaped && at > 0 {
            return Some((class, at + 1));
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{constraint, job::Constraint};

    #[test]
    fn grammars_of_llama_cpp_become_lark_that_compiles() {
        let list = "# a list\nroot ::= item-list \"\\n\"\nitem-list ::= (\n  item (\", \" item)*\n  | \"none\"\n)\nitem ::= [a-z_/]+ \"\\x41\"? [0-9]{1,3} .\n";
        let lark = to_lark(list).unwrap();
        assert!(
            lark.starts_with(
                "start: r_item_list \"\\n\"\nr_item_list: ( r_item ( \", \" r_item )* | \"none\" )"
            ),
            "{lark}"
        );
        assert!(lark.contains("r_item: /[a-z_\\/]/+ \"A\"? /[0-9]/{1,3} /(?s:.)/"), "{lark}");
        constraint::check(&Constraint::Lark(lark)).unwrap();
    }

    #[test]
    fn mistakes_name_the_line() {
        for (grammar, message) in [
            ("a ::= \"b\"", "it has no rule `root`"),
            ("root ::= \"a\nb", "line 1: a string does not end"),
            ("root ::= a\na ::= [b", "line 2: a character class does not end"),
            ("root ::= %", "line 1: unexpected '%'"),
            ("::= \"a\"", "`::=` does not follow the name of a rule"),
            ("root ::= \"\\ud800\"", "line 1: a string does not end"),
        ] {
            assert_eq!(to_lark(grammar).unwrap_err(), message, "{grammar}");
        }
    }
}
