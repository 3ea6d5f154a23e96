//! What is wrong with a request that is no HTTP: words for what actix-web refuses with a bare status.
//!
//! By the rules that its decoder has, in the order in which it looks; a fault that is not found here is refused all the
//! same, and said in general.

use std::time::Duration;

use crate::http::error::ApiError;

/// For the head of a request to arrive.
pub(crate) const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// Most of a request that is looked at, to say what is wrong with it.
pub(crate) const MOST_HEARD: usize = 16 << 10;

/// What actix-web refuses without words.
pub(crate) const STATUSES: [u16; 3] = [400, 408, 431];

/// The error that a refusal with this status is, of a request that began with `heard`.
pub(crate) fn error(status: u16, heard: &[u8]) -> ApiError {
    match status {
        408 => ApiError::HeadTooSlow { limit: HEAD_PATIENCE },
        431 => ApiError::HeadTooLarge,
        _ => ApiError::NotHttp { problem: problem(heard) },
    }
}

/// What is wrong with the request that begins with `heard`.
fn problem(heard: &[u8]) -> String {
    const GENERAL: &str = "it cannot be read as HTTP/1.1";
    // It came with another one before it, whose answer was written since.
    if heard.is_empty() {
        return GENERAL.into();
    }
    // The type of a handshake, and the first byte of every version of TLS.
    if heard.starts_with(&[0x16, 3]) {
        return "it is TLS, and this port speaks HTTP without TLS; ask http://, not https://".into();
    }
    // Of a line that is not there as a whole nothing can be said, but of the first one.
    let whole = heard.iter().rposition(|byte| *byte == b'\n').filter(|_| heard.len() >= MOST_HEARD);
    let heard = &heard[..whole.unwrap_or(heard.len())];
    if heard.len() >= MOST_HEARD {
        return TOO_LONG.into();
    }
    let mut lines = heard.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.by_ref().find(|line| !line.is_empty()).unwrap_or_default();
    let rest: Vec<_> = lines.collect();
    let end = rest.iter().position(|line| line.is_empty());
    let fields = &rest[..end.unwrap_or(rest.len())];
    let found = of_first_line(first)
        .or_else(|| fields.iter().find_map(|line| of_field(line)))
        .or_else(|| end.and_then(|_| of_fields(first, fields)));
    found.unwrap_or_else(|| GENERAL.into())
}

const TOO_LONG: &str = "its target is longer than a URL may be, or has characters that no URL has";

fn of_first_line(line: &[u8]) -> Option<String> {
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Some(format!(
            "its first line begins with {} and is not a method, a target and HTTP/1.1, with one space between",
            shown(line)
        ));
    };
    if version == b"HTTP/2.0" {
        return Some("it is HTTP/2, and this port speaks HTTP/1.1".into());
    }
    if ![&b"HTTP/1.1"[..], b"HTTP/1.0"].contains(&version) {
        return Some(format!("its version is {}; send HTTP/1.1", shown(version)));
    }
    if method.is_empty() || !method.iter().all(|byte| is_of_token(*byte)) {
        return Some(format!("its method is {}, which is none", shown(method)));
    }
    let is_target = |byte: &u8| byte.is_ascii_graphic();
    if target.is_empty() || !target.iter().all(is_target) || target.len() > usize::from(u16::MAX) - 1 {
        return Some(TOO_LONG.into());
    }
    None
}

fn of_field(line: &[u8]) -> Option<String> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Some("a header line begins with a space: lines are not folded any more".into());
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Some(format!("the header line that begins with {} has no colon", shown(line)));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_of_token(*byte)) {
        return Some(format!("{} before a colon is no name of a header", shown(name)));
    }
    let is_of_value = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    (!value.iter().all(is_of_value)).then(|| format!("the header {} has a control character", shown(name)))
}

