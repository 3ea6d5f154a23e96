//! `eka sandbox`: the child process that compiles schemas and renders templates, and its command line.

use std::{io, sync::Arc};

use anyhow::Context;

use super::worker::private_stdout;
use crate::{
    child_process,
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
    let replies = private_stdout().context("cannot reserve stdout for replies")?;
    Ok(sandbox::run(io::stdin(), replies)?)
}

/// A sandbox of this program.
///
/// # Errors
/// When the path of the program is unknown.
pub(super) fn of_this_program(metrics: &Arc<Metrics>) -> anyhow::Result<Sandbox> {
    let program = child_process::own_program().context("cannot find the path of this program")?;
    Ok(Sandbox::new(ChildProgram { program, arguments: vec![NAME.into()] }, Arc::clone(metrics)))
}
