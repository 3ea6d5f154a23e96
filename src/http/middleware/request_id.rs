//! The name of a request: what the client calls it, or what we do.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// Carries it, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer names are replaced: they are in every line of the log.
const MOST_CHARACTERS: usize = 128;

/// The name of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(String);

impl RequestId {
    /// The client's, if it is one that a log can bear.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        Self(given.filter(|id| is_fit(id)).map_or_else(made, str::to_owned))
    }

    /// Of a request that none can be read of.
    pub(crate) fn made() -> Self {
        Self(made())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn to_header(&self) -> HeaderValue {
        // Its characters are those of headers; if that were to change, none is better than a panic.
        HeaderValue::from_str(&self.0).unwrap_or(HeaderValue::from_static(""))
    }
}

fn made() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Nothing that ends a line, a field or a quotation.
fn is_fit(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    (1..=MOST_CHARACTERS).contains(&id.len()) && id.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(given: &[u8]) -> RequestId {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
        RequestId::of(&headers)
    }

    #[test]
    fn a_clients_id_is_kept_when_a_log_can_bear_it() {
        assert_eq!(of(b"req_7f.A-1:/+=@").as_str(), "req_7f.A-1:/+=@");
        let long = [b'a'; MOST_CHARACTERS + 1];
        for unfit in [&b""[..], b"a b", b"a\"b", b"a\tb", b"caf\xe9", &long] {
            let made = of(unfit);
            assert!(made.as_str().len() == 32 && is_fit(made.as_str()), "{made:?}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
