//! Tokens within a tag.

/// The end of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// `}}`
    Expression,
    /// `%}`
    Statement,
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    /// A string, written as minijinja reads it, with its quotes.
    Text(String),
    Integer(String),
    Float(String),
    Sign(&'static str),
}

impl Token {
    /// The token as minijinja reads it.
    pub(super) fn written(&self) -> &str {
        match self {
            Self::Name(text) | Self::Text(text) | Self::Integer(text) | Self::Float(text) => text,
            Self::Sign(sign) => sign,
        }
    }
}

/// A tag as tokens.
#[derive(Debug)]
pub(super) struct Tag<'a> {
    pub(super) source: &'a str,
    pub(super) end: End,
    /// `{%`, `{%-` and so on.
    pub(super) open: &'a str,
    pub(super) close: &'a str,
    pub(super) tokens: Vec<Token>,
}

/// Longer ones first.
const SIGNS: &[&str] = &[
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

impl<'a> Tag<'a> {
    /// Reads a tag from its opening on. `None` if it does not end, or has an invalid token.
    pub(super) fn read(source: &'a str, end: End) -> Option<Self> {
        let opening = if matches!(source.as_bytes().get(2), Some(b'-' | b'+')) { 3 } else { 2 };
        // minijinja would take the plus of `{{+` for a sign; it asks for nothing there.
        let open = if source.starts_with("{{+") { &source[..2] } else { &source[..opening] };
        let mut tokens = Vec::new();
        let mut depth = 0_usize;
        let mut rest = source[opening..].trim_start();
        loop {
            if depth == 0
                && let Some(close) = closing(rest, end)
            {
                let length = source.len() - rest.len() + close.len();
                return Some(Self { source: &source[..length], end, open, close, tokens });
            }
            let (token, length) = token(rest)?;
            match token {
                Token::Sign("(" | "[" | "{") => depth += 1,
                Token::Sign(")" | "]" | "}") => depth = depth.checked_sub(1)?,
                _ => {}
            }
            tokens.push(token);
            rest = rest[length..].trim_start();
        }
    }
}

fn closing(rest: &str, end: End) -> Option<&str> {
    let closings: &[&str] = match end {
        End::Expression => &["-}}", "}}"],
        End::Statement => &["-%}", "+%}", "%}"],
    };
    closings.iter().find(|closing| rest.starts_with(**closing)).map(|closing| &rest[..closing.len()])
}

/// A token and its length in the source.
fn token(source: &str) -> Option<(Token, usize)> {
    let first = source.chars().next()?;
    if first.is_ascii_digit() {
        return number(source);
    }
    if first == '_' || first.is_alphabetic() {
        let end = source.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(source.len());
        return Some((Token::Name(source[..end].to_owned()), end));
    }
    if matches!(first, '\'' | '"') {
        return text(source, first);
    }
    let sign = SIGNS.iter().find(|sign| source.starts_with(**sign))?;
    Some((Token::Sign(sign), sign.len()))
}

fn number(source: &str) -> Option<(Token, usize)> {
    let digits = |from: usize, radix: u32| {
        let end = source[from..].find(|c: char| c != '_' && !c.is_digit(radix));
        end.map_or(source.len(), |end| from + end)
    };
    let prefix = source.get(..2).map(str::to_ascii_lowercase);
    let radix = match prefix.as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 10,
    };
    if radix != 10 {
        let end = digits(2, radix);
        let value = u128::from_str_radix(&source[2..end].replace('_', ""), radix).ok()?;
        return Some((Token::Integer(value.to_string()), end));
    }
    let whole = digits(0, 10);
    let mut end = whole;
    let digit_at = |place: usize| source[place..].starts_with(|c: char| c.is_ascii_digit());
    if source[end..].starts_with('.') && digit_at(end + 1) {
        end = digits(end + 1, 10);
    }
    if source[end..].starts_with(['e', 'E']) {
        let sign = usize::from(source[end + 1..].starts_with(['+', '-']));
        if digit_at(end + 1 + sign) {
            end = digits(end + 1 + sign, 10);
        }
    }
    let text = source[..end].replace('_', "");
    Some(if end == whole { (Token::Integer(text), end) } else { (Token::Float(text), end) })
}

/// A string between quotes. Python's escapes become escapes that minijinja has as well.
fn text(source: &str, quote: char) -> Option<(Token, usize)> {
    let mut written = String::from("'");
    let mut rest = source[1..].char_indices();
    while let Some((place, c)) = rest.next() {
        match c {
            c if c == quote => {
                written.push('\'');
                return Some((Token::Text(written), place + 2));
            }
            '\'' => written.push_str("\\'"),
            '\\' => escape(&mut rest, &mut written)?,
            c => written.push(c),
        }
    }
    None
}

fn escape(rest: &mut std::str::CharIndices<'_>, written: &mut String) -> Option<()> {
    let (_, c) = rest.next()?;
    match c {
        '\n' => {}
        '\\' => written.push_str("\\\\"),
        '\'' => written.push_str("\\'"),
        '"' => written.push('"'),
        'n' => written.push_str("\\n"),
        't' => written.push_str("\\t"),
        'r' => written.push_str("\\r"),
        'a' => written.push('\x07'),
        'b' => written.push('\x08'),
        'f' => written.push('\x0c'),
        'v' => written.push('\x0b'),
        'x' => push_code(rest, 2, 16, written)?,
        'u' => push_code(rest, 4, 16, written)?,
        'U' => push_code(rest, 8, 16, written)?,
        '0'..='7' => push_octal(c, rest, written)?,
        // A character by its Unicode name, which needs a table that eka does not have. minijinja rejects this escape.
        'N' => written.push_str("\\u"),
        other => written.extend(['\\', '\\', other]),
    }
    Some(())
}

fn push_code(
    rest: &mut std::str::CharIndices<'_>,
    digits: usize,
    radix: u32,
    written: &mut String,
) -> Option<()> {
    let text: String = rest.by_ref().take(digits).map(|(_, c)| c).collect();
    let code = u32::from_str_radix(&text, radix).ok().filter(|_| text.len() == digits)?;
    push_character(char::from_u32(code)?, written);
    Some(())
}

fn push_octal(first: char, rest: &mut std::str::CharIndices<'_>, written: &mut String) -> Option<()> {
    let mut code = first.to_digit(8)?;
    for _ in 0..2 {
        let Some(digit) = rest.clone().next().and_then(|(_, c)| c.to_digit(8)) else { break };
        rest.next();
        code = code * 8 + digit;
    }
    push_character(char::from_u32(code)?, written);
    Some(())
}

fn push_character(c: char, written: &mut String) {
    match c {
        '\\' => written.push_str("\\\\"),
        '\'' => written.push_str("\\'"),
        '\n' => written.push_str("\\n"),
        c => written.push(c),
    }
}
