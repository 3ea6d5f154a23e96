//! Request ids: the client's `X-Request-Id`, or a random one.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// The header of the request and of the answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids are replaced, because every log line has the id.
const MAX_CHARACTERS: usize = 128;

/// The id of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(String);

impl RequestId {
    /// The client's id if it is safe to log, else a random one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        Self(given.filter(|id| is_safe(id)).map_or_else(random, str::to_owned))
    }

    /// A random id.
    pub(crate) fn random() -> Self {
        Self(random())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn to_header(&self) -> HeaderValue {
        // Safe ids are valid header values; an empty value is better than a panic.
        HeaderValue::from_str(&self.0).unwrap_or(HeaderValue::from_static(""))
    }
}

fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Whether the id cannot break a log line, a field or a quoted string.
fn is_safe(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    (1..=MAX_CHARACTERS).contains(&id.len()) && id.bytes().all(is_plain)
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
    fn a_clients_id_is_kept_if_it_is_safe_to_log() {
        assert_eq!(of(b"req_7f.A-1:/+=@").as_str(), "req_7f.A-1:/+=@");
        let long = [b'a'; MAX_CHARACTERS + 1];
        for unsafe_id in [&b""[..], b"a b", b"a\"b", b"a\tb", b"caf\xe9", &long] {
            let made = of(unsafe_id);
            assert!(made.as_str().len() == 32 && is_safe(made.as_str()), "{made:?}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
