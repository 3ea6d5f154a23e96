//! `POST /admin/…`: load and unload models, trim memory, set the log level, shut down.
//!
//! Commands run between two jobs: after the running one and before all that are queued.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::{
    config::is_log_level,
    http::{
        error::ApiError,
        field_error::FieldError,
        request::{ApiRequest, LoadRequest, LogRequest},
        state::AppState,
    },
    job::{Command, CommandOutcome, CommandReport, Failure, Memory},
    units::Millis,
};

/// What a command did; with several devices, on each of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum CommandAnswer {
    Done(CommandDone),
    PerDevice { devices: Vec<CommandOnDevice> },
}

/// What a command did.
#[derive(Serialize, ToSchema)]
pub(crate) struct CommandDone {
    /// Models that are loaded now.
    loaded: Vec<String>,
    took_ms: Millis,
    memory: MemoryChange,
}

/// The worker's memory before and after a command, in bytes.
#[derive(Serialize, ToSchema)]
struct MemoryChange {
    before: Memory,
    after: Memory,
}

/// What a command did on one of several devices.
#[derive(Serialize, ToSchema)]
pub(crate) struct CommandOnDevice {
    #[serde(flatten)]
    result: CommandResult,
    device: Option<String>,
}

/// What a command did, or the code of its error.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "a few in an answer")]
enum CommandResult {
    Done(CommandDone),
    Failed { error: CommandError },
}

/// Why a command failed.
#[derive(Serialize, ToSchema)]
struct CommandError {
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

/// A node of a cluster that was told to stop.
#[derive(Serialize, ToSchema)]
pub(crate) struct DrainingNode {
    /// Its name, `cluster.node_id`.
    node: String,
    /// Always true.
    draining: bool,
}

/// `POST /admin/models/{id}/load`, optionally with `keep_alive`.
pub(crate) async fn load(path: web::Path<String>, mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let model = request.state.models.id(&path.into_inner())?;
    let LoadRequest { keep_alive } = request.read_optional().await?;
    answer_command(&request, Command::Load { model, keep_alive }).await
}

/// `POST /admin/models/{id}/unload`.
pub(crate) async fn unload(path: web::Path<String>, request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let model = request.state.models.id(&path.into_inner())?;
    answer_command(&request, Command::Unload { model }).await
}

/// `POST /admin/trim`.
pub(crate) async fn trim(request: ApiRequest) -> Result<HttpResponse, ApiError> {
    answer_command(&request, Command::Trim).await
}

/// `POST /admin/log`: sets `log.level` until a restart, or until SIGHUP with another log.level.
pub(crate) async fn log(mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let LogRequest { level } = request.read().await?;
    if !is_log_level(&level) {
        let expected = "expected error, warn, info, debug, trace or a filter such as info,eka=debug";
        return Err(FieldError::value("level", format!("unsupported value {level:?}; {expected}")).into());
    }
    let Some(set) = &request.state.set_log_level else { return Err(request.not_found()) };
    set(&level).map_err(|message| ApiError::Internal { message })?;
    tracing::info!("log.level is {level} from now on, by /admin/log");
    Ok(HttpResponse::Ok().json(LogLevel { level }))
}

/// `POST /admin/drain`: the same as SIGTERM.
pub(crate) async fn drain(state: web::Data<AppState>) -> HttpResponse {
    state.drain.cancel();
    let now = state.executor.summary();
    HttpResponse::Accepted().json(Draining {
        draining: true,
        queued: now.queued_jobs,
        running: now.running.len(),
        grace_ms: state.settings.grace.into(),
    })
}

/// `POST /admin/nodes/{node}/drain`: the same as SIGTERM to a node of a cluster.
pub(crate) async fn drain_node(
    path: web::Path<String>,
    request: ApiRequest,
) -> Result<HttpResponse, ApiError> {
    let Some(drain) = &request.state.drain_node else { return Err(request.not_found()) };
    let node = path.into_inner();
    if drain(node.clone()).await {
        Ok(HttpResponse::Accepted().json(DrainingNode { node, draining: true }))
    } else {
        Err(ApiError::NodeNotFound { name: node.chars().take(128).collect() })
    }
}

async fn answer_command(request: &ApiRequest, command: Command) -> Result<HttpResponse, ApiError> {
    let outcomes = send_command(request, command).await?;
    Ok(HttpResponse::Ok().json(CommandAnswer::try_from(outcomes)?))
}

/// Sends a command to all devices and waits for the outcomes.
pub(crate) async fn send_command(
    request: &ApiRequest,
    command: Command,
) -> Result<Vec<CommandOutcome>, ApiError> {
    let Some(commands) = &request.state.commands else { return Err(request.not_found()) };
    let limit = request.state.deadlines().total;
    let outcomes = timeout(limit, commands(command)).await;
    Ok(outcomes.map_err(|_| Failure::Deadline { elapsed: limit })?)
}

impl TryFrom<Vec<CommandOutcome>> for CommandAnswer {
    type Error = Failure;

    /// Fails if the command failed on all devices.
    fn try_from(outcomes: Vec<CommandOutcome>) -> Result<Self, Failure> {
        if outcomes.iter().all(|one| one.device.is_none() || one.outcome.is_err()) {
            let first = outcomes.into_iter().next().map_or(Err(Failure::ShuttingDown), |one| one.outcome);
            return first.map(|report| Self::Done(report.into()));
        }
        let devices = outcomes.into_iter().map(|CommandOutcome { device, outcome }| CommandOnDevice {
            result: match outcome {
                Ok(report) => CommandResult::Done(report.into()),
                Err(failure) => {
                    CommandResult::Failed { error: CommandError { code: ApiError::from(failure).code() } }
                }
            },
            device,
        });
        Ok(Self::PerDevice { devices: devices.collect() })
    }
}

impl From<CommandReport> for CommandDone {
    fn from(CommandReport { loaded, took, before, after }: CommandReport) -> Self {
        let loaded = loaded.into_iter().map(|id| id.0).collect();
        Self { loaded, took_ms: took.into(), memory: MemoryChange { before, after } }
    }
}
