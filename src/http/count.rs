//! Counting requests by route and by how they ended.
//!
//! Whoever holds the [`Tally`] of a request when it ends has it counted. A client that leaves drops whatever was being
//! made for it, and the tally with it: that nothing was settled by then is what `client_gone` means.

use std::sync::Arc;

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::{AppState, ROUTES, error::ApiError};
use crate::metrics::{Metrics, Outcome};

/// The label of paths that are no route: one for all, or anybody could make the metrics grow.
const OTHER: &str = "other";

/// One request, counted when this is dropped.
pub(super) struct Tally {
    metrics: Arc<Metrics>,
    outcome: Outcome,
}

impl Tally {
    fn new(metrics: Arc<Metrics>, path: &str) -> Self {
        Self { metrics, outcome: Outcome { route: label(path), code: "client_gone" } }
    }

    /// The request ended this way.
    pub(super) fn settle(&mut self, code: &'static str) {
        self.outcome.code = code;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.metrics.requests.get_or_create(&self.outcome).inc();
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

fn label(path: &str) -> &'static str {
    let is = |route: &str| match route.split_once('{') {
        Some((prefix, _)) => path.starts_with(prefix),
        None => path == route,
    };
    ROUTES.iter().find(|route| is(route.path)).map_or(OTHER, |route| route.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_labels_and_everything_else_has_one() {
        assert_eq!(label("/v1/completions"), "/v1/completions");
        assert_eq!(label("/v1/models"), "/v1/models");
        assert_eq!(label("/v1/models/demo"), "/v1/models/{id}");
        assert_eq!(label("/v1/completions/../secret"), OTHER);
        assert_eq!(label("/wp-login.php"), OTHER);
    }
}
