//! `POST /admin/…`: what is done in the slot between two jobs, for whoever runs the server.
//!
//! An order waits for the running job, and goes before all that are queued. It is taken with an
//! admin key, or where there are no keys from this machine alone: whoever can unload a model can keep everybody waiting.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::health::held;
use crate::{
    config::is_log_level,
    http::{
        error::ApiError,
        field_error::FieldError,
        middleware::auth::check_admin,
        request::{
            admin::{LoadRequest, LogRequest},
            body,
        },
        state::AppState,
    },
    job::{Failure, Order, OrderOutcome, OrderReport},
    units::Millis,
};

/// `POST /admin/models/{id}/load`, with `{"keep_alive": …}` if it shall not stay as long as others do.
pub(crate) async fn load(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    let model = state.catalogue.id(&path.into_inner())?;
    let LoadRequest { keep_alive } = body::read_optional(&request, payload, &state).await?;
    carry_out(&request, &state, Order::Load { model, keep_alive }).await
}

/// `POST /admin/models/{id}/unload`.
pub(crate) async fn unload(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    let model = state.catalogue.id(&path.into_inner())?;
    carry_out(&request, &state, Order::Unload { model }).await
}

/// `POST /admin/trim`.
pub(crate) async fn trim(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    carry_out(&request, &state, Order::Trim).await
}

/// `POST /admin/log` with `{"level": …}`: what is logged until the next start, or SIGHUP with another log.level.
pub(crate) async fn log(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    let LogRequest { level } = body::read(&request, payload, &state).await?;
    if !is_log_level(&level) {
        let expected = "expected error, warn, info, debug, trace or a filter such as info,eka=debug";
        return Err(FieldError::value("level", format!("unsupported value {level:?}; {expected}")).into());
    }
    let Some(set) = &state.set_log_level else {
        return Err(ApiError::NotFound { path: request.path().to_owned() });
    };
    set(&level).map_err(|message| ApiError::Internal { message })?;
    tracing::info!("log.level is {level} from now on, by /admin/log");
    Ok(HttpResponse::Ok().json(json!({ "level": level })))
}

/// `POST /admin/drain`: what SIGTERM does, for whoever cannot send one.
pub(crate) async fn drain(
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    state.drain.cancel();
    let now = state.executor.snapshot();
    let running = now.running.len();
    let grace_ms = Millis::from(state.settings.grace);
    let left =
        json!({ "draining": true, "queued": now.queued_jobs, "running": running, "grace_ms": grace_ms });
    Ok(HttpResponse::Accepted().json(left))
}

async fn carry_out(request: &HttpRequest, state: &AppState, order: Order) -> Result<HttpResponse, ApiError> {
    let outcomes = give(request, state, order).await?;
    Ok(HttpResponse::Ok().json(describe_all(outcomes)?))
}

/// Has an order carried out, and waits for what came of it.
pub(crate) async fn give(
    request: &HttpRequest,
    state: &AppState,
    order: Order,
) -> Result<Vec<OrderOutcome>, ApiError> {
    let Some(orders) = &state.orders else {
        return Err(ApiError::NotFound { path: request.path().to_owned() });
    };
    let patience = state.deadlines().total;
    let outcomes = timeout(patience, orders(order)).await;
    Ok(outcomes.map_err(|_| Failure::Deadline { elapsed: patience })?)
}

/// What came of an order, on each device where there are several; an error when it failed on all of them.
pub(crate) fn describe_all(mut outcomes: Vec<OrderOutcome>) -> Result<Value, Failure> {
    if outcomes.iter().all(|one| one.device.is_none() || one.outcome.is_err()) {
        let first = outcomes.drain(..).next().map_or(Err(Failure::ShuttingDown), |one| one.outcome);
        return first.map(|report| describe(&report));
    }
    let on_each = outcomes.into_iter().map(|OrderOutcome { device, outcome }| {
        let mut told = match outcome {
            Ok(report) => describe(&report),
            Err(failure) => json!({ "error": { "code": ApiError::from(failure).code() } }),
        };
        told["device"] = json!(device);
        told
    });
    Ok(json!({ "devices": on_each.collect::<Vec<_>>() }))
}

fn describe(report: &OrderReport) -> Value {
    json!({
        "loaded": report.loaded,
        "took_ms": Millis::from(report.took),
        "memory": { "before": held(report.before), "after": held(report.after) },
    })
}
