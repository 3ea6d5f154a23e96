//! Requests to a worker and their answers, each within its time limit.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    policy,
    process::Process,
    restored_prompts::RestoredPrompt,
    watchdog::Budgets,
    worker_config::WorkerConfig,
    worker_loss::{LossKind, WorkerLoss},
};
use crate::{
    job::{Failure, Memory, ModelId, ModelReport, RuntimeReport},
    wire::{FromWorker, PROTOCOL, ToWorker},
};

/// Sends a frame. A worker that was silent for a while is pinged first, so that a hung one is found within the time of a ping
/// and not within the longer time of the request.
pub(super) async fn send(
    worker: &mut Process,
    message: &ToWorker,
    budgets: &Budgets,
) -> Result<(), WorkerLoss> {
    let is_silent = worker.silence().is_some_and(|silence| silence >= policy::IDLE);
    if is_silent && !worker.ping_pending() {
        send_without_ping(worker, &ToWorker::Ping, budgets).await?;
    }
    if worker.ping_pending() {
        match receive(worker, budgets.idle, "was idle").await? {
            FromWorker::Pong => {}
            other => return Err(unexpected(&other, "was idle")),
        }
    }
    send_without_ping(worker, message, budgets).await
}

/// Sends a frame without a ping before it.
pub(super) async fn send_without_ping(
    worker: &mut Process,
    message: &ToWorker,
    budgets: &Budgets,
) -> Result<(), WorkerLoss> {
    let limit = budgets.pipe;
    match timeout(limit, worker.send(message)).await {
        Ok(sent) => sent.map_err(|e| WorkerLoss::new(LossKind::Crashed, e.to_string())),
        Err(_) => {
            let seconds = limit.as_secs_f64();
            Err(WorkerLoss::hung(format!("the worker did not read its pipe for {seconds:.1} s")))
        }
    }
}

/// Sends a new worker its settings; the answer describes its device.
pub(super) async fn start(worker: &mut Process, config: &WorkerConfig) -> Result<RuntimeReport, WorkerLoss> {
    let budgets = &config.budgets;
    send(worker, &ToWorker::Start(config.spec.clone()), budgets).await?;
    let doing = "started";
    match receive(worker, budgets.load, doing).await? {
        FromWorker::Hello { protocol: PROTOCOL } => {}
        FromWorker::Hello { protocol } => {
            return Err(WorkerLoss::protocol(format!(
                "the worker uses protocol {protocol}, this server {PROTOCOL}: the executable was replaced while the server \
                 was running; restart the server"
            )));
        }
        other => return Err(unexpected(&other, doing)),
    }
    match receive(worker, budgets.load, doing).await? {
        FromWorker::Started(report) => Ok(report),
        FromWorker::StartFailed { message } => Err(WorkerLoss::new(LossKind::StartFailed, message)),
        other => Err(unexpected(&other, doing)),
    }
}

/// Loads a model. The inner error says why the model cannot be loaded; the worker keeps running.
pub(super) async fn load(
    worker: &mut Process,
    config: &WorkerConfig,
    model: &ModelId,
) -> Result<Result<ModelReport, String>, WorkerLoss> {
    let Some(source) = config.source(model) else { return Ok(Err("unknown model".into())) };
    let budgets = &config.budgets;
    let (dir, draft) = (source.dir.clone(), source.draft.clone());
    send(worker, &ToWorker::Load { model: model.clone(), dir, draft }, budgets).await?;
    let doing = format!("loaded {model}");
    match receive(worker, budgets.load, &doing).await? {
        FromWorker::Loaded(loaded) if loaded == *model => {}
        FromWorker::LoadFailed { message, .. } => return Ok(Err(message)),
        other => return Err(unexpected(&other, &doing)),
    }
    let doing = format!("ran {model} for the first time");
    match receive(worker, budgets.warm_up, &doing).await? {
        FromWorker::Ready { report, .. } => Ok(Ok(report)),
        FromWorker::LoadFailed { message, .. } => Ok(Err(message)),
        other => Err(unexpected(&other, &doing)),
    }
}

/// Unloads a model; returns the worker's memory afterwards.
pub(super) async fn unload(
    worker: &mut Process,
    config: &WorkerConfig,
    model: &ModelId,
) -> Result<Memory, WorkerLoss> {
    free(worker, config, ToWorker::Unload(model.clone()), &format!("unloaded {model}")).await
}

/// Frees memory that no job needs; returns the worker's memory afterwards.
pub(super) async fn trim(worker: &mut Process, config: &WorkerConfig) -> Result<Memory, WorkerLoss> {
    free(worker, config, ToWorker::Trim, "trimmed its memory").await
}

/// Drops a restored prompt; returns the worker's memory afterwards.
pub(super) async fn forget(
    worker: &mut Process,
    config: &WorkerConfig,
    name: String,
) -> Result<Memory, WorkerLoss> {
    free(worker, config, ToWorker::Forget(name), "dropped a restored prompt").await
}

async fn free(
    worker: &mut Process,
    config: &WorkerConfig,
    request: ToWorker,
    doing: &str,
) -> Result<Memory, WorkerLoss> {
    send(worker, &request, &config.budgets).await?;
    match (request, receive(worker, config.budgets.warm_up, doing).await?) {
        (ToWorker::Unload(_), FromWorker::Unloaded { memory, .. })
        | (ToWorker::Trim, FromWorker::Trimmed { memory })
        | (ToWorker::Forget(_), FromWorker::Forgotten { memory }) => Ok(memory),
        (_, other) => Err(unexpected(&other, doing)),
    }
}

/// Restores a saved prompt; returns the worker's memory afterwards. The inner error concerns the prompt's file only. The file
/// can be as large as a model, so the time limit is that of loading one.
pub(super) async fn restore(
    worker: &mut Process,
    config: &WorkerConfig,
    prompt: &RestoredPrompt,
) -> Result<Result<Memory, Failure>, WorkerLoss> {
    let RestoredPrompt { model, name, file, salt } = prompt.clone();
    let doing = format!("restored the saved prompt {name}");
    send(worker, &ToWorker::Restore { model, name, file, salt }, &config.budgets).await?;
    match receive(worker, config.budgets.load, &doing).await? {
        FromWorker::Restored { memory } => Ok(Ok(memory)),
        FromWorker::NotRestored { failure } => Ok(Err(failure)),
        other => Err(unexpected(&other, &doing)),
    }
}

async fn receive(worker: &mut Process, limit: Duration, doing: &str) -> Result<FromWorker, WorkerLoss> {
    let answer = async {
        loop {
            match worker.next().await {
                // Sent before the request arrived. The answer has newer numbers.
                Some(Ok(FromWorker::AutoTrimmed { .. })) => {}
                other => return other,
            }
        }
    };
    match timeout(limit, answer).await {
        Ok(Some(Ok(frame))) => Ok(frame),
        Ok(other) => Err(WorkerLoss::from_frame(other)),
        Err(_) => Err(WorkerLoss::hung(format!(
            "no answer for {:.1} s while the worker {doing}",
            limit.as_secs_f64()
        ))),
    }
}

fn unexpected(frame: &FromWorker, doing: &str) -> WorkerLoss {
    WorkerLoss::protocol(format!("unexpected {frame:?} while the worker {doing}"))
}
