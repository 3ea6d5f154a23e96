//! Methods that test the kinds of characters of a string.

use super::super::repr::is_printable;

/// Their names.
pub(super) const METHODS: &[&str] = &[
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
];

/// The result; `None` if no method has that name.
pub(super) fn ask(text: &str, method: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    Some(match method {
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(|c| c.is_alphanumeric()),
        "isnumeric" => all(char::is_numeric),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(|c| is_decimal(c) || is_superscript(c)),
        "isspace" => all(is_space),
        "islower" => has_case(text, char::is_lowercase, char::is_uppercase),
        "isupper" => has_case(text, char::is_uppercase, char::is_lowercase),
        "istitle" => is_title(text),
        "isidentifier" => is_identifier(text),
        _ => return None,
    })
}

/// Python's white space: Unicode's, and the four separators of ASCII.
pub(in super::super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// A decimal digit of any script: each block has the digits from zero to nine in order.
fn is_decimal(c: char) -> bool {
    const ZEROS: &[u32] = &[
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0,
        0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    ];
    let code = u32::from(c);
    ZEROS.iter().any(|zero| (*zero..zero + 10).contains(&code))
}

const fn is_superscript(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨')
}

fn has_case(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(other)
}

fn is_title(text: &str) -> bool {
    let mut has_letters = false;
    let mut inside = false;
    for c in text.chars() {
        let fits = if c.is_uppercase() {
            !inside
        } else if c.is_lowercase() {
            inside
        } else {
            true
        };
        if !fits {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        has_letters |= inside;
    }
    has_letters
}

fn is_identifier(text: &str) -> bool {
    let mut rest = text.chars();
    rest.next().is_some_and(|first| first == '_' || first.is_alphabetic())
        && rest.all(|c| c == '_' || c.is_alphanumeric())
}
