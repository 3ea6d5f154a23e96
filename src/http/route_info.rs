//! What middleware needs to know of the route that a request is for.

use actix_web::{HttpRequest, http::Method};

use super::error_shape::ErrorShape;

/// A route, or the group of all paths that are none.
#[derive(Debug)]
pub(crate) struct RouteInfo {
    pub(crate) method: Method,
    /// The path, with placeholders; the label `route` of metrics and logs.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) errors: ErrorShape,
}

impl RouteInfo {
    /// Whether the route is for those who operate the server: probes, metrics, the slot, shutdown.
    pub(crate) fn is_for_operators(&self) -> bool {
        matches!(self.access, Access::Probe | Access::Metrics)
            || ["/version", "/v1/slot", "/admin/drain", "/admin/log"].contains(&self.path)
    }
}

/// Who may call a route.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Anyone: an orchestrator that is refused would kill a healthy server.
    Probe,
    /// As [`Access::Unmetered`]; anyone with `auth.open_metrics`.
    Metrics,
    /// Anyone for `GET` requests that satisfy this, because a browser has no key before the page is loaded; otherwise as
    /// [`Access::Key`].
    Page(fn(&HttpRequest) -> bool),
    /// Any API key; anyone if no keys are configured.
    Key,
    /// As [`Access::Key`], but not counted against the key's rate limit.
    Unmetered,
    /// An admin key; if no keys are configured, anyone on this machine.
    Admin,
}

/// Paths without a route share one label, so that clients cannot create metrics.
pub(crate) static NO_ROUTE: RouteInfo =
    RouteInfo { method: Method::GET, path: "other", access: Access::Key, errors: ErrorShape::OpenAi };
