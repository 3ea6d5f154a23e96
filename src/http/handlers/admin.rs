//! `POST /admin/…`: load and unload models, trim memory, set the log level, shut down.
//!
//! Orders run between two jobs: after the running one and before all that are queued.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::{
    config::is_log_level,
    http::{
        error::ApiError,
        field_error::FieldError,
        request::{
            admin::{LoadRequest, LogRequest},
            body,
        },
        state::AppState,
    },
    job::{Failure, Memory, Order, OrderOutcome, OrderReport},
    units::Millis,
};

/// What an order did; with several devices, on each of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum OrderAnswer {
    Done(OrderDone),
    PerDevice { devices: Vec<OrderOnDevice> },
}

/// What an order did.
#[derive(Serialize, ToSchema)]
pub(crate) struct OrderDone {
    /// Models that are loaded now.
    loaded: Vec<String>,
    took_ms: Millis,
    memory: MemoryChange,
}

/// The worker's memory before and after an order, in bytes.
#[derive(Serialize, ToSchema)]
struct MemoryChange {
    before: Memory,
    after: Memory,
}

/// What an order did on one of several devices.
#[derive(Serialize, ToSchema)]
pub(crate) struct OrderOnDevice {
    #[serde(flatten)]
    result: OrderResult,
    device: Option<String>,
}

/// What an order did, or the code of its error.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum OrderResult {
    Done(OrderDone),
    Failed { error: OrderError },
}

/// Why an order failed.
#[derive(Serialize, ToSchema)]
struct OrderError {
    code: &'static str,
}

/// The filter that is logged from now on.
#[derive(Serialize, ToSchema)]
pub(crate) struct LogLevel {
    level: String,
}

/// What is left to do before the server ends.
#[derive(Serialize, ToSchema)]
pub(crate) struct Draining {
    /// Always true.
    draining: bool,
    /// Requests in the queue.
    queued: usize,
    /// Requests that run.
    running: usize,
    /// Time that they have to finish.
    grace_ms: Millis,
}

/// `POST /admin/models/{id}/load`, optionally with `keep_alive`.
pub(crate) async fn load(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let model = state.catalogue.id(&path.into_inner())?;
    let LoadRequest { keep_alive } = body::read_optional(&request, payload, &state).await?;
    answer_order(&request, &state, Order::Load { model, keep_alive }).await
}

/// `POST /admin/models/{id}/unload`.
pub(crate) async fn unload(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let model = state.catalogue.id(&path.into_inner())?;
    answer_order(&request, &state, Order::Unload { model }).await
}

/// `POST /admin/trim`.
pub(crate) async fn trim(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    answer_order(&request, &state, Order::Trim).await
}

/// `POST /admin/log`: sets `log.level` until a restart, or until SIGHUP with another log.level.
pub(crate) async fn log(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
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
    Ok(HttpResponse::Ok().json(LogLevel { level }))
}

/// `POST /admin/drain`: the same as SIGTERM.
pub(crate) async fn drain(state: web::Data<AppState>) -> HttpResponse {
    state.drain.cancel();
    let now = state.executor.snapshot();
    HttpResponse::Accepted().json(Draining {
        draining: true,
        queued: now.queued_jobs,
        running: now.running.len(),
        grace_ms: state.settings.grace.into(),
    })
}

async fn answer_order(
    request: &HttpRequest,
    state: &AppState,
    order: Order,
) -> Result<HttpResponse, ApiError> {
    let outcomes = send_order(request, state, order).await?;
    Ok(HttpResponse::Ok().json(OrderAnswer::try_from(outcomes)?))
}

/// Sends an order to all devices and waits for the outcomes.
pub(crate) async fn send_order(
    request: &HttpRequest,
    state: &AppState,
    order: Order,
) -> Result<Vec<OrderOutcome>, ApiError> {
    let Some(orders) = &state.orders else {
        return Err(ApiError::NotFound { path: request.path().to_owned() });
    };
    let limit = state.deadlines().total;
    let outcomes = timeout(limit, orders(order)).await;
    Ok(outcomes.map_err(|_| Failure::Deadline { elapsed: limit })?)
}

impl TryFrom<Vec<OrderOutcome>> for OrderAnswer {
    type Error = Failure;

    /// Fails if the order failed on all devices.
    fn try_from(outcomes: Vec<OrderOutcome>) -> Result<Self, Failure> {
        if outcomes.iter().all(|one| one.device.is_none() || one.outcome.is_err()) {
            let first = outcomes.into_iter().next().map_or(Err(Failure::ShuttingDown), |one| one.outcome);
            return first.map(|report| Self::Done(report.into()));
        }
        let devices = outcomes.into_iter().map(|OrderOutcome { device, outcome }| OrderOnDevice {
            result: match outcome {
                Ok(report) => OrderResult::Done(report.into()),
                Err(failure) => {
                    OrderResult::Failed { error: OrderError { code: ApiError::from(failure).code() } }
                }
            },
            device,
        });
        Ok(Self::PerDevice { devices: devices.collect() })
    }
}

impl From<OrderReport> for OrderDone {
    fn from(OrderReport { loaded, took, before, after }: OrderReport) -> Self {
        let loaded = loaded.into_iter().map(|id| id.0).collect();
        Self { loaded, took_ms: took.into(), memory: MemoryChange { before, after } }
    }
}
