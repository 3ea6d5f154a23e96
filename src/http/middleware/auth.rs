//! The one way in and out: every request passes here before its handler, and every answer after it.
//!
//! In: the name that the server is called by, pages of other origins, then the address' allowance, then the key, then the
//! key's allowance. Out: the headers that all answers have. Probes always pass: an orchestrator that is turned away would kill a healthy server.

use std::{sync::Arc, time::Instant};

use actix_web::{
    Error, HttpMessage, HttpRequest,
    body::BoxBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{AUTHORIZATION, HeaderMap, HeaderName},
    },
    middleware::Next,
    web,
};

use super::{access_log::RequestRecord, cors, headers, host};
use crate::{
    auth::{ExhaustedLimit, Key, Rules},
    http::{error::ApiError, handlers::ui, model_registry::ModelRegistry, state::AppState},
    text::Text,
};

/// Carries a key where `Authorization` is taken by somebody else.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Lets requests in, or not, and sees to it that all answers have what answers should have.
pub(crate) async fn pass(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(state) = request.app_data::<web::Data<AppState>>().cloned() else {
        return next.call(request).await;
    };
    let rules = state.access.rules();
    let tally = RequestRecord::new(&request, state.metrics.clone());
    request.extensions_mut().insert(tally.clone());
    let origin = cors::origin(&request, &rules);
    let mut response = if cors::is_preflight(&request) {
        match cors::preflight(&request, origin.is_some()) {
            Ok(answer) => request.into_response(answer),
            Err(refusal) => request.error_response(refusal),
        }
    } else if let Err(refusal) = enter(&request, &state, &rules, &tally) {
        request.error_response(refusal)
    } else {
        next.call(request).await?
    };
    tally.answered(response.status());
    if let Some(unclaimed) = RequestRecord::take(response.request()) {
        match response.response().error().and_then(|error| error.as_error::<ApiError>()) {
            Some(error) => unclaimed.settle_failed(error),
            None => unclaimed.settle(),
        }
    }
    let out = response.headers_mut();
    headers::add(out, &tally);
    headers::add_standing(out, &state.access, &rules, &tally);
    cors::add(out, origin.as_ref(), &rules);
    Ok(response)
}

/// Most characters of a host that an error repeats.
const LONGEST_SHOWN_HOST: usize = 128;

/// Whether the request may come in.
fn enter(
    request: &ServiceRequest,
    state: &AppState,
    rules: &Rules,
    tally: &RequestRecord,
) -> Result<(), ApiError> {
    // By the path as it was sent: one that is spelt otherwise is open to nobody by that.
    let path = request.path();
    let is_metrics = path == "/metrics";
    if ["/livez", "/readyz", "/startupz"].contains(&path) || (is_metrics && rules.open_metrics) {
        return Ok(());
    }
    if let Some(name) = host::foreign_name(request.headers(), request.uri(), rules) {
        let host = host::without_port(name).chars().take(LONGEST_SHOWN_HOST).collect();
        return Err(ApiError::HostNotAllowed { host });
    }
    if cors::is_refused(request, rules) {
        return Err(ApiError::OriginNotAllowed);
    }
    let now = Instant::now();
    if let Some(address) = tally.peer().filter(|_| !is_metrics) {
        let limit = rules.requests_per_minute_per_ip.map_or(0, u32::from);
        let refuse = |wait| ApiError::RateLimited { whose: "this address", what: "requests", limit, wait };
        state.access.admit(rules, address, now).map_err(refuse)?;
    }
    if rules.keys.is_empty() || is_of_page(request) {
        return Ok(());
    }
    let shown = shown(request.headers()).ok_or(ApiError::NoKey)?;
    let key = rules.keys.find(shown).ok_or(ApiError::WrongKey)?;
    tally.belongs_to(key);
    // Whoever watches the queue should not have to wait for it.
    if is_metrics || path == "/v1/slot" {
        return Ok(());
    }
    key.admit(now).map_err(|(spent, wait)| {
        let [requests, tokens] = key.rate_limit_status(now).map(|status| status.map_or(0, |s| s.limit));
        let (what, limit) = match spent {
            ExhaustedLimit::Requests => ("requests", requests),
            ExhaustedLimit::Tokens => ("tokens", tokens),
        };
        ApiError::RateLimited { whose: "this key", what, limit, wait }
    })
}

