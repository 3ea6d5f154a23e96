//! Headers of every answer: the request id, security headers and rate limits.

use std::time::{Duration, Instant};

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

use super::{access_log::RequestRecord, request_id::REQUEST_ID};
use crate::auth::{AccessControl, RateLimitStatus, Rules};

/// OpenAI's names: limit, remaining, reset.
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

/// Adds the headers that do not depend on the rules.
pub(crate) fn add(headers: &mut HeaderMap, record: &RequestRecord) {
    headers.insert(REQUEST_ID, record.id().to_header());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Answers are private, and probes change from moment to moment.
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

/// Adds the rate limits of the key, or else of the address.
pub(crate) fn add_rate_limits(
    headers: &mut HeaderMap,
    access: &AccessControl,
    rules: &Rules,
    record: &RequestRecord,
) {
    let now = Instant::now();
    let [requests, tokens] = record.key().map_or([None, None], |key| key.rate_limit_status(now));
    let requests = requests.or_else(|| access.rate_limit_status(rules, record.peer()?, now));
    insert(headers, REQUESTS, requests);
    insert(headers, TOKENS, tokens);
}

fn insert(headers: &mut HeaderMap, names: [HeaderName; 3], status: Option<RateLimitStatus>) {
    let Some(RateLimitStatus { limit, remaining, reset }) = status else { return };
    let values = [limit.to_string(), remaining.to_string(), duration(reset)];
    for (name, value) in names.into_iter().zip(values) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

/// A duration in OpenAI's format: `6m0s`, `1.5s`, `20ms`.
fn duration(time: Duration) -> String {
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
    fn durations_have_openais_format() {
        let formatted = |millis| duration(Duration::from_millis(millis));
        assert_eq!(
            [formatted(0), formatted(20), formatted(1_500), formatted(59_000)],
            ["0s", "20ms", "1.5s", "59s"]
        );
        assert_eq!([formatted(60_000), formatted(361_900)], ["1m0s", "6m1s"]);
    }
}
