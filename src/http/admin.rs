//! `POST /admin/…`: what is done in the slot between two jobs, for whoever runs the server.
//!
//! An order waits for the running job, and goes before all that are queued. It is taken from this machine alone: whoever can
//! unload a model can keep everybody else waiting.

use std::{pin::Pin, sync::Arc};

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{AppState, ask::take_keep_alive, body, error::ApiError, probes::held};
use crate::{
    job::{Failure, Order, OrderReport},
    units::Millis,
};

/// How orders reach the slot.
pub type Orders =
    Arc<dyn Fn(Order) -> Pin<Box<dyn Future<Output = Result<OrderReport, Failure>> + Send>> + Send + Sync>;

/// `POST /admin/models/{id}/load`, with `{"keep_alive": …}` if it shall not stay as long as others do.
pub(super) async fn load(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let model = state.catalogue.id(&path.into_inner())?;
    let mut fields = body::read_optional(payload, state.settings.body_limit).await?;
    let keep_alive = take_keep_alive(&mut fields)?;
    fields.finish(&[])?;
    carry_out(&request, &state, Order::Load { model, keep_alive }).await
}

/// `POST /admin/models/{id}/unload`.
pub(super) async fn unload(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let model = state.catalogue.id(&path.into_inner())?;
    carry_out(&request, &state, Order::Unload { model }).await
}

/// `POST /admin/trim`.
pub(super) async fn trim(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    carry_out(&request, &state, Order::Trim).await
}

async fn carry_out(request: &HttpRequest, state: &AppState, order: Order) -> Result<HttpResponse, ApiError> {
    check_origin(request)?;
    let Some(orders) = &state.orders else {
        return Err(ApiError::NotFound { path: request.path().to_owned() });
    };
    let patience = state.settings.deadlines.total;
    let report = timeout(patience, orders(order)).await;
    let report = report.map_err(|_| Failure::Deadline { elapsed: patience })??;
    Ok(HttpResponse::Ok().json(describe(&report)))
}

fn check_origin(request: &HttpRequest) -> Result<(), ApiError> {
    let is_local = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    if is_local { Ok(()) } else { Err(ApiError::NotFromHere) }
}

fn describe(report: &OrderReport) -> Value {
    json!({
        "loaded": report.loaded,
        "took_ms": Millis::from(report.took),
        "memory": { "before": held(report.before), "after": held(report.after) },
    })
}
