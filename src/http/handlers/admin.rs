//! `POST /admin/…`: what is done in the slot between two jobs, for whoever runs the server.
//!
//! An order waits for the running job, and goes before all that are queued. It is taken with an
//! admin key, or where there are no keys from this machine alone: whoever can unload a model can keep everybody waiting.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::{
    config::is_log_level,
    http::{
        error::ApiError,
        field_error::FieldError,
        request::{body, generation::take_keep_alive},
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

/// `POST /admin/models/{id}/load`, with `{"keep_alive": …}` if it shall not stay as long as others do.
pub(crate) async fn load(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let model = state.catalogue.id(&path.into_inner())?;
    let mut fields = body::read_optional(&request, payload, &state).await?;
    let keep_alive = take_keep_alive(&mut fields)?;
    fields.finish(&[])?;
    carry_out(&request, &state, Order::Load { model, keep_alive }).await
}

/// `POST /admin/models/{id}/unload`.
pub(crate) async fn unload(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let model = state.catalogue.id(&path.into_inner())?;
    carry_out(&request, &state, Order::Unload { model }).await
}

/// `POST /admin/trim`.
pub(crate) async fn trim(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    carry_out(&request, &state, Order::Trim).await
}

/// `POST /admin/log` with `{"level": …}`: what is logged until the next start, or SIGHUP with another log.level.
pub(crate) async fn log(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = body::read(&request, payload, &state).await?;
    let level = fields.require::<String>("level")?;
    fields.finish(&[])?;
    if !is_log_level(&level) {
        let expected = "expected error, warn, info, debug, trace or a filter such as info,eka=debug";
        return Err(FieldError::value("level", format!("it is {level:?}; {expected}")).into());
    }
    let Some(set) = &state.set_log_level else {
        return Err(ApiError::NotFound { path: request.path().to_owned() });
    };
    set(&level).map_err(|message| ApiError::Internal { message })?;
    tracing::info!("log.level is {level} from now on, by /admin/log");
    Ok(HttpResponse::Ok().json(LogLevel { level }))
}

/// `POST /admin/drain`: what SIGTERM does, for whoever cannot send one.
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

async fn carry_out(request: &HttpRequest, state: &AppState, order: Order) -> Result<HttpResponse, ApiError> {
    let outcomes = give(request, state, order).await?;
    Ok(HttpResponse::Ok().json(OrderAnswer::try_from(outcomes)?))
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
