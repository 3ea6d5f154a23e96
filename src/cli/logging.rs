//! What is logged, and how: to stderr, so that stdout holds answers alone.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging as the settings say.
///
/// # Errors
/// When `log.level` is no filter.
pub(super) fn start(log: &Log) -> anyhow::Result<()> {
    // The HTTP library greets at info; a filter that names it has the last word.
    let filter = EnvFilter::try_new(format!("actix_server=warn,{}", log.level)).with_context(|| {
        format!("log.level is {:?}: expected error, warn, info, debug, trace, or a tracing filter", log.level)
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // A second start, in a test of the whole program, keeps the first.
    let _ = match log.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    Ok(())
}

/// Logs warnings alone, for commands whose output is the answer.
///
/// # Errors
/// Never in practice: the filter is a constant.
pub(super) fn start_quiet() -> anyhow::Result<()> {
    start(&Log { level: "warn".into(), format: LogFormat::Text, prompts: false })
}
