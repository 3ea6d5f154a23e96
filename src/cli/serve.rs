//! `eka serve`: connects settings, models, workers, queue and HTTP server.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{self, ExitCode},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use tokio::{net::TcpSocket, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, WithExit},
    fd_limit,
    logging::{self, LogLevel},
    output::{self, OutputFlags},
    ready_file::{self, ReadyFile},
    reload::{LiveSettings, limits},
    sandbox, worker,
};
use crate::{
    config::{self, Config, ConfigArgs},
    device::{
        process_memory,
        scheduling::{SchedulingHint, set_scheduling_hint},
    },
    executor::{Executor, Routing},
    http::{self, AppState, Commands, Life, Settings},
    job::{ModelId, Readiness},
    log_queue,
    metrics::{MemoryKind, Metrics, OnDevice},
    otel::{Collector, Options},
    prompt_store::PromptStore,
    supervise::WorkerPool,
    worker::faults::FaultPlan,
};

/// Longest wait for the last spans to be exported at shutdown.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Longest wait for the last log lines after the signal to exit immediately.
const LAST_LINES_AT_ONCE: Duration = Duration::from_millis(200);

/// Length of the accept queue, which the system may lower. A client that finds it full retries after a second, which fails a
/// health probe.
const BACKLOG: u32 = 4096;

/// Serve a model over HTTP
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
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
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// When settings, model or address are invalid, or the model cannot be loaded.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return print_config(&settings, args.json).map(|()| ExitCode::SUCCESS);
    }
    if let Some(path) = &args.ready_file {
        ReadyFile::remove_stale(path).with_exit(Exit::Usage)?;
    }
    log_queue::start().context("cannot start the log's writer thread")?;
    let level = logging::start(&settings.config.log)?;
    worker::check_cache(&settings.config)?;
    // Before other threads start, which inherit it.
    set_scheduling_hint(SchedulingHint::LowLatency);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = settings.config.clone();
    let entry = LiveSettings::open(&args.config, settings, level.clone())?;
    if let Some(faults) = args.faults() {
        tracing::warn!(event = "faults_enabled", "workers inject faults for testing: {faults}");
    }
    runtime.block_on(serve(args, &config, entry, level))
}

impl Args {
    /// A running server writes to the log only, so `--quiet` does not apply.
    pub(super) const fn output(&self) -> OutputFlags {
        OutputFlags { json: self.json, quiet: false }
    }

    fn faults(&self) -> Option<&FaultPlan> {
        self.faults.as_ref().filter(|plan| !plan.is_off())
    }
}

/// Prints the settings with their origins.
///
/// # Errors
/// When stdout cannot be written to.
pub(super) fn print_config(settings: &config::Settings, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return output::document(&settings.to_json());
    }
    output::result(|out| out.write_all(settings.to_toml().as_bytes()))
}

