//! What the head of every answer has: its name, what browsers should not do with it, and how the allowances stand.

use std::time::{Duration, Instant};

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

use super::{access_log::RequestRecord, request_id::REQUEST_ID};
use crate::auth::{AccessControl, RateLimitStatus, Rules};

/// OpenAI's names, which clients know: limit, remaining, reset.
const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Adds what all answers have.
pub(crate) fn add(headers: &mut HeaderMap, tally: &RequestRecord) {
    headers.insert(REQUEST_ID, tally.id().to_header());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Answers are somebody's words, and probes are of the moment.
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let kind = headers.get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        if !headers.contains_key(CONTENT_SECURITY_POLICY) {
            let policy = HeaderValue::from_static("frame-ancestors 'none'");
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
    }
}

/// Adds how the allowances of whoever asked stand: the key's, or else the address'.
pub(crate) fn add_standing(
    headers: &mut HeaderMap,
    access: &AccessControl,
    rules: &Rules,
    tally: &RequestRecord,
) {
    let now = Instant::now();
    let [requests, tokens] = tally.key().map_or([None, None], |key| key.rate_limit_status(now));
    let requests = requests.or_else(|| access.rate_limit_status(rules, tally.peer()?, now));
    insert(headers, REQUESTS, requests);
    insert(headers, TOKENS, tokens);
}

fn insert(headers: &mut HeaderMap, names: [HeaderName; 3], standing: Option<RateLimitStatus>) {
    let Some(RateLimitStatus { limit, remaining, reset }) = standing else { return };
    let values = [limit.to_string(), remaining.to_string(), spell(reset)];
    for (name, value) in names.into_iter().zip(values) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

/// As OpenAI spells times: `6m0s`, `1.5s`, `20ms`.
fn spell(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    match time.subsec_millis() {
        _ if minutes > 0 => format!("{minutes}m{seconds}s"),
        0 => format!("{seconds}s"),
        millis if seconds > 0 => format!("{seconds}.{:01}s", millis / 100),
        millis => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spelt_as_openai_spells_them() {
        let spelt = |millis| spell(Duration::from_millis(millis));
        assert_eq!([spelt(0), spelt(20), spelt(1_500), spelt(59_000)], ["0s", "20ms", "1.5s", "59s"]);
        assert_eq!([spelt(60_000), spelt(361_900)], ["1m0s", "6m1s"]);
    }
}
