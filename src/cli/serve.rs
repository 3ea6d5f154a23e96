//! `eka serve`: connects settings, models, workers, queue and HTTP server.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    backend::{Backend, Command, Role},
    exit::{Exit, WithExit},
    fd_limit, listener,
    logging::{self, LogLevel},
    output::OutputFlags,
    ready_file::ReadyFile,
    reload::LiveSettings,
    sandbox, settings, shutdown, worker, worker_configs,
};
use crate::{
    config::{self, Config, ConfigArgs},
    device::{
        process_memory,
        scheduling::{SchedulingHint, set_scheduling_hint},
    },
    http::{self, AppState, Life, ModelRegistry, Settings},
    job::Readiness,
    log_queue,
    metrics::{MemoryKind, Metrics, OnDevice},
    otel::{Collector, Options},
    supervise::WorkerConfig,
    worker::faults::FaultPlan,
};

/// Longest wait for the last spans to be exported at shutdown.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Serve a model over HTTP
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the settings as JSON, with --print-config
    #[arg(long, requires = "print_config")]
    json: bool,
    /// Write the server's URL, address, process id and state to this file, as JSON, when it listens; removed at exit
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Faults for workers to inject, for tests; see `eka::worker::faults`
    // Only a flag: the file and the environment may be written by other users.
    #[arg(long, value_name = "SPEC", hide = true)]
    faults: Option<FaultPlan>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// When settings, model or address are invalid, or the model cannot be loaded.
pub(super) fn run(args: &Args, command: Command) -> anyhow::Result<ExitCode> {
    let mut settings = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return settings::print_config(&settings, args.json).map(|()| ExitCode::SUCCESS);
    }
    let role = Role::of(command, &mut settings)?;
    if let Some(path) = &args.ready_file {
        ReadyFile::remove_stale(path).with_exit(Exit::Usage)?;
    }
    log_queue::start().context("cannot start the log's writer thread")?;
    let level = logging::start(&settings.config.log)?;
    worker_configs::check_cache_dir(&settings.config)?;
    // Before other threads start, which inherit it.
    set_scheduling_hint(SchedulingHint::LowLatency);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = settings.config.clone();
    let live = LiveSettings::open(&args.config, settings, level.clone())?;
    if let Some(faults) = args.faults() {
        tracing::warn!(event = "faults_enabled", "workers inject faults for testing: {faults}");
    }
    runtime.block_on(serve(args, (&config, role), live, level))
}

impl Args {
    /// A running server writes to the log only, so `--quiet` does not apply.
    pub(super) const fn output(&self) -> OutputFlags {
        OutputFlags { json: self.json, quiet: false }
    }

    fn faults(&self) -> Option<&FaultPlan> {
        self.faults.as_ref().filter(|plan| !plan.is_off())
    }

    fn with_faults(&self, mut workers: Vec<WorkerConfig>) -> Vec<WorkerConfig> {
        let faults = self.faults().map(worker::faults).unwrap_or_default();
        workers.iter_mut().for_each(|worker| worker.arguments.extend(faults.clone()));
        workers
    }
}

