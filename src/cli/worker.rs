//! `eka worker`: the child process, and how the parent starts it.

use std::{env, io, path::Path};

use anyhow::Context;

use crate::{
    config::Config,
    supervise::{Budgets, WorkerCommand},
    wire::LoadSpec,
    worker,
};

/// The subcommand's name.
const NAME: &str = "worker";

/// Serves the parent over stdin and stdout.
///
/// # Errors
/// When the model cannot be loaded or the pipe fails.
pub(super) fn run() -> anyhow::Result<()> {
    // Unbuffered: a frame is one write, and the parent shall see it at once.
    Ok(worker::run(io::stdin(), io::stdout())?)
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
