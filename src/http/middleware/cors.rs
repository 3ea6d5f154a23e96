//! Cross-origin resource sharing (CORS): which web pages may send requests, and which answers they may read.
//!
//! A browser asks with a preflight request before a page of another origin may send a key or JSON, and shows the page an answer
//! only if the answer allows its origin. Cookies are not used; access depends on API keys.
//!
//! Without API keys, hiding the answer is not enough: a page could still use or stop the server. So requests from pages of
//! other origins are refused unless `cors.origins` lists the origin. Browsers send the origin in `Origin`, with every POST, and
//! in `Sec-Fetch-Site`. `GET` and `HEAD` change nothing and are allowed, so that links to this server work.
//! `Sec-Fetch-Site: same-site` is refused like `cross-site`: for a browser, all ports of `localhost` are one site.
//!
//! actix-cors is not used: it knows neither `Sec-Fetch-Site` nor rules that change at run time, and refuses without a JSON body.

use actix_web::{
    HttpRequest, HttpResponse,
    dev::ServiceRequest,
    http::{
        Method,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};

use crate::{auth::Rules, config::Origins, http::error::ApiError};

/// How long a browser may cache a preflight answer, in seconds.
const REMEMBER: &str = "600";

/// Headers that scripts may read in addition to the default ones.
const EXPOSED: &str = "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
     x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, \
     x-eka-ignored-fields, x-eka-stream-id";

/// The origin of the request, if it is allowed.
pub(crate) fn origin(request: &ServiceRequest, rules: &Rules) -> Option<HeaderValue> {
    let origin = request.headers().get(header::ORIGIN)?;
    rules.allows_origin(origin.to_str().ok()?).then(|| origin.clone())
}

/// Whether this is a cross-origin request that has to be refused.
pub(crate) fn is_refused(request: &ServiceRequest, rules: &Rules) -> bool {
    ![Method::GET, Method::HEAD].contains(request.method())
        && is_foreign(request.headers(), |origin| rules.allows_origin(origin))
}

/// Whether the request comes from a page of an origin that is not listed by name; `*` does not open `/admin`.
pub(crate) fn is_unlisted(request: &HttpRequest, rules: &Rules) -> bool {
    is_foreign(request.headers(), |origin| rules.lists_origin(origin))
}

/// Whether a page of another origin sent the request, and `allows` refuses the origin.
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

/// Whether `origin` is this server, by its `Host`. Schemes are not compared, because a proxy may terminate TLS.
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

/// Whether this is a preflight request.
pub(crate) fn is_preflight(request: &ServiceRequest) -> bool {
    let has = |name: HeaderName| request.headers().contains_key(name);
    request.method() == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Answers a preflight request, for which browsers send no key.
pub(crate) fn preflight(request: &ServiceRequest, is_allowed: bool) -> Result<HttpResponse, ApiError> {
    if !is_allowed {
        return Err(ApiError::OriginNotAllowed);
    }
    let mut answer = HttpResponse::NoContent();
    answer.insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, DELETE"));
    answer.insert_header((header::ACCESS_CONTROL_MAX_AGE, REMEMBER));
    // All requested headers: `*` would not include `authorization`.
    if let Some(wanted) = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert_header((header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone()));
    }
    Ok(answer.finish())
}

/// Adds the headers that let the page read the answer.
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
    fn requests_from_pages_of_other_origins_are_foreign_and_from_our_own_page_are_not() {
        let host = ("host", "127.0.0.1:8000");
        assert!(!is_foreign(&[host]), "not a browser");
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
