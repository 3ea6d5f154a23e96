//! `eka worker`: the child process, and how the parent starts it.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

use super::{
    engine_args,
    exit::{Exit, WithExit},
    logging, private_dir,
    resolve_model::{self, ResolvedModel},
    served_models::ServedModels,
};
use crate::{
    config::{self, Config},
    device::{cores, host},
    device_spec::DeviceChoice,
    http::ModelRegistry,
    job::{GpuReport, KeepAlive},
    sandbox::Sandbox,
    supervise::{Budgets, Place, Recycle, WorkerCommand, ask_device},
    units::Bytes,
    wire::{DraftModel, WorkerSpec},
    worker::{self, faults::Plan},
};

/// The subcommand's name.
const NAME: &str = "worker";

/// What `eka serve` says to its workers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Faults to commit, for tests of what happens then
    #[arg(long, value_name = "SPEC", hide = true)]
    faults: Option<Plan>,
}

/// Serves the parent over stdin and stdout.
///
/// # Errors
/// When ONNX Runtime cannot be used, the pipe fails, or the device can no longer be used.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    // To stderr, which the parent passes on.
    logging::start_quiet()?;
    die_with_parent();
    let frames = private_stdout().context("stdout cannot be kept apart for frames")?;
    Ok(worker::run(io::stdin(), frames, args.faults.unwrap_or_default())?)
}

/// Has the system kill this process when its parent is gone. The end of stdin says so as well, on every system, but a
/// process that is stopped or hangs in a driver does not read it: only Linux ends that one too.
///
/// If the parent ended before this call, stdin has ended too, so that case is covered. The signal comes when the *thread*
/// that started this process ends: see [`WorkerCommand`].
fn die_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        tracing::warn!("this worker ends with its parent only while it reads its input: {e}");
    }
}

/// Stdout for frames alone: whatever else prints there, as native libraries do, from here on prints to stderr.
/// Unbuffered: a frame is one write, and the parent shall see it at once.
#[cfg(unix)]
pub(super) fn private_stdout() -> io::Result<impl Write + Send + 'static> {
    use std::{fs::File, os::fd::AsFd};

    let frames = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(File::from(frames))
}

#[cfg(not(unix))]
pub(super) fn private_stdout() -> io::Result<impl Write + Send + 'static> {
    Ok(io::stdout())
}

/// What to add to a worker's arguments for it to commit these faults.
pub(super) fn faults(plan: &Plan) -> Vec<OsString> {
    if plan.is_off() { Vec::new() } else { vec!["--faults".into(), plan.to_string().into()] }
}

/// Checks that no other user can write to the default cache directory.
///
/// # Errors
/// When another user can.
pub(super) fn check_cache(config: &Config) -> anyhow::Result<()> {
    if config.model.cache_dir.is_default() {
        private_dir::ensure(&config.model.cache_dir, "set model.cache_dir").with_exit(Exit::Usage)?;
    }
    Ok(())
}

/// How to start a worker of this program for these models, on the first device of the settings.
///
/// # Errors
/// When the program or a model's files cannot be found.
pub(super) fn command(config: &Config, models: &[ResolvedModel]) -> anyhow::Result<WorkerCommand> {
    command_on(config, config.engine.device.first(), models)
}

/// The devices of the settings by name, where there are several.
pub(super) fn labels(config: &Config) -> Vec<String> {
    let devices = &config.engine.device;
    if devices.all().len() > 1 { devices.labels() } else { Vec::new() }
}

/// The models to serve, and how to start a worker for them on each device of the settings, in the settings' order. Devices
/// differ in the exports that they get, and in nothing else.
///
/// # Errors
/// As [`command`] and [`resolve_model::models`], when no model can be used, or no device that something is to be exported for.
pub(super) async fn commands(
    config: &Config,
    sandbox: &Sandbox,
) -> anyhow::Result<(ModelRegistry, Vec<WorkerCommand>)> {
    let devices = &config.engine.device;
    let mut found = Vec::new();
    for choice in devices.all() {
        found.push(resolve_model::models(config, gpu(config, *choice).await?)?);
    }
    let lineup = ServedModels::open(found, sandbox).await?;
    let mut commands = Vec::new();
    for ((choice, label), models) in devices.all().iter().zip(devices.labels()).zip(&lineup.devices) {
        let mut command = shared_out(command_on(config, *choice, models)?, config);
        if devices.all().len() > 1 {
            // Devices differ in speed.
            let pace_file = format!("pace-{}.json", label.replace(':', "-"));
            command.pace_file = Some(config.model.cache_dir.join(pace_file));
            command.label = Some(label);
        }
        commands.push(command);
    }
    if config.engine.pin_cores {
        pin(commands.iter_mut().map(|command| &mut command.spec))
            .context("engine.pin_cores")
            .with_exit(Exit::Machine)?;
    }
    Ok((lineup.catalogue, commands))
}

/// Gives each of `workers` that may compute on the CPU cores of its own.
fn pin<'a>(workers: impl Iterator<Item = &'a mut WorkerSpec>) -> anyhow::Result<()> {
    let all = cores::cores().context("which processors are cores is not known")?;
    let mut workers: Vec<_> =
        workers.filter(|spec| matches!(spec.device, DeviceChoice::Auto | DeviceChoice::Cpu)).collect();
    let many = workers.len();
    for (number, spec) in workers.iter_mut().enumerate() {
        let threads = spec.threads.unwrap_or_else(host::physical_cores);
        spec.processors = engine_args::share(&all, [number, many], threads)?.to_vec();
    }
    Ok(())
}

