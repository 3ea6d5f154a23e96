//! `eka sandbox`: the child process that compiles schemas and renders templates, and how a server starts it.

use std::{
    env, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;

use super::worker::private_stdout;
use crate::{
    metrics::Metrics,
    sandbox::{self, ChildProgram, Sandbox},
};

/// The subcommand's name.
const NAME: &str = "sandbox";

/// Serves the parent over stdin and stdout.
///
/// # Errors
/// When the pipe fails.
pub(super) fn run() -> anyhow::Result<()> {
    let replies = private_stdout().context("stdout cannot be kept apart for replies")?;
    Ok(sandbox::run(io::stdin(), replies)?)
}

/// A sandbox of this program.
///
/// # Errors
/// When the program's own file cannot be found.
pub(super) fn of_this_program(metrics: &Arc<Metrics>) -> anyhow::Result<Sandbox> {
    let program = own_file().context("this program's own file cannot be found")?;
    Ok(Sandbox::new(ChildProgram { program, arguments: vec![NAME.into()] }, Arc::clone(metrics)))
}

/// The file that runs. Children speak the protocol of this version, also when an upgrade has put another in its place.
fn own_file() -> io::Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    if running.exists() { Ok(running.into()) } else { env::current_exe() }
}
