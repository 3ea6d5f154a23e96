//! Explains why actix-web refused a request as malformed.
//!
//! actix-web reports a status only, and has no hook for such requests. The rules of its decoder are checked again here, in
//! the same order, for the error message; a fault that is not found gets a general message.

use std::time::Duration;

use crate::http::error::ApiError;

/// Time for a request head to arrive.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of a request that are examined.
pub(crate) const MAX_EXAMINED: usize = 16 << 10;

/// The statuses of such refusals.
pub(crate) const STATUSES: [u16; 3] = [400, 408, 431];

/// The error for a refusal with this status; `received` is the beginning of the request.
pub(crate) fn error(status: u16, received: &[u8]) -> ApiError {
    match status {
        408 => ApiError::HeadTooSlow { limit: HEAD_TIMEOUT },
        431 => ApiError::HeadTooLarge,
        _ => ApiError::NotHttp { problem: problem(received) },
    }
}

/// What is wrong with the request that begins with `received`.
fn problem(received: &[u8]) -> String {
    const GENERAL: &str = "cannot be read as HTTP/1.1";
    // It arrived together with an earlier request, whose answer has cleared the buffer.
    if received.is_empty() {
        return GENERAL.into();
    }
    // A TLS handshake record, of any version.
    if received.starts_with(&[0x16, 3]) {
        return "this is TLS, but the port expects plain HTTP; use http:// instead of https://".into();
    }
    // A truncated line cannot be judged, except the first one.
    let whole = received.iter().rposition(|byte| *byte == b'\n').filter(|_| received.len() >= MAX_EXAMINED);
    let received = &received[..whole.unwrap_or(received.len())];
    if received.len() >= MAX_EXAMINED {
        return TOO_LONG.into();
    }
    let mut lines =
        received.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.by_ref().find(|line| !line.is_empty()).unwrap_or_default();
    let rest: Vec<_> = lines.collect();
    let end = rest.iter().position(|line| line.is_empty());
    let fields = &rest[..end.unwrap_or(rest.len())];
    let found = of_first_line(first)
        .or_else(|| fields.iter().find_map(|line| of_field(line)))
        .or_else(|| end.and_then(|_| of_fields(first, fields)));
    found.unwrap_or_else(|| GENERAL.into())
}

const TOO_LONG: &str =
    "the target is longer than a URL may be, or has characters that are not allowed in URLs";

fn of_first_line(line: &[u8]) -> Option<String> {
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Some(format!(
            "the first line begins with {}; expected a method, a target and HTTP/1.1, with one space between",
            shown(line)
        ));
    };
    if version == b"HTTP/2.0" {
        return Some("this is HTTP/2, but the port expects HTTP/1.1".into());
    }
    if ![&b"HTTP/1.1"[..], b"HTTP/1.0"].contains(&version) {
        return Some(format!("the version is {}; expected HTTP/1.1", shown(version)));
    }
    if method.is_empty() || !method.iter().all(|byte| is_of_token(*byte)) {
        return Some(format!("invalid method {}", shown(method)));
    }
    let is_target = |byte: &u8| byte.is_ascii_graphic();
    if target.is_empty() || !target.iter().all(is_target) || target.len() > usize::from(u16::MAX) - 1 {
        return Some(TOO_LONG.into());
    }
    None
}

fn of_field(line: &[u8]) -> Option<String> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Some("a header line begins with a space; folded header lines are not supported".into());
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Some(format!("the header line that begins with {} has no colon", shown(line)));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_of_token(*byte)) {
        return Some(format!("{} before a colon is not a valid header name", shown(name)));
    }
    let is_of_value = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    (!value.iter().all(is_of_value)).then(|| format!("the header {} has a control character", shown(name)))
}

