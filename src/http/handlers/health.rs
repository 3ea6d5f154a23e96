//! Probes for orchestrators, and metrics.
//!
//! A process that answers is alive, whatever its worker does. It is ready while a worker has the model loaded. A full queue
//! affects neither.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    executor::SubmitError,
    http::{error::ApiError, metric_names, prometheus_text, state::AppState},
    metrics::CONTENT_TYPE,
};

/// The answer of a probe.
#[derive(Serialize, ToSchema)]
pub(crate) struct Status {
    /// `alive`, `ready`, `ok` or `started`.
    status: &'static str,
    /// The state of each device; of `/readyz` with several devices.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    devices: BTreeMap<String, &'static str>,
}

impl From<&'static str> for Status {
    fn from(status: &'static str) -> Self {
        Self { status, devices: BTreeMap::new() }
    }
}

/// `GET /livez`: this process answers.
pub(crate) async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(Status::from("alive"))
}

/// `GET /readyz`: a request sent now would be worked on.
pub(crate) async fn readyz(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    if !state.executor.summary().accepting {
        return Err(SubmitError::Stopped.into());
    }
    if let Some(error) = ApiError::not_ready(&state.readiness.borrow()) {
        return Err(error);
    }
    let devices = (state.devices)().into_iter().map(|(name, seen)| (name, seen.as_str()));
    Ok(HttpResponse::Ok().json(Status { status: "ready", devices: devices.collect() }))
}

/// `GET /health`: as `/readyz`, with llama.cpp's status.
pub(crate) async fn health(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    readyz(state).await?;
    Ok(HttpResponse::Ok().json(Status::from("ok")))
}

/// How busy the server is, as in vLLM.
#[derive(Serialize, ToSchema)]
pub(crate) struct Load {
    /// Jobs that run or wait.
    server_load: usize,
}

/// `GET /load`.
pub(crate) async fn load(state: web::Data<AppState>) -> HttpResponse {
    let summary = state.executor.summary();
    HttpResponse::Ok().json(Load { server_load: summary.running.len() + summary.queued_jobs })
}

/// The version of the server.
#[derive(Serialize, ToSchema)]
pub(crate) struct Version {
    version: &'static str,
}

/// `GET /version`.
pub(crate) async fn version() -> HttpResponse {
    HttpResponse::Ok().json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// `GET /startupz`: the model was loaded once, so that liveness may be judged from now on.
pub(crate) async fn startupz(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    if state.was_ready() {
        Ok(HttpResponse::Ok().json(Status::from("started")))
    } else {
        Err(ApiError::Loading)
    }
}

/// `GET /metrics`, in Prometheus' text format unless the client asks for OpenMetrics.
pub(crate) async fn metrics(
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    state.metrics.kv_cache_usage.set(kv_cache_usage(&state));
    let text = state.metrics.render().map_err(|error| ApiError::Internal { message: error.to_string() })?;
    let model = state.models.usable_ids().into_iter().next().unwrap_or_default();
    let text = metric_names::with_names(text, state.settings.metric_names, &model);
    if prometheus_text::wants_open_metrics(request.headers()) {
        return Ok(HttpResponse::Ok().content_type(CONTENT_TYPE).body(text));
    }
    let text = prometheus_text::from_open_metrics(&text);
    Ok(HttpResponse::Ok().content_type(prometheus_text::CONTENT_TYPE).body(text))
}

/// Share of the context that the longest running job of each slot fills: the mean of the slots.
fn kv_cache_usage(state: &AppState) -> f64 {
    let snapshot = state.executor.snapshot();
    let mut slots = vec![0.0_f64; snapshot.slots];
    for running in &snapshot.running {
        let text = state.models.find(Some(&running.job.model.0));
        if let (Ok(text), Some(slot)) = (text, slots.get_mut(running.slot)) {
            let tokens = running.read.0 + running.generated.0;
            *slot = slot.max(tokens as f64 / state.context_length(text).0.max(1) as f64);
        }
    }
    slots.iter().sum::<f64>() / slots.len().max(1) as f64
}