async fn serve(
    args: &Args,
    config: &Config,
    entry: LiveSettings,
    level: LogLevel,
) -> anyhow::Result<ExitCode> {
    let metrics = Arc::new(Metrics::for_devices(&worker::labels(config)));
    let sandbox = sandbox::of_this_program(&metrics)?;
    let (catalogue, mut commands) = worker::commands(config, &sandbox).await?;
    let listener = listen(config)?;
    let faults = args.faults().map(worker::faults).unwrap_or_default();
    commands.iter_mut().for_each(|command| command.arguments.extend(faults.clone()));
    let models = commands.first().map_or(&[][..], |command| &command.models);
    let models: Vec<_> = models.iter().map(|model| model.id.0.to_string()).collect();
    let collector = collector(config, &metrics)?;
    let (workers, supervision) = WorkerPool::new(commands, &metrics);
    let readiness = workers.readiness();
    let (executor, working) = executor(config, &metrics, &workers);
    tokio::spawn(show_own_memory(Arc::clone(&metrics)));
    executor.limit_overtakes(config.queue.max_overtakes);
    route(config, &executor, workers.clone());
    let http = Settings::from(config);
    let max_connections = fd_limit::fit(http.max_connections, fd_limit::raise_limit(), workers.size());
    let scheme = if entry.tls.is_some() { "https" } else { "http" };
    let address = listener.local_addr()?;
    tracing::info!(event = "listening", "serving {} on {scheme}://{address}", catalogue.names());
    if let Some(path) = &args.ready_file {
        let file = ReadyFile::create(path, scheme, address, models).with_exit(Exit::Usage)?;
        tokio::spawn(file.follow(readiness.clone()));
    }
    // Absolute, because workers use it too.
    let saved_prompts = std::path::absolute(&config.engine.prefix_cache_dir)?;
    let drain = CancellationToken::new();
    let state = AppState::new(
        catalogue,
        executor.clone(),
        Arc::clone(&metrics),
        readiness.clone(),
        Settings { max_connections, ..http },
    )
    .with_sandbox(sandbox)
    .with_commands(worker_commands(workers.clone()))
    .with_saved_prompts(PromptStore::new(saved_prompts))
    .with_devices(devices(&workers))
    .with_access_control(Arc::clone(&entry.access))
    .with_tls(entry.tls.clone())
    .with_deadlines(entry.deadlines())
    .with_drain(drain.clone())
    .with_log(Arc::new(move |text| level.set(text).map_err(|error| error.to_string())));
    tokio::spawn(entry.watch(executor));
    #[cfg(unix)]
    tokio::spawn(super::systemd::notify_readiness(readiness.clone()));
    let mut last = Readiness::Starting;
    let served = http::serve(
        listener,
        state,
        Life {
            beside: async {
                tokio::join!(supervision, working);
            },
            shutdown: ended(readiness.clone(), drain, args.ready_file.clone()),
            finish: async {
                // Stopping the workers changes the state.
                last = readiness.borrow().clone();
                workers.stop().await;
            },
        },
    )
    .await;
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

fn worker_commands(workers: WorkerPool) -> Commands {
    Arc::new(move |command| {
        let workers = workers.clone();
        Box::pin(async move { workers.command(command).await })
    })
}

/// The devices by name, if there are several.
fn devices(workers: &WorkerPool) -> Vec<(String, watch::Receiver<Readiness>)> {
    workers.devices().filter_map(|(label, readiness)| Some((label?.to_owned(), readiness))).collect()
}

/// Makes the queue wait for the device that has a job's model, if there is a choice.
fn route(config: &Config, executor: &Executor, mut workers: WorkerPool) {
    let most_switches = config.queue.max_switches;
    let has_one_device = workers.size() == 1;
    if has_one_device && most_switches.is_none() {
        return;
    }
    let (loaded, open) = (workers.clone(), workers.clone());
    executor.route(Routing {
        most_switches,
        is_loaded: Arc::new(move |slot, model: &ModelId| loaded.is_loaded(slot, model)),
        is_open: Arc::new(move |slot| has_one_device || open.is_open(slot)),
    });
    let executor = executor.clone();
    tokio::spawn(async move {
        loop {
            workers.changed().await;
            executor.look_again();
        }
    });
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

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(config.server.bind, config.server.port);
    bind(address)
        .with_context(|| format!("cannot listen on {address}; set server.bind or server.port"))
        .with_exit(Exit::Machine)
}

/// Like [`TcpListener::bind`], which has a queue of only 128 connections.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted server takes over the port from closed connections. On Windows the option would share the port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn executor(
    config: &Config,
    metrics: &Arc<Metrics>,
    workers: &WorkerPool,
) -> (Executor, impl Future<Output = ()> + Send + use<>) {
    let run = |slot| {
        let workers = workers.clone();
        move |job, events, cancel| {
            let workers = workers.clone();
            async move { workers.run(slot, job, events, cancel).await }
        }
    };
    Executor::with_slots(limits(config), Arc::clone(metrics), (0..workers.size()).map(run).collect())
}

/// Completes when the server must shut down: at a signal, after `/admin/drain`, or when no worker can ever start. A second
/// signal exits the process.
async fn ended(
    mut readiness: watch::Receiver<Readiness>,
    drain: CancellationToken,
    ready_file: Option<PathBuf>,
) {
    let hopeless = |state: &Readiness| matches!(state, Readiness::Down { retry_in: None, .. });
    tokio::select! {
        name = signal() => tracing::info!(
            event = "shutdown_started",
            "{name}: shutting down gracefully; send the signal again to exit immediately"
        ),
        () = drain.cancelled() => {
            tracing::info!(event = "shutdown_started", "/admin/drain: shutting down gracefully");
        }
        _ = readiness.wait_for(hopeless) => {}
    }
    #[cfg(unix)]
    super::systemd::notify_stopping();
    tokio::spawn(async move {
        if drain.is_cancelled() {
            // Kubernetes sends SIGTERM after its preStop hook, which may call /admin/drain.
            let name = signal().await;
            tracing::info!("{name}: already shutting down; send the signal again to exit immediately");
        }
        // Some senders signal twice at once: the process, and its process group.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let name = signal().await;
        tracing::warn!(event = "shutdown_forced", "{name}: exiting immediately");
        ready_file.as_deref().inspect(|path| ready_file::remove_own(path));
        log_queue::flush(LAST_LINES_AT_ONCE);
        process::exit(Exit::Interrupted.code().into());
    });
}

/// Completes with the name of the next termination signal.
#[cfg(unix)]
pub(super) async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot receive signals; stop this process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Completes with the name of the next termination signal.
#[cfg(not(unix))]
pub(super) async fn signal() -> &'static str {
    if let Err(e) = tokio::signal::ctrl_c().await {
        tracing::error!("cannot receive Ctrl-C: {e}; stop this process in the task manager");
        return std::future::pending().await;
    }
    "Ctrl-C"
}

/// Updates the metrics of this process's memory. Those of workers come with their answers.
async fn show_own_memory(metrics: Arc<Metrics>) {
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