/// Checks that depend on several headers.
fn of_fields(first: &[u8], fields: &[&[u8]]) -> Option<String> {
    let values = |wanted: &str| -> Vec<&[u8]> {
        let pairs = fields.iter().filter_map(|line| line.split_at_checked(wanted.len()));
        let named = pairs.filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
        named.filter_map(|(_, rest)| Some(rest.strip_prefix(b":")?.trim_ascii())).collect()
    };
    let (lengths, encodings, hosts) = (values("content-length"), values("transfer-encoding"), values("host"));
    let is_old = first.ends_with(b"HTTP/1.0");
    let is_counted =
        |length: &[u8]| std::str::from_utf8(length).is_ok_and(|text| text.parse::<u64>().is_ok());
    let message: &str = match (&lengths[..], &encodings[..], &hosts[..]) {
        ([_, _, ..], _, _) => "Content-Length is sent more than once",
        ([length], _, _) if length.is_empty() || !length.iter().all(u8::is_ascii_digit) => {
            return Some(format!("Content-Length is {}; expected a number of bytes", shown(length)));
        }
        (_, [_, _, ..], _) => "Transfer-Encoding is sent more than once",
        (_, [_], _) if is_old => "Transfer-Encoding is not part of HTTP/1.0; send HTTP/1.1",
        (_, [encoding], _) if !encoding.eq_ignore_ascii_case(b"chunked") => {
            return Some(format!("Transfer-Encoding is {}; expected \"chunked\"", shown(encoding)));
        }
        ([_], [_], _) => "both Content-Length and Transfer-Encoding are sent; send one of them",
        (_, _, [_, _, ..]) => "Host is sent more than once",
        (_, _, []) if !is_old => "Host is missing",
        ([], [], _) if is_old && first.starts_with(b"POST ") => {
            "Content-Length is missing, which HTTP/1.0 requires"
        }
        ([length], _, _) if !is_counted(length) => "Content-Length is too large",
        _ => return None,
    };
    Some(message.into())
}

/// Whether the byte is allowed in header names and methods.
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The first bytes, escaped.
fn shown(bytes: &[u8]) -> String {
    const MAX_SHOWN: usize = 24;
    let begin = bytes[..bytes.len().min(MAX_SHOWN)].escape_ascii();
    let dots = if bytes.len() > MAX_SHOWN { "…" } else { "" };
    format!("\"{begin}\"{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> String {
        problem(format!("POST /generate-lite HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n").as_bytes())
    }

    #[test]
    fn faults_of_headers_are_explained() {
        for (lines, words) in [
            ("badheader", "begins with \"badheader\" has no colon"),
            ("x-folded: a\r\n b", "folded"),
            ("transfer-encoding : chunked", "\"transfer-encoding \" before a colon"),
            (": a", "\"\" before a colon"),
            ("x-bare: a\rb", "\"x-bare\" has a control character"),
            ("content-length: 5\r\nContent-Length: 5", "Content-Length is sent more than once"),
            ("content-length: +5", "Content-Length is \"+5\""),
            ("content-length: 99999999999999999999", "too large"),
            ("content-length: 5\r\ntransfer-encoding: chunked", "both Content-Length and"),
            (
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
                "Transfer-Encoding is sent more than once",
            ),
            ("transfer-encoding: gzip, chunked", "Transfer-Encoding is \"gzip, chunked\""),
            ("host: y", "Host is sent more than once"),
        ] {
            let message = of(lines);
            assert!(message.contains(words), "{lines:?}: {message}");
        }
    }

    #[test]
    fn faults_of_the_first_line_are_explained() {
        for (sent, words) in [
            (&b"POST / x HTTP/1.1\r\n\r\n"[..], "one space between"),
            (b"\x80\x81\x82\r\n\r\n", "one space between"),
            (b"POST / HTTP/9.9\r\n\r\n", "version is \"HTTP/9.9\""),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
            (b"P\xc3T / HTTP/1.1\r\n\r\n", "method"),
            (b"GET /\xff HTTP/1.1\r\n\r\n", "target"),
            (b"GET / HTTP/1.1\r\n\r\n", "Host is missing"),
            (b"POST / HTTP/1.0\r\n\r\n", "Content-Length is missing"),
            (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", "not part of HTTP/1.0"),
            (b"\x16\x03\x01\x02\x00\x01", "TLS"),
            (b"", "cannot be read"),
            (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", "cannot be read"),
        ] {
            let message = problem(sent);
            assert!(message.contains(words), "{:?}: {message}", String::from_utf8_lossy(sent));
        }
    }

    #[test]
    fn a_truncated_line_is_not_judged() {
        let long = format!("GET /{}", "a".repeat(MAX_EXAMINED - 5));
        assert!(problem(long.as_bytes()).contains("longer than a URL"));
        let mut many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}", "x-a: b\r\n".repeat(2_500));
        many.truncate(MAX_EXAMINED - 2);
        many.push_str("\nx");
        assert_eq!(many.len(), MAX_EXAMINED);
        assert!(problem(many.as_bytes()).contains("cannot be read"), "{}", problem(many.as_bytes()));
    }

    #[test]
    fn quoted_bytes_are_short_and_escaped() {
        let message = of(&format!("x\u{1b}[2J{}", "a".repeat(500)));
        assert!(message.len() < 120 && !message.contains('\u{1b}'), "{message}");
    }
}
