//! The steps that every request passes before its handler, and every answer after it.

use actix_web::{
    Error, HttpMessage,
    body::BoxBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::{access_log::RequestRecord, auth, cors, headers};
use crate::http::{error::ApiError, route_info::RouteInfo, state::AppState};

/// Checks a request, calls its handler, and completes the answer.
pub(crate) async fn handle(
    route: &'static RouteInfo,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(state) = request.app_data::<web::Data<AppState>>().cloned() else {
        return next.call(request).await;
    };
    let rules = state.access.rules();
    let record = RequestRecord::new(route, &request, state.metrics.clone());
    request.extensions_mut().insert(record.clone());
    let origin = cors::origin(&request, &rules);
    let mut response = if cors::is_preflight(&request) {
        match cors::preflight(&request, origin.is_some()) {
            Ok(answer) => request.into_response(answer),
            Err(refusal) => request.error_response(refusal),
        }
    } else if let Err(refusal) = auth::check(&request, &state, &rules, &record) {
        request.error_response(refusal)
    } else {
        next.call(request).await?
    };
    record.answered(response.status());
    if let Some(unclaimed) = RequestRecord::take(response.request()) {
        match response.response().error().and_then(|error| error.as_error::<ApiError>()) {
            Some(error) => unclaimed.settle_failed(error),
            None => unclaimed.settle(),
        }
    }
    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
    if let Some(body) = error.and_then(|error| route.errors.body(&error.body())) {
        response = response.map_body(|_, _| BoxBody::new(body));
    }
    let out = response.headers_mut();
    headers::add(out, &record);
    headers::add_rate_limits(out, &state.access, &rules, &record);
    cors::add(out, origin.as_ref(), &rules);
    Ok(response)
}
