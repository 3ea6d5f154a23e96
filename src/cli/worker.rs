//! `eka worker`: the child process, and how the parent starts it.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::Path,
};

use anyhow::Context;

use crate::{
    config::Config,
    supervise::{Budgets, WorkerCommand},
    wire::LoadSpec,
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
/// When the model cannot be loaded or the pipe fails.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
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

/// How to start a worker of this program for the model in `dir`.
///
/// # Errors
/// When the program cannot be found.
pub(super) fn command(config: &Config, dir: &Path) -> anyhow::Result<WorkerCommand> {
    let load = LoadSpec {
        model_dir: dir.to_path_buf(),
        onnxruntime_dir: config.onnxruntime.dir.clone(),
        threads: config.engine.threads.map(Into::into),
        prefill_chunk: config.engine.prefill_chunk.get(),
        context_length: config.engine.context_length.map(|n| n.0),
    };
    let program = env::current_exe().context("this program's own file cannot be found")?;
    let watchdog = &config.watchdog;
    let budgets = Budgets {
        load: watchdog.load.into(),
        warm_up: watchdog.warm_up.into(),
        prefill_base: watchdog.prefill_base.into(),
        prefill_factor: watchdog.prefill_factor,
        decode_floor: watchdog.decode_floor.into(),
        decode_factor: watchdog.decode_factor,
        pipe: watchdog.pipe.into(),
    };
    Ok(WorkerCommand { program, arguments: vec![NAME.into()], load, budgets })
}