/// What fields say together.
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
    let said: &str = match (&lengths[..], &encodings[..], &hosts[..]) {
        ([_, _, ..], _, _) => "it has Content-Length more than once",
        ([length], _, _) if length.is_empty() || !length.iter().all(u8::is_ascii_digit) => {
            return Some(format!("its Content-Length is {}, which is no number of bytes", shown(length)));
        }
        (_, [_, _, ..], _) => "it has Transfer-Encoding more than once",
        (_, [_], _) if is_old => "it is HTTP/1.0, which has no Transfer-Encoding; send HTTP/1.1",
        (_, [encoding], _) if !encoding.eq_ignore_ascii_case(b"chunked") => {
            return Some(format!("its Transfer-Encoding is {}; send \"chunked\"", shown(encoding)));
        }
        ([_], [_], _) => "it has both Content-Length and Transfer-Encoding; send one of them",
        (_, _, [_, _, ..]) => "it has Host more than once",
        (_, _, []) if !is_old => "it has no Host",
        ([], [], _) if is_old && first.starts_with(b"POST ") => "it is HTTP/1.0 and has no Content-Length",
        ([length], _, _) if !is_counted(length) => "its Content-Length is more than can be counted",
        _ => return None,
    };
    Some(said.into())
}

/// A character of names and methods.
fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The beginning of what was sent, such that a person can read it.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 24;
    let begin = bytes[..bytes.len().min(MOST)].escape_ascii();
    let dots = if bytes.len() > MOST { "…" } else { "" };
    format!("\"{begin}\"{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> String {
        problem(format!("POST /generate-lite HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n").as_bytes())
    }

    #[test]
    fn what_is_wrong_with_a_field_is_said() {
        for (lines, words) in [
            ("badheader", "begins with \"badheader\" has no colon"),
            ("x-folded: a\r\n b", "folded"),
            ("transfer-encoding : chunked", "\"transfer-encoding \" before a colon"),
            (": a", "\"\" before a colon"),
            ("x-bare: a\rb", "\"x-bare\" has a control character"),
            ("content-length: 5\r\nContent-Length: 5", "Content-Length more than once"),
            ("content-length: +5", "Content-Length is \"+5\""),
            ("content-length: 99999999999999999999", "more than can be counted"),
            ("content-length: 5\r\ntransfer-encoding: chunked", "both Content-Length and"),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "Transfer-Encoding more than once"),
            ("transfer-encoding: gzip, chunked", "Transfer-Encoding is \"gzip, chunked\""),
            ("host: y", "Host more than once"),
        ] {
            let said = of(lines);
            assert!(said.contains(words), "{lines:?}: {said}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_first_line_is_said() {
        for (sent, words) in [
            (&b"POST / x HTTP/1.1\r\n\r\n"[..], "one space between"),
            (b"\x80\x81\x82\r\n\r\n", "one space between"),
            (b"POST / HTTP/9.9\r\n\r\n", "version is \"HTTP/9.9\""),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
            (b"P\xc3T / HTTP/1.1\r\n\r\n", "method"),
            (b"GET /\xff HTTP/1.1\r\n\r\n", "target"),
            (b"GET / HTTP/1.1\r\n\r\n", "no Host"),
            (b"POST / HTTP/1.0\r\n\r\n", "no Content-Length"),
            (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", "HTTP/1.0, which has no"),
            (b"\x16\x03\x01\x02\x00\x01", "TLS"),
            (b"", "cannot be read"),
            (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", "cannot be read"),
        ] {
            let said = problem(sent);
            assert!(said.contains(words), "{:?}: {said}", String::from_utf8_lossy(sent));
        }
    }

    #[test]
    fn nothing_is_said_of_a_line_that_was_not_heard_to_its_end() {
        let long = format!("GET /{}", "a".repeat(MOST_HEARD - 5));
        assert!(problem(long.as_bytes()).contains("longer than a URL"));
        let mut many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}", "x-a: b\r\n".repeat(2_500));
        many.truncate(MOST_HEARD - 2);
        many.push_str("\nx");
        assert_eq!(many.len(), MOST_HEARD);
        assert!(problem(many.as_bytes()).contains("cannot be read"), "{}", problem(many.as_bytes()));
    }

    #[test]
    fn what_is_repeated_is_short_and_has_no_line_of_its_own() {
        let said = of(&format!("x\u{1b}[2J{}", "a".repeat(500)));
        assert!(said.len() < 120 && !said.contains('\u{1b}'), "{said}");
    }
}