/// Whether a browser asks for the page, which has to be there before a key can be typed.
fn is_of_page(request: &ServiceRequest) -> bool {
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    let path = request.path();
    let is_described = ["/docs", "/openapi.json"].contains(&path);
    is_read && (is_described || ui::is_file(path) || (path == "/" && ui::is_wanted(request.request())))
}

/// The key that a request shows.
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let shown = bearer.or_else(|| headers.get(API_KEY).map(|value| value.as_bytes()))?.trim_ascii();
    (!shown.is_empty()).then_some(shown)
}

/// Checks that the request comes from the server's operator: with an admin key from anywhere, and where there are no keys,
/// from this machine; never from a page whose origin is not listed by name. Asked by the handlers themselves, so that no
/// spelling of a path gets around it.
pub(crate) fn check_admin(request: &HttpRequest, state: &AppState) -> Result<(), ApiError> {
    let rules = state.access.rules();
    if cors::is_unlisted(request, &rules) {
        return Err(ApiError::NotFromHere);
    }
    match RequestRecord::of(request).as_ref().and_then(RequestRecord::key) {
        Some(key) if key.is_admin() => Ok(()),
        Some(_) => Err(ApiError::NotAdmin),
        None if !rules.keys.is_empty() => Err(ApiError::NoKey),
        None if is_from_here(request) => Ok(()),
        None => Err(ApiError::NotFromHere),
    }
}

/// The key of a request that has shown one.
pub(crate) fn key(request: &HttpRequest) -> Option<Arc<Key>> {
    RequestRecord::of(request).and_then(|tally| tally.key().cloned())
}

/// The model that is asked for, if the request may use it.
pub(crate) fn model<'a>(
    request: &HttpRequest,
    state: &'a AppState,
    asked: Option<&str>,
) -> Result<&'a Arc<Text>, ApiError> {
    model_for(key(request).as_deref(), &state.catalogue, asked)
}

/// The model that is asked for, if `key` may use it. A key gets the same error for other keys' models as for models that do
/// not exist.
pub(crate) fn model_for<'a>(
    key: Option<&Key>,
    catalogue: &'a ModelRegistry,
    asked: Option<&str>,
) -> Result<&'a Arc<Text>, ApiError> {
    if let Some(asked) = asked {
        check_model_for(key, asked)?;
    }
    let text = catalogue.find(asked)?;
    check_model_for(key, &text.card().id)?;
    Ok(text)
}

/// Whether whoever asks may use this model.
pub(crate) fn check_model(request: &HttpRequest, model: &str) -> Result<(), ApiError> {
    check_model_for(key(request).as_deref(), model)
}

fn check_model_for(key: Option<&Key>, model: &str) -> Result<(), ApiError> {
    match key {
        Some(key) if !key.allows_model(model) => {
            let allowed = key.models().unwrap_or_default().iter().map(|model| format!("{model:?}"));
            let allowed = allowed.collect::<Vec<_>>().join(", ");
            Err(ApiError::ModelNotAllowed { model: model.to_owned(), allowed })
        }
        _ => Ok(()),
    }
}

/// Whether the request comes directly from this machine. A proxy's client may be anywhere, so proxied requests do not
/// count.
fn is_from_here(request: &HttpRequest) -> bool {
    let is_local = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    is_local && !request.headers().keys().any(|name| is_of_a_proxy(name.as_str()))
}

/// Whether proxies add this header to the requests that they pass on.
fn is_of_a_proxy(name: &str) -> bool {
    name.starts_with("x-forwarded")
        || ["forwarded", "via", "x-real-ip", "x-client-ip", "cf-connecting-ip"].contains(&name)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_shown_as_a_bearer_token_or_in_a_header_of_its_own() {
        let shown = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for &(name, value) in pairs {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            super::shown(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(shown(&[("authorization", "Bearer abc")]).as_deref(), Some("abc"));
        assert_eq!(shown(&[("authorization", "bearer  abc ")]).as_deref(), Some("abc"));
        assert_eq!(shown(&[("x-api-key", "abc")]).as_deref(), Some("abc"));
        let both = [("authorization", "Basic dTpw"), ("x-api-key", "abc")];
        assert_eq!(shown(&both).as_deref(), Some("abc"));
        for none in
            [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Bear")], &[("x-api-key", "")]]
        {
            assert_eq!(shown(none), None);
        }
    }
}
