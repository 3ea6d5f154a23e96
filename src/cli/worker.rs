//! `eka worker`, and how the parent starts it: the command and configuration of each device's worker.

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
    child_process,
    config::{self, Config},
    device::{affinity, process_memory},
    device_spec::DeviceChoice,
    http::ModelRegistry,
    job::{GpuReport, KeepAlive},
    sandbox::Sandbox,
    supervise::{Budgets, ModelSource, Recycle, WorkerConfig, probe_device},
    units::Bytes,
    wire::{DraftModel, WorkerSpec},
    worker::{self, faults::FaultPlan},
};

/// The subcommand's name.
const NAME: &str = "worker";

/// Flags that `eka serve` passes to its workers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Faults to inject, for tests
    #[arg(long, value_name = "PLAN", hide = true)]
    faults: Option<FaultPlan>,
}

/// Serves the parent over stdin and stdout.
///
/// # Errors
/// When ONNX Runtime cannot be used, the pipe fails, or the device can no longer be used.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    // Logs to stderr, which the parent forwards to its own.
    logging::start_quiet()?;
    if let Err(e) = child_process::end_with_parent() {
        tracing::warn!("this worker cannot be tied to its parent and may outlive it: {e}");
    }
    let frames = private_stdout().context("cannot reserve stdout for frames")?;
    Ok(worker::run(io::stdin(), frames, args.faults.unwrap_or_default())?)
}

/// Reserves stdout for frames. What native libraries print to stdout goes to stderr from here on. Unbuffered, so that a frame
/// is one write.
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

/// Arguments that make a worker inject these faults.
pub(super) fn faults(plan: &FaultPlan) -> Vec<OsString> {
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

/// The command that starts a worker for these models on the first configured device.
///
/// # Errors
/// When the program or a model's files are not found.
pub(super) fn command(config: &Config, models: &[ResolvedModel]) -> anyhow::Result<WorkerConfig> {
    command_on(config, config.engine.device.first(), models)
}

/// The names of the configured devices, if there are several.
pub(super) fn labels(config: &Config) -> Vec<String> {
    let devices = &config.engine.device;
    if devices.all().len() > 1 { devices.labels() } else { Vec::new() }
}

/// The models to serve, and for each configured device, in the order of the settings, how to start its worker. Devices serve the
/// same models, but may use different exports of them.
///
/// # Errors
/// As [`command`], [`resolve_model::models`] and [`gpu`], and when no model can be used.
pub(super) async fn commands(
    config: &Config,
    sandbox: &Sandbox,
) -> anyhow::Result<(ModelRegistry, Vec<WorkerConfig>)> {
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
            // Learned speeds differ between devices.
            let speed_file = format!("pace-{}.json", label.replace(':', "-"));
            command.speed_file = Some(config.model.cache_dir.join(speed_file));
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

/// Pins each worker that may use the CPU to its own cores.
fn pin<'a>(workers: impl Iterator<Item = &'a mut WorkerSpec>) -> anyhow::Result<()> {
    let all = affinity::core_ids()
        .context("the physical cores of this machine cannot be read; set engine.pin_cores = false")?;
    let mut workers: Vec<_> =
        workers.filter(|spec| matches!(spec.device, DeviceChoice::Auto | DeviceChoice::Cpu)).collect();
    let many = workers.len();
    for (number, spec) in workers.iter_mut().enumerate() {
        let threads = spec.threads.unwrap_or_else(affinity::physical_cores);
        spec.processors = engine_args::share(&all, [number, many], threads)?.to_vec();
    }
    Ok(())
}

/// Capabilities of a device's GPU, if an export depends on them. A worker process finds out, because this process never loads
/// a device's libraries.
///
/// # Errors
/// When the only configured device is a GPU that cannot be used. A GPU among several, or of `auto`, is reported by its
/// supervisor.
pub(super) async fn gpu(config: &Config, choice: DeviceChoice) -> anyhow::Result<Option<GpuReport>> {
    if choice == DeviceChoice::Cpu || !resolve_model::is_exporting(config) {
        return Ok(None);
    }
    match probe_device(&command_on(config, choice, &[])?).await {
        Ok(report) => Ok(report.gpu),
        Err(reason) if choice != DeviceChoice::Auto && config.engine.device.all().len() == 1 => {
            Err(anyhow!("device {choice} cannot be used: {reason}; use --device cpu, or run eka doctor"))
                .with_exit(Exit::Machine)
        }
        Err(_) => Ok(None),
    }
}

/// Divides cores and memory between several workers on the CPU, unless the settings set them.
fn shared_out(mut command: WorkerConfig, config: &Config) -> WorkerConfig {
    let cpus = config.engine.device.cpus();
    if command.spec.device != DeviceChoice::Cpu || cpus < 2 {
        return command;
    }
    command.spec.threads.get_or_insert_with(|| (affinity::physical_cores() / cpus).max(1));
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
) -> anyhow::Result<WorkerConfig> {
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
        exact: config.engine.exact,
        cuda_graphs: config.device.cuda_graphs,
        host_pool: config.device.host_pool,
    };
    let half = process_memory::machine_memory().map(|(total, _)| Bytes(total.0 / 2));
    let keep_alive = config.models.keep_alive_ms;
    Ok(WorkerConfig {
        label: None,
        program: env::current_exe().context("cannot find the path of this program")?,
        arguments: vec![NAME.into()],
        spec,
        models: models.iter().map(place).collect::<Result<_, _>>()?,
        model_memory: config.models.memory_bytes.or(half),
        keep_alive: keep_alive.map_or(KeepAlive::Forever, |keep_alive| KeepAlive::For(keep_alive.into())),
        budgets: budgets(&config.watchdog),
        recycle: recycle(&config.recycle),
        speed_file: Some(config.model.cache_dir.join("pace.json")),
        available_memory: || process_memory::machine_memory().map(|(_, available)| available),
    })
}

fn place(model: &ResolvedModel) -> anyhow::Result<ModelSource> {
    let (dir, own) = found(&model.dir)?;
    let mut place = ModelSource { id: model.id.as_str().into(), dir, draft: None, on_disk: own };
    if let Some(draft) = &model.draft {
        let (dir, more) = found(&draft.dir)?;
        place.draft = Some(DraftModel { id: draft.id.as_str().into(), dir });
        place.on_disk = own + more;
    }
    Ok(place)
}

/// A model's canonical directory, and the size of its files.
fn found(dir: &Path) -> anyhow::Result<(PathBuf, Bytes)> {
    // Links are followed; a dangling one counts as empty.
    let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let entries =
        fs::read_dir(dir).with_context(|| format!("cannot read model directory {}", dir.display()))?;
    let sizes = entries.map(|entry| Ok::<_, io::Error>(size(entry?.path())));
    let on_disk = sizes.sum::<Result<u64, _>>().with_context(|| dir.display().to_string())?;
    // Canonical, because it is the key of learned speeds, whatever the working directory.
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
