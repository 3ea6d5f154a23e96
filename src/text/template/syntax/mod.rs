//! Rewrites Jinja2's syntax to minijinja's.
//!
//! minijinja reads nearly the same language; the differences are rewritten before it compiles a template. Operators with more
//! meanings in Python (`'%s' % x`) become calls of the functions in `operators`; tuples without parentheses get parentheses; a
//! macro that reads `kwargs` or `varargs` collects them; `generation` blocks (transformers' extension) become a scope. Line numbers do not change, so that
//! errors name the template's lines. A tag that is not valid Jinja2 is passed through, and minijinja reports the error; one that
//! is too deep for its recursive parser is rejected here.

mod expression;
mod lexer;
mod statement;

use minijinja::{Error, ErrorKind};

use self::{
    expression::Parser,
    lexer::{End, Tag},
    statement::Macros,
};

/// Maximum branches of conditions in a template. minijinja's parser recurses once per branch.
const MAX_BRANCHES: usize = 1_000;

/// Rewrites a template.
///
/// # Errors
/// When a tag does not end or has an invalid token, expressions are nested too deeply, or there are too many branches.
pub(super) fn translate(source: &str) -> Result<String, Error> {
    // Jinja2 treats every line end as one line feed.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut pieces = Vec::new();
    let mut macros = Macros::default();
    let mut rest = source.as_str();
    while let Some(start) = find_tag(rest) {
        let (before, from) = rest.split_at(start);
        pieces.push(before.to_owned());
        let line = 1 + source[..source.len() - from.len()].matches('\n').count();
        let refuse =
            |problem: &str| Error::new(ErrorKind::SyntaxError, format!("{problem} (in chat:{line})"));
        let (found, after) =
            read(from).ok_or_else(|| refuse("a tag that does not end, or is not valid Jinja2"))?;
        rest = after;
        let place = pieces.len();
        let text = match found {
            Found::Verbatim(text) => text.to_owned(),
            Found::Tag(tag) => rewrite(&tag, &mut macros, place).map_err(refuse)?,
        };
        pieces.push(text);
        macros.patch(&mut pieces);
    }
    pieces.push(rest.to_owned());
    Ok(pieces.concat())
}

/// The start of the next tag or comment.
fn find_tag(source: &str) -> Option<usize> {
    let bytes = source.as_bytes();
    source
        .match_indices('{')
        .map(|(place, _)| place)
        .find(|place| matches!(bytes.get(place + 1), Some(b'{' | b'%' | b'#')))
}

/// A part of a template that begins with a brace.
enum Found<'a> {
    /// A comment or a `raw` block.
    Verbatim(&'a str),
    Tag(Tag<'a>),
}

/// The tag or comment at the beginning of `source`, and the rest; `None` if it is not valid.
fn read(source: &str) -> Option<(Found<'_>, &str)> {
    let verbatim = if source.starts_with("{#") { comment(source) } else { raw(source) };
    if let Some(length) = verbatim {
        let (text, after) = source.split_at(length);
        return Some((Found::Verbatim(text), after));
    }
    let end = if source.starts_with("{{") { End::Expression } else { End::Statement };
    let tag = Tag::read(source, end)?;
    let after = &source[tag.source.len()..];
    Some((Found::Tag(tag), after))
}

/// The length of a comment.
fn comment(source: &str) -> Option<usize> {
    Some(source.find("#}").map_or(source.len(), |end| end + 2))
}

/// The length of a `raw` block; `None` if another tag begins here.
fn raw(source: &str) -> Option<usize> {
    let name = |tag: &str| {
        let inside = tag.strip_prefix("{%")?.split_once("%}")?;
        Some((
            inside.0.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c)).to_owned(),
            inside.0.len() + 4,
        ))
    };
    let (opening, mut place) = name(source)?;
    if opening != "raw" {
        return None;
    }
    while let Some(next) = source[place..].find("{%") {
        place += next;
        match name(&source[place..]) {
            Some((closing, length)) if closing == "endraw" => return Some(place + length),
            _ => place += 2,
        }
    }
    Some(source.len())
}

/// Rewrites a tag in minijinja's syntax. Line feeds at its end keep the number of lines.
fn rewrite(tag: &Tag<'_>, macros: &mut Macros, place: usize) -> Result<String, &'static str> {
    let mut parser = Parser::new(&tag.tokens);
    let body = match tag.end {
        End::Expression => macros.expression(&mut parser),
        End::Statement => macros.statement(&mut parser, tag, place),
    };
    if parser.is_too_deep() {
        return Err("an expression is nested too deep, or too long");
    }
    if macros.branches > MAX_BRANCHES {
        return Err("there are too many branches");
    }
    let Some(body) = body else { return Ok(tag.source.to_owned()) };
    let lines = tag.source.matches('\n').count().saturating_sub(body.matches('\n').count());
    Ok(format!("{} {body}{} {}", tag.open, "\n".repeat(lines), tag.close))
}