/// What the GPU can do that a device is, if it is one and that has to be known. A worker says so, as this process loads no
/// device's libraries.
///
/// # Errors
/// When it is to be a GPU, alone, and cannot be used. Otherwise the keeper of its worker says so, or another device serves.
pub(super) async fn gpu(config: &Config, choice: DeviceChoice) -> anyhow::Result<Option<GpuReport>> {
    if choice == DeviceChoice::Cpu || !resolve_model::is_exporting(config) {
        return Ok(None);
    }
    match ask_device(&command_on(config, choice, &[])?).await {
        Ok(report) => Ok(report.gpu),
        Err(reason) if choice != DeviceChoice::Auto && config.engine.device.all().len() == 1 => {
            Err(anyhow!("the model cannot be loaded: {reason}")).with_exit(Exit::Machine)
        }
        Err(_) => Ok(None),
    }
}

/// What the settings do not say is shared out among workers on the CPU: its cores, and the machine's memory.
fn shared_out(mut command: WorkerCommand, config: &Config) -> WorkerCommand {
    let cpus = config.engine.device.cpus();
    if command.spec.device != DeviceChoice::Cpu || cpus < 2 {
        return command;
    }
    command.spec.threads.get_or_insert_with(|| (host::physical_cores() / cpus).max(1));
    if config.models.memory_bytes.is_none() {
        let share = |all: Bytes| Bytes(all.0 / u64::try_from(cpus).unwrap_or(1));
        command.model_memory = command.model_memory.map(share);
    }
    command
}

fn command_on(
    config: &Config,
    device: DeviceChoice,
    models: &[ResolvedModel],
) -> anyhow::Result<WorkerCommand> {
    let spec = WorkerSpec {
        onnxruntime_dir: config.onnxruntime.dir.clone(),
        threads: config.engine.threads.map(Into::into),
        processors: Vec::new(),
        own_operators: config.engine.own_operators,
        kv_cache: config.engine.kv_cache,
        prefill_chunk: config.engine.prefill_chunk.get(),
        context_length: config.engine.context_length.map(|n| n.0),
        device,
        device_memory: config.device.memory_limit_bytes,
        trim: config.device.trim,
        kv_keep: config.device.kv_keep_bytes,
        prefix_cache: config.engine.prefix_cache_bytes,
        draft_tokens: config.engine.draft_tokens,
        cuda_graphs: config.device.cuda_graphs,
        host_pool: config.device.host_pool,
    };
    let half = host::machine_memory().map(|(total, _)| Bytes(total.0 / 2));
    let keep_alive = config.models.keep_alive_ms;
    Ok(WorkerCommand {
        label: None,
        program: env::current_exe().context("this program's own file cannot be found")?,
        arguments: vec![NAME.into()],
        spec,
        models: models.iter().map(place).collect::<Result<_, _>>()?,
        model_memory: config.models.memory_bytes.or(half),
        keep_alive: keep_alive.map_or(KeepAlive::Forever, |keep_alive| KeepAlive::For(keep_alive.into())),
        budgets: budgets(&config.watchdog),
        recycle: recycle(&config.recycle),
        pace_file: Some(config.model.cache_dir.join("pace.json")),
        available_memory: || host::machine_memory().map(|(_, available)| available),
    })
}

fn place(model: &ResolvedModel) -> anyhow::Result<Place> {
    let (dir, own) = found(&model.dir)?;
    let mut place = Place { id: model.id.as_str().into(), dir, draft: None, on_disk: own };
    if let Some(draft) = &model.draft {
        let (dir, more) = found(&draft.dir)?;
        place.draft = Some(DraftModel { id: draft.id.as_str().into(), dir });
        place.on_disk = own + more;
    }
    Ok(place)
}

/// A model's directory by its whole path, and the size of its files.
fn found(dir: &Path) -> anyhow::Result<(PathBuf, Bytes)> {
    // Links are followed; a dangling one counts nothing.
    let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let sizes = fs::read_dir(dir)?.map(|entry| Ok::<_, io::Error>(size(entry?.path())));
    let on_disk = sizes.sum::<Result<u64, _>>().with_context(|| dir.display().to_string())?;
    // The key of what is learned about it, so it is the same whatever directory the server is started in.
    let dir = fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
    Ok((dir, Bytes(on_disk)))
}

fn budgets(watchdog: &config::Watchdog) -> Budgets {
    Budgets {
        load: watchdog.load_ms.into(),
        warm_up: watchdog.warm_up_ms.into(),
        prefill_base: watchdog.prefill_base_ms.into(),
        prefill_factor: watchdog.prefill_factor,
        decode_floor: watchdog.decode_floor_ms.into(),
        decode_factor: watchdog.decode_factor,
        pipe: watchdog.pipe_ms.into(),
        idle: watchdog.idle_ms.into(),
    }
}

fn recycle(rules: &config::Recycle) -> Recycle {
    Recycle {
        after_jobs: rules.after_jobs,
        after: rules.after_ms.map(Into::into),
        growth: rules.memory_growth_bytes,
        between_requests: rules.between_requests,
    }
}
