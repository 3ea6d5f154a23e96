//! `eka worker`: the child process, and how the parent starts it.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
};

use anyhow::Context;

use super::{logging, prepare::Prepared};
use crate::{
    config::{self, Config},
    device::host,
    job::KeepAlive,
    supervise::{Budgets, Place, Recycle, WorkerCommand},
    units::Bytes,
    wire::WorkerSpec,
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
    let frames = private_stdout().context("stdout cannot be kept apart for frames")?;
    Ok(worker::run(io::stdin(), frames, args.faults.unwrap_or_default())?)
}

/// Stdout for frames alone: whatever else prints there, as native libraries do, from here on prints to stderr.
/// Unbuffered: a frame is one write, and the parent shall see it at once.
#[cfg(unix)]
fn private_stdout() -> io::Result<impl Write + 'static> {
    use std::{fs::File, os::fd::AsFd};

    let frames = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(File::from(frames))
}

#[cfg(not(unix))]
fn private_stdout() -> io::Result<impl Write + 'static> {
    Ok(io::stdout())
}

/// What to add to a worker's arguments for it to commit these faults.
pub(super) fn faults(plan: &Plan) -> Vec<OsString> {
    if plan.is_off() { Vec::new() } else { vec!["--faults".into(), plan.to_string().into()] }
}

/// How to start a worker of this program for these models.
///
/// # Errors
/// When the program or a model's files cannot be found.
pub(super) fn command(config: &Config, models: &[Prepared]) -> anyhow::Result<WorkerCommand> {
    let spec = WorkerSpec {
        onnxruntime_dir: config.onnxruntime.dir.clone(),
        threads: config.engine.threads.map(Into::into),
        prefill_chunk: config.engine.prefill_chunk.get(),
        context_length: config.engine.context_length.map(|n| n.0),
        device: config.engine.device,
        device_memory: config.device.memory_limit,
        trim: config.device.trim,
        kv_keep: config.device.kv_keep,
        host_pool: config.device.host_pool,
    };
    let half = host::machine_memory().map(|(total, _)| Bytes(total.0 / 2));
    let keep_alive = config.models.keep_alive;
    Ok(WorkerCommand {
        program: env::current_exe().context("this program's own file cannot be found")?,
        arguments: vec![NAME.into()],
        spec,
        models: models.iter().map(place).collect::<Result<_, _>>()?,
        model_memory: config.models.memory.or(half),
        keep_alive: keep_alive.map_or(KeepAlive::Forever, |keep_alive| KeepAlive::For(keep_alive.into())),
        budgets: budgets(&config.watchdog),
        recycle: recycle(&config.recycle),
        pace_file: Some(config.model.cache_dir.join("pace.json")),
        available_memory: || host::machine_memory().map(|(_, available)| available),
    })
}

fn place(model: &Prepared) -> anyhow::Result<Place> {
    let sizes = fs::read_dir(&model.dir)?.map(|entry| Ok::<_, io::Error>(entry?.metadata()?.len()));
    let on_disk = sizes.sum::<Result<u64, _>>().with_context(|| model.dir.display().to_string())?;
    // The key of what is learned about it, so it is the same whatever directory the server is started in.
    let dir = fs::canonicalize(&model.dir).with_context(|| model.dir.display().to_string())?;
    Ok(Place { id: model.id.as_str().into(), dir, on_disk: Bytes(on_disk) })
}

fn budgets(watchdog: &config::Watchdog) -> Budgets {
    Budgets {
        load: watchdog.load.into(),
        warm_up: watchdog.warm_up.into(),
        prefill_base: watchdog.prefill_base.into(),
        prefill_factor: watchdog.prefill_factor,
        decode_floor: watchdog.decode_floor.into(),
        decode_factor: watchdog.decode_factor,
        pipe: watchdog.pipe.into(),
    }
}

fn recycle(rules: &config::Recycle) -> Recycle {
    Recycle {
        after_jobs: rules.after_jobs,
        after: rules.after.map(Into::into),
        growth: rules.memory_growth,
        between_requests: rules.between_requests,
    }
}
