//! `eka serve`: settings, model, worker, queue and HTTP, wired together.

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
    device::host::{self, Pace},
    executor::{Executor, Routing},
    http::{self, AppState, Life, Orders, Settings},
    job::{ModelId, Readiness},
    log_queue,
    metrics::{MemoryKind, Metrics, OnDevice},
    otel::{Collector, Options},
    prompt_store::PromptStore,
    supervise::{Fleet, FleetForeman, FleetRunner, FleetView},
    worker::faults::Plan,
};

/// For the last spans to reach their collector, at shutdown.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Longest wait for the last lines of the log to be written after the signal to exit immediately.
const LAST_LINES_AT_ONCE: Duration = Duration::from_millis(200);

/// Connections that may wait to be accepted; the system lowers it to its own limit. The client of one too many tries again after a
/// second, which for a probe is a failure.
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
    /// Faults that workers commit, for tests of what happens then; see `eka::worker::faults`
    // A flag alone: neither settings nor environment, which others than whoever starts it may write.
    #[arg(long, value_name = "SPEC", hide = true)]
    faults: Option<Plan>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When settings, model or address cannot be used, or the model cannot be loaded.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = config::Settings::load(&args.config)?;
    if args.config.print_config {
        return print_config(&settings, args.json).map(|()| ExitCode::SUCCESS);
    }
    if let Some(path) = &args.ready_file {
        ReadyFile::remove_stale(path).with_exit(Exit::Usage)?;
    }
    log_queue::start().context("the thread that writes the log cannot be started")?;
    let level = logging::start(&settings.config.log)?;
    worker::check_cache(&settings.config)?;
    // Before there are other threads, which inherit it.
    host::set_pace(Pace::Prompt);
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

    fn faults(&self) -> Option<&Plan> {
        self.faults.as_ref().filter(|plan| !plan.is_off())
    }
}

/// Prints the settings and where each comes from.
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
    let (fleet, keeping) = Fleet::new(commands, &metrics);
    let readiness = fleet.readiness();
    let (executor, working) = executor(config, &metrics, fleet.runners());
    tokio::spawn(show_own_memory(Arc::clone(&metrics)));
    executor.limit_overtakes(config.queue.max_overtakes);
    route(config, &executor, fleet.view());
    let http = Settings::from(config);
    let (wanted, workers) = (http.max_connections, fleet.runners().len());
    let max_connections = fd_limit::fit(wanted, fd_limit::raise_limit(), workers);
    let scheme = if entry.tls.is_some() { "https" } else { "http" };
    let address = listener.local_addr()?;
    tracing::info!(event = "listening", "serving {} on {scheme}://{address}", catalogue.names());
    if let Some(path) = &args.ready_file {
        let file = ReadyFile::create(path, scheme, address, models).with_exit(Exit::Usage)?;
        tokio::spawn(file.follow(readiness.clone()));
    }
    // Workers have the same, whatever directory they look at it from.
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
    .with_orders(orders(fleet.foreman()))
    .with_saved_prompts(PromptStore::new(saved_prompts))
    .with_devices(devices(&fleet.view()))
    .with_access_control(Arc::clone(&entry.access))
    .with_tls(entry.tls.clone())
    .with_deadlines(entry.deadlines())
    .with_drain(drain.clone())
    .with_log(Arc::new(move |text| level.set(text).map_err(|error| error.to_string())));
    tokio::spawn(entry.watch(executor));
    #[cfg(unix)]
    tokio::spawn(super::systemd::tell(readiness.clone()));
    let mut last = Readiness::Starting;
    let served = http::serve(
        listener,
        state,
        Life {
            beside: async {
                tokio::join!(keeping, working);
            },
            shutdown: ended(readiness.clone(), drain, args.ready_file.clone()),
            finish: async {
                // Asked before the workers are told to end, which is a state of its own.
                last = readiness.borrow().clone();
                fleet.stop().await;
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

fn orders(foreman: FleetForeman) -> Orders {
    Arc::new(move |order| {
        let foreman = foreman.clone();
        Box::pin(async move { foreman.give(order).await })
    })
}

/// The devices by name, where there are several.
fn devices(view: &FleetView) -> Vec<(String, watch::Receiver<Readiness>)> {
    view.devices().filter_map(|(label, readiness)| Some((label?.to_owned(), readiness))).collect()
}

/// Has jobs wait for the device that suits them, where there is a choice.
fn route(config: &Config, executor: &Executor, mut view: FleetView) {
    let most_switches = config.queue.max_switches;
    let has_one_device = view.devices().count() == 1;
    if has_one_device && most_switches.is_none() {
        return;
    }
    let (loaded, open) = (view.clone(), view.clone());
    executor.route(Routing {
        most_switches,
        is_loaded: Arc::new(move |slot, model: &ModelId| loaded.is_loaded(slot, model)),
        is_open: Arc::new(move |slot| has_one_device || open.is_open(slot)),
    });
    let executor = executor.clone();
    tokio::spawn(async move {
        loop {
            view.changed().await;
            executor.look_again();
        }
    });
}

/// Where traces go, if they are collected.
fn collector(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Collector>> {
    let Some(endpoint) = config.trace.collector_url() else { return Ok(None) };
    let (sample_ratio, service_name) =
        (config.trace.sample_ratio, config.trace.service_name.trim().to_owned());
    let options = Options { endpoint, sample_ratio, service_name };
    let collector = Collector::start(options, Arc::clone(metrics));
    Ok(Some(collector.context("traces cannot be sent; set trace.otlp_endpoint")?))
}

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(config.server.bind, config.server.port);
    bind(address)
        .with_context(|| format!("cannot listen on {address}; set server.bind or server.port"))
        .with_exit(Exit::Machine)
}

/// As [`TcpListener::bind`], whose queue of 128 connections a burst of clients fills.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that is started again takes its port from connections that have ended. On Windows the option means sharing it.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn executor(
    config: &Config,
    metrics: &Arc<Metrics>,
    runners: Vec<FleetRunner>,
) -> (Executor, impl Future<Output = ()> + Send + use<>) {
    let run = |runner: FleetRunner| {
        move |job, events, cancel| {
            let runner = runner.clone();
            async move { runner.run(job, events, cancel).await }
        }
    };
    Executor::with_slots(limits(config), Arc::clone(metrics), runners.into_iter().map(run).collect())
}

/// Completes when the server shall end: at a signal, when `/admin/drain` says so, or when no worker will ever run. A
/// second signal ends the process.
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
    super::systemd::stopping();
    tokio::spawn(async move {
        if drain.is_cancelled() {
            // Kubernetes sends SIGTERM when its preStop hook, which may be /admin/drain, has returned.
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

/// Completes with the name of the signal that asks this process to end, when it comes.
#[cfg(unix)]
pub(super) async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be received: this process ends only when killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Completes with the name of the signal that asks this process to end, when it comes.
#[cfg(not(unix))]
pub(super) async fn signal() -> &'static str {
    if let Err(e) = tokio::signal::ctrl_c().await {
        tracing::error!("Ctrl-C cannot be received: {e}; this process ends only when killed");
        return std::future::pending().await;
    }
    "Ctrl-C"
}

/// Keeps this process' memory in the metrics; the worker's comes with its answers.
async fn show_own_memory(metrics: Arc<Metrics>) {
    loop {
        let host::HostMemory { resident, anonymous, .. } = host::memory();
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
