//! Cross-origin resource sharing: which pages' scripts may ask, and what of the answers they see.
//!
//! Browsers ask before they let a page of another origin send a key or JSON, and show it the answer only if we name its
//! origin. Cookies are never part of it: who may ask is decided by keys, which a page has to be given.
//!
//! Not showing an answer is not enough where there are no keys: a page may still have the server work, or end it. So what a
//! page of another origin sends is refused, unless `cors.origins` lists the origin. Browsers say where a request comes from
//! with `Origin`, which they send with every POST, and with `Sec-Fetch-Site`. `GET` and `HEAD` change nothing and the page
//! cannot read the answer, so they are allowed from anywhere: a link to this server is harmless.
//!
//! `Sec-Fetch-Site: same-site` is refused as `cross-site` is: to a browser, all ports of `localhost` are one site, and
//! another program's page is still another's.

use actix_web::{
    HttpRequest, HttpResponse,
    dev::ServiceRequest,
    http::{
        Method,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};

use crate::{auth::Rules, config::Origins, http::error::ApiError};

/// For which a browser need not ask again, in seconds.
const REMEMBER: &str = "600";

/// What scripts see of an answer's head besides what they always see.
const EXPOSED: &str = "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
     x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, \
     x-eka-ignored-fields";

/// The origin of the page that asks, if it may.
pub(crate) fn origin(request: &ServiceRequest, rules: &Rules) -> Option<HeaderValue> {
    let origin = request.headers().get(header::ORIGIN)?;
    rules.allows_origin(origin.to_str().ok()?).then(|| origin.clone())
}

/// Whether this is a cross-origin request that must be refused.
pub(crate) fn is_refused(request: &ServiceRequest, rules: &Rules) -> bool {
    ![Method::GET, Method::HEAD].contains(request.method())
        && is_foreign(request.headers(), |origin| rules.allows_origin(origin))
}

/// Whether this comes from a page of another origin that is not listed by name. `*` does not count, as it must not open
/// `/admin`.
pub(crate) fn is_unlisted(request: &HttpRequest, rules: &Rules) -> bool {
    is_foreign(request.headers(), |origin| rules.lists_origin(origin))
}

/// Whether a browser sends this for a page of another origin that `allows` rejects.
fn is_foreign(headers: &HeaderMap, allows: impl Fn(&str) -> bool) -> bool {
    if let Some(origin) = headers.get(header::ORIGIN) {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        return !origin
            .to_str()
            .is_ok_and(|origin| allows(origin) || host.is_some_and(|host| is_same(origin, host)));
    }
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    site.is_some_and(|site| ![&b"same-origin"[..], b"none"].contains(&site))
}

/// Whether `origin` is this server, which the request calls `host`. A proxy may have terminated TLS, so schemes are not
/// compared.
fn is_same(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |name: &str| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    bare(authority) == bare(host)
}

/// Whether a browser asks if a page may ask.
pub(crate) fn is_preflight(request: &ServiceRequest) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a browser is told. Needs no key, for browsers do not send any with it.
pub(crate) fn preflight(request: &ServiceRequest, is_allowed: bool) -> Result<HttpResponse, ApiError> {
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
pub(crate) fn add(headers: &mut HeaderMap, origin: Option<&HeaderValue>, rules: &Rules) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_foreign(pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for &(name, value) in pairs {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        super::is_foreign(&headers, |origin| origin == "https://listed.example")
    }

    #[test]
    fn what_a_page_of_another_origin_sends_is_foreign_and_what_our_own_page_sends_is_not() {
        let host = ("host", "127.0.0.1:8000");
        assert!(!is_foreign(&[host]), "no browser");
        assert!(!is_foreign(&[host, ("origin", "http://127.0.0.1:8000")]));
        assert!(!is_foreign(&[("host", "chat.example"), ("origin", "https://chat.example")]));
        assert!(!is_foreign(&[("host", "chat.example:443"), ("origin", "https://Chat.example")]));
        assert!(!is_foreign(&[host, ("origin", "https://listed.example"), ("sec-fetch-site", "cross-site")]));
        for origin in [
            "http://evil.example",
            "null",
            "http://127.0.0.1:3000",
            "https://127.0.0.1",
            "file://127.0.0.1:8000",
        ] {
            assert!(is_foreign(&[host, ("origin", origin)]), "{origin}");
        }
        for (site, foreign) in
            [("cross-site", true), ("same-site", true), ("same-origin", false), ("none", false)]
        {
            assert_eq!(is_foreign(&[host, ("sec-fetch-site", site)]), foreign, "{site}");
        }
    }
}
