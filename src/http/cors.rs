//! Cross-origin resource sharing: which pages' scripts may ask, and what of the answers they see.
//!
//! Browsers ask before they let a page of another origin send a key or JSON, and show it the answer only if we name its
//! origin. Cookies are never part of it: who may ask is decided by keys, which a page has to be given.

use actix_web::{
    HttpRequest, HttpResponse,
    dev::ServiceRequest,
    http::{
        Method,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};

use super::error::ApiError;
use crate::{access::Rules, config::Origins};

/// For which a browser need not ask again, in seconds.
const REMEMBER: &str = "600";

/// What scripts see of an answer's head besides what they always see.
const EXPOSED: &str = "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
     x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// The origin of the page that asks, if it may.
pub(super) fn origin(request: &ServiceRequest, rules: &Rules) -> Option<HeaderValue> {
    let origin = request.headers().get(header::ORIGIN)?;
    rules.allows_origin(origin.to_str().ok()?).then(|| origin.clone())
}

/// Whether a browser asks on behalf of a page that may not.
pub(super) fn is_foreign(request: &HttpRequest, rules: &Rules) -> bool {
    let origin = request.headers().get(header::ORIGIN);
    origin.is_some_and(|origin| !origin.to_str().is_ok_and(|origin| rules.allows_origin(origin)))
}

/// Whether a browser asks if a page may ask.
pub(super) fn is_preflight(request: &ServiceRequest) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a browser is told. Needs no key, for browsers do not send any with it.
pub(super) fn preflight(request: &ServiceRequest, is_allowed: bool) -> Result<HttpResponse, ApiError> {
    if !is_allowed {
        return Err(ApiError::OriginNotAllowed);
    }
    let mut answer = HttpResponse::NoContent();
    answer.insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST"));
    answer.insert_header((header::ACCESS_CONTROL_MAX_AGE, REMEMBER));
    // Whatever it wants to send: a star would not cover `authorization`.
    if let Some(wanted) = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone()));
    }
    Ok(answer.finish())
}

/// Shows the answer to the page that asked, if it may see it.
pub(super) fn add(headers: &mut HeaderMap, origin: Option<&HeaderValue>, rules: &Rules) {
    let is_any = rules.origins == Origins::Any;
    if let Some(origin) = origin {
        let shown = if is_any { HeaderValue::from_static("*") } else { origin.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, shown);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    if !is_any && rules.origins != Origins::default() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
}
