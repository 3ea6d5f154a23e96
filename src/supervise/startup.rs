//! Starting a worker: process, ONNX Runtime, models.

use std::sync::Arc;

use tokio::{task::JoinError, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    policy::LossStage,
    process::Process,
    rpc,
    watchdog::{Budgets, Pings},
    worker_config::WorkerConfig,
    worker_loss::{LossKind, WorkerLoss},
};
use crate::job::{Memory, ModelId, ModelReport, RuntimeReport};

/// A worker that has started, before it runs jobs.
#[derive(Debug)]
pub(super) struct StartedWorker {
    pub(super) process: Process,
    pub(super) models: LoadOutcome,
}

/// What a new worker reported about its device and its models.
#[derive(Debug)]
pub(super) struct LoadOutcome {
    pub(super) runtime: RuntimeReport,
    pub(super) loaded: Vec<(ModelId, ModelReport)>,
    /// A model that cannot be loaded, and why. The models after it were not tried.
    pub(super) failed: Option<(ModelId, String)>,
}

/// A worker that runs jobs.
#[derive(Debug)]
pub(super) struct ActiveWorker {
    pub(super) process: Process,
    pub(super) runtime: RuntimeReport,
    pub(super) ready_since: Instant,
    pub(super) idle_since: Instant,
    /// Jobs that it has finished.
    pub(super) jobs: u64,
    pub(super) memory: Memory,
    pub(super) pings: Pings,
    /// When an idle worker is checked next.
    pub(super) next_check: Instant,
    /// Value of `jobs` when its replacement became due.
    pub(super) replacement_due_at: Option<u64>,
    /// Unloading its last model did not free the model's memory.
    pub(super) leaks_memory: bool,
    /// It is not replaced before this time.
    pub(super) no_replacement_before: Instant,
}

impl ActiveWorker {
    pub(super) fn new(process: Process, runtime: RuntimeReport, budgets: &Budgets) -> Self {
        let now = Instant::now();
        Self {
            process,
            ready_since: now,
            idle_since: now,
            jobs: 0,
            memory: runtime.memory,
            pings: Pings::default(),
            next_check: now + budgets.ping_interval(),
            replacement_due_at: None,
            leaks_memory: false,
            no_replacement_before: now,
            runtime,
        }
    }
}

/// Why a worker did not start.
#[derive(Debug)]
pub(super) struct StartFailure {
    pub(super) stage: LossStage,
    pub(super) loss: WorkerLoss,
}

/// Starts a worker and loads `models` into it. Dropping the future kills the process.
///
/// # Errors
/// [`StartFailure`] when the process or ONNX Runtime cannot be used. A model that cannot be loaded is part of the result.
pub(super) async fn start(
    config: Arc<WorkerConfig>,
    models: Vec<ModelId>,
) -> Result<StartedWorker, StartFailure> {
    let failed = |loss: WorkerLoss| {
        // A new worker would report the same error again.
        let is_permanent = loss.kind == LossKind::StartFailed;
        StartFailure {
            stage: if is_permanent { LossStage::LoadFailed } else { LossStage::BeforeReady },
            loss,
        }
    };
    let mut process = Process::start(&config).map_err(failed)?;
    match load_all(&mut process, &config, &models).await {
        Ok(models) => Ok(StartedWorker { process, models }),
        Err(loss) => Err(failed(process.clean_up(loss).await)),
    }
}

/// Starts a worker as `config` says, asks it for its device and ONNX Runtime, and ends it.
///
/// # Errors
/// Why the device cannot be used, as the worker reports it, or how the worker ended.
pub async fn probe_device(config: &WorkerConfig) -> Result<RuntimeReport, String> {
    let mut process = Process::start(config).map_err(|loss| loss.reason)?;
    match rpc::start(&mut process, config).await {
        Ok(report) => {
            process.shut_down().await;
            Ok(report)
        }
        Err(loss) => Err(process.clean_up(loss).await.reason),
    }
}

async fn load_all(
    process: &mut Process,
    config: &WorkerConfig,
    models: &[ModelId],
) -> Result<LoadOutcome, WorkerLoss> {
    let runtime = rpc::start(process, config).await?;
    let mut loaded = Vec::new();
    for model in models {
        match rpc::load(process, config, model).await? {
            Ok(report) => loaded.push((model.clone(), report)),
            Err(message) => {
                return Ok(LoadOutcome { runtime, loaded, failed: Some((model.clone(), message)) });
            }
        }
    }
    Ok(LoadOutcome { runtime, loaded, failed: None })
}

/// The next worker, which starts while the current one still runs jobs.
#[derive(Debug)]
pub(super) enum Standby {
    Starting(AbortOnDropHandle<Result<StartedWorker, StartFailure>>),
    Started(Box<StartedWorker>),
}

impl Standby {
    pub(super) fn start(config: Arc<WorkerConfig>, models: Vec<ModelId>) -> Self {
        Self::Starting(AbortOnDropHandle::new(tokio::spawn(start(config, models))))
    }

    /// Waits until the worker has started.
    ///
    /// # Errors
    /// Why it did not start.
    pub(super) async fn started(self) -> Result<Box<StartedWorker>, String> {
        match self {
            Self::Started(worker) => Ok(worker),
            Self::Starting(task) => started(task.await),
        }
    }
}

/// Waits until `standby` has started; removes it when that fails. Never completes while there is none. Cancel safe.
///
/// # Errors
/// Why it did not start.
pub(super) async fn wait_for_standby(standby: &mut Option<Standby>) -> Result<(), String> {
    let outcome = match standby {
        None => return std::future::pending().await,
        Some(Standby::Started(_)) => return Ok(()),
        Some(Standby::Starting(task)) => started(task.await),
    };
    *standby = None;
    *standby = Some(Standby::Started(outcome?));
    Ok(())
}

fn started(
    joined: Result<Result<StartedWorker, StartFailure>, JoinError>,
) -> Result<Box<StartedWorker>, String> {
    match joined {
        Ok(Ok(StartedWorker { models: LoadOutcome { failed: Some((model, message)), .. }, .. })) => {
            Err(format!("{model}: {message}"))
        }
        Ok(Ok(worker)) => Ok(Box::new(worker)),
        Ok(Err(failure)) => Err(failure.loss.reason),
        Err(e) => Err(e.to_string()),
    }
}