async fn serve(
    args: &Args,
    (config, role): (&Config, Role),
    live: LiveSettings,
    level: LogLevel,
) -> anyhow::Result<ExitCode> {
    let metrics = Metrics::for_devices(&worker_configs::labels(config));
    let metrics = Arc::new(if role == Role::Single { metrics } else { metrics.with_cluster() });
    let sandbox = sandbox::of_this_program(&metrics)?;
    let collector = collector(config, &metrics)?;
    let inject = |workers| args.with_faults(workers);
    let drain = CancellationToken::new();
    let mut backend = Backend::start(role, config, (&metrics, &sandbox), (&inject, &drain)).await?;
    backend.models = backend.models.with_aliases(&config.models.aliases.0).with_exit(Exit::Usage)?;
    backend.models.adapters.scan_and_log();
    tokio::spawn(backend.models.adapters.clone().watch(config.models.adapters_scan_ms.into()));
    let listeners = listener::listen(config)?;
    tokio::spawn(publish_memory(Arc::clone(&metrics)));
    let scheme = if live.tls.is_some() { "https" } else { "http" };
    let readiness = backend.readiness.clone();
    announce(args, &backend.models, &format!("{scheme}://{}", listeners.address), &readiness)?;
    let settings = http_settings(config, backend.workers);
    let Backend { models, executor, beside, on_shutdown, finish, .. } = backend;
    let mut state =
        AppState::new(models, executor.clone(), Arc::clone(&metrics), readiness.clone(), settings);
    state.sandbox = Some(sandbox);
    state.commands = backend.commands;
    state.drain_node = backend.drain_node;
    state.serves = backend.serves;
    state.saved = backend.saved;
    state.devices = backend.devices;
    state.only_operates = role == Role::Node;
    state.access = Arc::clone(&live.access);
    state.tls = live.tls.clone();
    state.deadlines = live.deadlines();
    state.drain = drain.clone();
    state.set_log_level = Some(Arc::new(move |text| level.set(text).map_err(|error| error.to_string())));
    tokio::spawn(live.watch(executor));
    #[cfg(unix)]
    tokio::spawn(super::systemd::notify_readiness(readiness.clone()));
    let mut last = Readiness::Starting;
    let requested = shutdown::requested(readiness.clone(), drain, args.ready_file.clone());
    let life = Life {
        beside,
        shutdown: async {
            requested.await;
            on_shutdown();
        },
        finish: async {
            // Stopping the workers changes the state.
            last = readiness.borrow().clone();
            finish.await;
        },
    };
    let served = http::serve(listeners.all, state, life).await;
    drop(listeners.files);
    if let Some(collector) = collector {
        collector.finish(LAST_SPANS.min(config.server.grace_ms.into()));
    }
    served.context("the HTTP server failed")?;
    match last {
        Readiness::Down { reason, retry_in: None } => {
            Err(anyhow!("the model cannot be loaded: {reason}")).with_exit(Exit::without_worker(&metrics))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Logs that the server listens at `url`, and writes the ready file.
fn announce(
    args: &Args,
    models: &ModelRegistry,
    url: &str,
    readiness: &watch::Receiver<Readiness>,
) -> anyhow::Result<()> {
    tracing::info!(event = "listening", "serving {} on {url}", models.names());
    if let Some(path) = &args.ready_file {
        let file = ReadyFile::create(path, url, models.usable_ids()).with_exit(Exit::Usage)?;
        tokio::spawn(file.follow(readiness.clone()));
    }
    Ok(())
}

/// Settings of the HTTP server, with a number of connections that the limit of open files allows.
fn http_settings(config: &Config, workers: usize) -> Settings {
    let settings = Settings::from(config);
    let max_connections = fd_limit::fit(settings.max_connections, fd_limit::raise_limit(), workers);
    Settings { max_connections, ..settings }
}

/// The trace collector, if configured.
fn collector(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Collector>> {
    let Some(endpoint) = config.trace.collector_url() else { return Ok(None) };
    let (sample_ratio, service_name) =
        (config.trace.sample_ratio, config.trace.service_name.trim().to_owned());
    let options = Options { endpoint, sample_ratio, service_name };
    let collector = Collector::start(options, Arc::clone(metrics));
    Ok(Some(collector.context("cannot send traces; check trace.otlp_endpoint")?))
}

/// Updates the metrics of this process's memory. Those of workers come with their answers.
async fn publish_memory(metrics: Arc<Metrics>) {
    loop {
        let process_memory::ProcessMemory { resident, anonymous, .. } = process_memory::memory();
        for (kind, bytes) in [("resident", resident), ("anonymous", anonymous)] {
            if let Some(bytes) = bytes {
                let kind = MemoryKind { process: "parent", kind, device: OnDevice::default() };
                let gauge = metrics.memory.get_or_create(&kind);
                gauge.set(i64::try_from(bytes.0).unwrap_or(i64::MAX));
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
