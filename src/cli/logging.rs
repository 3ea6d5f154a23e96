//! What is logged, and how: to stderr, so that stdout holds answers alone.

use std::sync::Arc;

use anyhow::Context;
use tracing_subscriber::{EnvFilter, reload};

use super::output;
use crate::{
    config::{Log, LogFormat},
    log_queue::LineWriter,
};

/// Changes what is logged, from the next line on.
#[derive(Clone)]
pub(super) struct LogLevel(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogLevel {
    /// Logs what `level` says from now on.
    ///
    /// # Errors
    /// When `level` is no filter.
    pub(super) fn set(&self, level: &str) -> anyhow::Result<()> {
        self.0(filter(level)?)?;
        Ok(())
    }
}

/// Starts logging as the settings say.
///
/// # Errors
/// When `log.level` is no filter.
pub(super) fn start(log: &Log) -> anyhow::Result<LogLevel> {
    let lines = tracing_subscriber::fmt().with_writer(|| LineWriter).with_target(false);
    // A reader of stderr who has left is no reason to panic.
    let lines = lines.log_internal_errors(false);
    let filter = filter(&log.level)?;
    // A second start, in a test of the whole program, keeps the first.
    Ok(match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(output::stderr_has_colours());
            let lines = lines.with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            LogLevel(Arc::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let lines = lines.json().with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = lines.try_init();
            LogLevel(Arc::new(move |filter| handle.reload(filter)))
        }
    })
}

/// Logs warnings alone, for commands whose output is the answer.
///
/// # Errors
/// Never in practice: the filter is a constant.
pub(super) fn start_quiet() -> anyhow::Result<()> {
    start(&Log { level: "warn".into(), format: LogFormat::Text, prompts: false }).map(drop)
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    // The HTTP library greets at info, and calls what clients do wrong errors, which is in the access log; a filter that names
    // it has the last word.
    EnvFilter::try_new(format!("actix_server=warn,actix_http=off,{level}")).with_context(|| {
        format!("log.level is {level:?}: expected error, warn, info, debug, trace, or a tracing filter")
    })
}
