//! Texts without quotation marks, as some models write the arguments of calls: what JSON schemas say about strings, as regular
//! expressions of whole texts.

use std::slice;

use llguidance::regex_to_lark;
use regex_syntax::ast::{AssertionKind, Ast, parse::Parser};

use super::schema::{self, embedded};
use crate::text::SchemaSyntax;

/// How the compiler of grammars takes schemas.
pub const SCHEMA_SYNTAX: SchemaSyntax = SchemaSyntax { json: embedded, whole_match, patterns_of };

/// Any text.
const ANY: &str = "(?s:.*)";

/// A regular expression of the whole texts in which `pattern` is found: the anchors at the ends of its alternatives are removed,
/// and any text may be where there are none. An anchor elsewhere stays, and the compiler rejects it.
fn whole_match(pattern: &str) -> String {
    let lark = |text: &str| regex_to_lark(text, "dw");
    let Ok(ast) = Parser::new().parse(pattern) else { return lark(pattern) };
    let branches = match &ast {
        Ast::Alternation(any) => any.asts.as_slice(),
        one => slice::from_ref(one),
    };
    let whole = branches.iter().map(|branch| {
        let parts = match branch {
            Ast::Concat(parts) => parts.asts.as_slice(),
            one => slice::from_ref(one),
        };
        let start = parts
            .first()
            .filter(|part| is_anchor(part, &[AssertionKind::StartLine, AssertionKind::StartText]));
        let end =
            parts.last().filter(|part| is_anchor(part, &[AssertionKind::EndLine, AssertionKind::EndText]));
        let from = start.map_or(branch.span().start.offset, |anchor| anchor.span().end.offset);
        let until = end.map_or(branch.span().end.offset, |anchor| anchor.span().start.offset);
        let inner = lark(pattern.get(from..until).unwrap_or_default());
        let any = |anchor: Option<&Ast>| if anchor.is_some() { "" } else { ANY };
        format!("{}(?:{inner}){}", any(start), any(end))
    });
    whole.collect::<Vec<_>>().join("|")
}

fn is_anchor(part: &Ast, kinds: &[AssertionKind]) -> bool {
    matches!(part, Ast::Assertion(assertion) if kinds.contains(&assertion.kind))
}

/// The `pattern`s of a `format`: the forms that programs write, which are fewer than the standards allow.
fn patterns_of(format: &str) -> Vec<String> {
    const DAY: &str = "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|[12][0-9]))";
    const CLOCK: &str =
        r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const BYTE: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    const LABEL: &str = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
    const ATOM: &str = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+";
    const PATH: &str = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2})*";
    let host = format!("{LABEL}(?:\\.{LABEL})*");
    let whole = match format {
        "uuid" => "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}".to_owned(),
        "ipv4" => format!("{BYTE}(?:\\.{BYTE}){{3}}"),
        "ipv6" => "(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){1,4}|::[0-9a-fA-F]{1,4})".to_owned(),
        "hostname" => host,
        "email" => format!("{ATOM}(?:\\.{ATOM})*@{host}"),
        "uri" => format!("(?:[a-z][a-z0-9+.-]*://{host}(?::[0-9]{{1,5}})?(?:/{PATH})?|(?:urn|mailto|tel):[a-zA-Z0-9]{PATH})(?:\\?{PATH})?(?:#{PATH})?"),
        "duration" => "P(?:[0-9]+W|(?:[0-9]+Y)?(?:[0-9]+M)?[0-9]+D(?:T[0-9]+H(?:[0-9]+M)?(?:[0-9]+S)?)?|T[0-9]+(?:H|M|S))".to_owned(),
        "date" => DAY.to_owned(),
        "time" => CLOCK.to_owned(),
        "date-time" => format!("{DAY}T{CLOCK}"),
        _ => return Vec::new(),
    };
    // Leap years, and forms that many parsers reject.
    let stricter = schema::time_pattern(format);
    stricter.into_iter().chain([format!("^{whole}$")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_are_removed_and_any_text_is_allowed_where_there_are_none() {
        for (pattern, whole) in [
            ("^a$", "(?:a)"),
            ("a", "(?s:.*)(?:a)(?s:.*)"),
            ("^a|b$", "(?:a)(?s:.*)|(?s:.*)(?:b)"),
            ("^(a|b)$", "(?:(a|b))"),
            (r"^\d{2}/\d$", r"(?:[0-9]{2}\/[0-9])"),
            (r"^a\$", r"(?:a\$)(?s:.*)"),
            ("", "(?s:.*)(?:)(?s:.*)"),
            ("^", "(?:)(?s:.*)"),
            ("(^a)", "(?s:.*)(?:(^a))(?s:.*)"),
        ] {
            assert_eq!(whole_match(pattern), whole, "{pattern}");
        }
    }

    #[test]
    fn formats_have_patterns_of_usual_texts() {
        for (format, right, wrong) in [
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("ipv4", "192.168.0.255", "192.168.0.256"),
            ("ipv6", "2001:db8::1", "2001:db8"),
            ("ipv6", "::1", ":::1"),
            ("hostname", "a-b.example", "-a.example"),
            ("email", "asha.k+x@mail.example", "asha@"),
            ("uri", "https://example.com:8080/a/b?c=d#e", "example.com"),
            ("duration", "P3DT4H", "3 days"),
            ("date", "2024-02-29", "2023-02-29"),
            ("time", "23:59:59Z", "24:00:00Z"),
            ("date-time", "2024-02-29T00:00:00Z", "2024-02-29"),
        ] {
            let patterns = patterns_of(format);
            let expressions: Vec<_> =
                patterns.iter().map(|pattern| fancy_regex::Regex::new(pattern).unwrap()).collect();
            let matches =
                |text: &str| expressions.iter().all(|expression| expression.is_match(text).unwrap());
            assert!(matches(right), "{format}: {right}");
            assert!(!matches(wrong), "{format}: {wrong}");
        }
        assert_eq!(patterns_of("colour"), [""; 0]);
    }
}
