//! Counting requests by route and by how they ended.
//!
//! Whoever holds the [`Tally`] of a request when it ends has it counted. A client that leaves drops whatever was being
//! made for it, and the tally with it: that nothing was settled by then is what `client_gone` means. Requests that
//! generate are logged as well, at `info`; all others, which are mostly probes, at `debug`. Never what was said.

use std::{sync::Arc, time::Instant};

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::{AppState, ROUTES, RouteLine, error::ApiError, line};
use crate::{
    metrics::{Metrics, Outcome},
    units::Millis,
};

/// Paths that are no route: one label for all, or anybody could make the metrics grow.
static OTHER: RouteLine = line("", "other", "");

/// One request, counted when this is dropped.
pub(super) struct Tally {
    metrics: Arc<Metrics>,
    route: &'static RouteLine,
    code: &'static str,
    begun: Instant,
}

impl Tally {
    fn new(metrics: Arc<Metrics>, path: &str) -> Self {
        Self { metrics, route: route_of(path), code: "client_gone", begun: Instant::now() }
    }

    /// The request ended this way.
    pub(super) fn settle(&mut self, code: &'static str) {
        self.code = code;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let (route, code, took_ms) = (self.route.path, self.code, Millis::from(self.begun.elapsed()).0);
        self.metrics.requests.get_or_create(&Outcome { route, code }).inc();
        if self.route.method == "POST" {
            tracing::info!(route, code, took_ms, "request");
        } else {
            tracing::debug!(route, code, took_ms, "request");
        }
    }
}

/// Gives every request a tally, and settles those that no stream has taken along.
pub(super) async fn count(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if let Some(state) = request.app_data::<web::Data<AppState>>() {
        let tally = Tally::new(state.metrics.clone(), request.path());
        request.extensions_mut().insert(tally);
    }
    let response = next.call(request).await?;
    let unclaimed = response.request().extensions_mut().remove::<Tally>();
    if let Some(mut tally) = unclaimed {
        let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
        tally.settle(error.map_or("ok", ApiError::code));
    }
    Ok(response)
}

fn route_of(path: &str) -> &'static RouteLine {
    let is = |route: &str| match route.split_once('{') {
        Some((prefix, rest)) => {
            let suffix = rest.split_once('}').map_or("", |(_, suffix)| suffix);
            path.starts_with(prefix) && path.ends_with(suffix)
        }
        None => path == route,
    };
    ROUTES.iter().find(|route| is(route.path)).unwrap_or(&OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_labels_and_everything_else_has_one() {
        assert_eq!(route_of("/v1/completions").path, "/v1/completions");
        assert_eq!(route_of("/v1/models").path, "/v1/models");
        assert_eq!(route_of("/v1/models/demo").path, "/v1/models/{id}");
        assert_eq!(route_of("/admin/models/demo/unload").path, "/admin/models/{id}/unload");
        assert_eq!(route_of("/v1/completions/../secret").path, "other");
        assert_eq!(route_of("/wp-login.php").path, "other");
    }
}
