//! `eka worker`: the child process that owns the model and the device.

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;

use super::{exit::Exit, logging};
use crate::{
    child_process,
    worker::{self, WorkerError, faults::FaultPlan},
};

/// The subcommand's name.
pub(super) const NAME: &str = "worker";

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
pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Logs to stderr, which the parent forwards to its own.
    logging::start_quiet()?;
    if let Err(e) = child_process::end_with_parent() {
        tracing::warn!("this worker cannot be tied to its parent and may outlive it: {e}");
    }
    let frames = private_stdout().context("cannot reserve stdout for frames")?;
    match worker::run(io::stdin(), frames, args.faults.unwrap_or_default()) {
        // The parent has the reason, and prints it once.
        Err(WorkerError::Open(_)) => Ok(Exit::Machine.into()),
        ended => ended.map(|()| Exit::Done.into()).map_err(Into::into),
    }
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
