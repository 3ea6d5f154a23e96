//! From a program to a worker with models in it.

use std::sync::Arc;

use tokio::{task::JoinError, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    WorkerCommand,
    exchange::{self, Lost},
    policy::End,
    process::Process,
    watchdog::{Budgets, Pings},
};
use crate::job::{Memory, ModelId, ModelReport, RuntimeReport};

/// A worker that is up.
#[derive(Debug)]
pub(super) struct Booted {
    pub(super) process: Process,
    pub(super) runtime: RuntimeReport,
    pub(super) loaded: Vec<(ModelId, ModelReport)>,
    /// A model that cannot be loaded, and why; those after it were not tried.
    pub(super) failed: Option<(ModelId, String)>,
}

/// A worker that is up, and what it has done since.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) process: Process,
    pub(super) runtime: RuntimeReport,
    pub(super) since: Instant,
    pub(super) jobs: u64,
    pub(super) memory: Memory,
    pub(super) idle_since: Instant,
    pub(super) pings: Pings,
    /// When it is looked at next, if it is idle then.
    pub(super) look_at: Instant,
    /// Jobs that it had run when it was found to be due for replacement.
    pub(super) due_at: Option<u64>,
    /// It holds memory that no model of it accounts for, and no model.
    pub(super) is_spoilt: bool,
    /// Not to be replaced before this.
    pub(super) settled_until: Instant,
}

impl Worker {
    pub(super) fn new(process: Process, runtime: RuntimeReport, budgets: &Budgets) -> Self {
        let now = Instant::now();
        Self {
            process,
            since: now,
            jobs: 0,
            memory: runtime.memory,
            idle_since: now,
            pings: Pings::default(),
            look_at: now + budgets.ping_interval(),
            due_at: None,
            is_spoilt: false,
            settled_until: now,
            runtime,
        }
    }
}

/// A worker that ended, or had to be ended, before it was up.
#[derive(Debug)]
pub(super) struct Unbooted {
    pub(super) end: End,
    pub(super) lost: Lost,
}

/// Starts a worker and loads `models` into it. A future that is dropped takes the process with it.
pub(super) async fn boot(command: Arc<WorkerCommand>, models: Vec<ModelId>) -> Result<Booted, Unbooted> {
    let mut process = Process::start(&command).map_err(|e| {
        let reason = format!("{} cannot be started: {e}", command.program.display());
        Unbooted { end: End::BeforeReady, lost: Lost::new("exited", reason) }
    })?;
    match fill(&mut process, &command, &models).await {
        Ok((runtime, loaded, failed)) => Ok(Booted { process, runtime, loaded, failed }),
        Err(lost) => {
            // What it said itself will be the same the next time.
            let end = if lost.label == "start_failed" { End::LoadFailed } else { End::BeforeReady };
            Err(Unbooted { end, lost: lost.see_off(process).await })
        }
    }
}

/// Starts a worker, asks what computes there, and ends it.
pub(super) async fn ask(command: &WorkerCommand) -> Result<RuntimeReport, String> {
    let start = Process::start(command);
    let mut process = start.map_err(|e| format!("{} cannot be started: {e}", command.program.display()))?;
    match exchange::start(&mut process, command).await {
        Ok(report) => {
            process.shut_down().await;
            Ok(report)
        }
        Err(lost) => Err(lost.see_off(process).await.reason),
    }
}

type Filled = (RuntimeReport, Vec<(ModelId, ModelReport)>, Option<(ModelId, String)>);

async fn fill(process: &mut Process, command: &WorkerCommand, models: &[ModelId]) -> Result<Filled, Lost> {
    let runtime = exchange::start(process, command).await?;
    let mut loaded = Vec::new();
    for model in models {
        match exchange::load(process, command, model).await? {
            Ok(report) => loaded.push((model.clone(), report)),
            Err(message) => return Ok((runtime, loaded, Some((model.clone(), message)))),
        }
    }
    Ok((runtime, loaded, None))
}

/// The next worker, up or getting there while the present one works.
#[derive(Debug)]
pub(super) enum Spare {
    Coming(AbortOnDropHandle<Result<Booted, Unbooted>>),
    Up(Box<Booted>),
}

impl Spare {
    pub(super) fn start(command: Arc<WorkerCommand>, models: Vec<ModelId>) -> Self {
        Self::Coming(AbortOnDropHandle::new(tokio::spawn(boot(command, models))))
    }

    /// Waits until it is up; the error is why it never will be.
    pub(super) async fn ready(self) -> Result<Box<Booted>, String> {
        match self {
            Self::Up(booted) => Ok(booted),
            Self::Coming(coming) => outcome(coming.await),
        }
    }
}

/// Waits until a spare is up, or takes it away and says why it never will be. Nothing happens while there is none. Safe to
/// abandon.
pub(super) async fn settle(spare: &mut Option<Spare>) -> Result<(), String> {
    let outcome = match spare {
        None => return std::future::pending().await,
        Some(Spare::Up(_)) => return Ok(()),
        Some(Spare::Coming(coming)) => outcome(coming.await),
    };
    *spare = None;
    *spare = Some(Spare::Up(outcome?));
    Ok(())
}

fn outcome(joined: Result<Result<Booted, Unbooted>, JoinError>) -> Result<Box<Booted>, String> {
    match joined {
        Ok(Ok(Booted { failed: Some((model, message)), .. })) => Err(format!("{model}: {message}")),
        Ok(Ok(booted)) => Ok(Box::new(booted)),
        Ok(Err(unbooted)) => Err(unbooted.lost.reason),
        Err(e) => Err(e.to_string()),
    }
}
