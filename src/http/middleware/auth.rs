//! Access rules: host, origin, rate limits, API keys, and which models a key may use.

use std::{sync::Arc, time::Instant};

use actix_web::{
    Error, HttpRequest,
    body::BoxBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{AUTHORIZATION, HeaderMap, HeaderName},
    },
    middleware::Next,
    web,
};

use super::{access_log::RequestRecord, cors, host};
use crate::{
    auth::{ExhaustedLimit, Key, Rules},
    http::{
        connections::ConnectionHandle, error::ApiError, model_registry::ModelRegistry, route_info::Access,
        state::AppState,
    },
    text::Text,
};

/// Carries a key where a proxy uses `Authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Most characters of a host that an error repeats.
const MAX_SHOWN_HOST: usize = 128;

/// Checks the host, the origin, the rate limit of the address, the key and its rate limit.
///
/// # Errors
/// The first check that fails.
pub(crate) fn check(
    request: &ServiceRequest,
    state: &AppState,
    rules: &Rules,
    record: &RequestRecord,
) -> Result<(), ApiError> {
    let access = record.route().access;
    let is_metrics = matches!(access, Access::Metrics);
    if matches!(access, Access::Probe) || (is_metrics && rules.open_metrics) {
        return Ok(());
    }
    if let Some(name) = host::foreign_name(request.headers(), request.uri(), rules) {
        let host = host::without_port(name).chars().take(MAX_SHOWN_HOST).collect();
        return Err(ApiError::HostNotAllowed { host });
    }
    if cors::is_refused(request, rules) {
        return Err(ApiError::OriginNotAllowed);
    }
    let now = Instant::now();
    if let Some(address) = record.peer().filter(|_| !is_metrics) {
        let limit = rules.requests_per_minute_per_ip.map_or(0, u32::from);
        let refuse = |wait| ApiError::RateLimited { whose: "this address", what: "requests", limit, wait };
        state.access.admit(rules, address, now).map_err(refuse)?;
    }
    if rules.keys.is_empty() || is_page(request, access) {
        return Ok(());
    }
    let sent = sent_key(request.headers()).ok_or(ApiError::NoKey)?;
    let key = rules.keys.find(sent).ok_or(ApiError::WrongKey)?;
    record.belongs_to(key);
    if matches!(access, Access::Metrics | Access::Unmetered) {
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

fn is_page(request: &ServiceRequest, access: Access) -> bool {
    let Access::Page(is_open) = access else { return false };
    [Method::GET, Method::HEAD].contains(request.method()) && is_open(request.request())
}

/// The key in the headers of a request.
fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let shown = bearer.or_else(|| headers.get(API_KEY).map(|value| value.as_bytes()))?.trim_ascii();
    (!shown.is_empty()).then_some(shown)
}

/// Middleware of admin routes. It runs after routing, so no other spelling of a path avoids it.
pub(crate) async fn admins_only(
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(state) = request.app_data::<web::Data<AppState>>() else { return next.call(request).await };
    match check_admin(request.request(), &state.access.rules()) {
        Ok(()) => next.call(request).await,
        Err(refusal) => Ok(request.error_response(refusal)),
    }
}

/// Checks that the request has an admin key or, without keys, that it comes from this machine; and that no page of an
/// unlisted origin sent it.
fn check_admin(request: &HttpRequest, rules: &Rules) -> Result<(), ApiError> {
    if cors::is_unlisted(request, rules) {
        return Err(ApiError::NotFromHere);
    }
    match RequestRecord::of(request).as_ref().and_then(RequestRecord::key) {
        Some(key) if key.is_admin() => Ok(()),
        Some(_) => Err(ApiError::NotAdmin),
        None if !rules.keys.is_empty() => Err(ApiError::NoKey),
        None if is_local(request) => Ok(()),
        None => Err(ApiError::NotFromHere),
    }
}

/// The key of a request, if it has a valid one.
pub(crate) fn key(request: &HttpRequest) -> Option<Arc<Key>> {
    RequestRecord::of(request).and_then(|record| record.key().cloned())
}

/// The requested model, if the request may use it.
pub(crate) fn model<'a>(
    request: &HttpRequest,
    state: &'a AppState,
    asked: Option<&str>,
) -> Result<&'a Arc<Text>, ApiError> {
    model_for(key(request).as_deref(), &state.models, asked)
}

/// The requested model, if `key` may use it. The error does not reveal whether a model exists that the key may not use.
pub(crate) fn model_for<'a>(
    key: Option<&Key>,
    models: &'a ModelRegistry,
    asked: Option<&str>,
) -> Result<&'a Arc<Text>, ApiError> {
    if let Some(asked) = asked {
        check_model_for(key, models.resolve(asked))?;
    }
    let text = models.find(asked)?;
    check_model_for(key, &text.card().id)?;
    Ok(text)
}

/// Checks that the key of the request may use this model.
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

/// Whether the request comes directly from this machine. The client of a proxy may be anywhere, so proxied requests do not
/// count.
fn is_local(request: &HttpRequest) -> bool {
    let is_loopback = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    let is_socket = ConnectionHandle::of(request).is_some_and(|connection| connection.is_local_socket());
    (is_loopback || is_socket) && !request.headers().keys().any(|name| is_added_by_proxies(name.as_str()))
}

/// Whether proxies add this header to the requests that they pass on.
fn is_added_by_proxies(name: &str) -> bool {
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
            super::sent_key(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
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
