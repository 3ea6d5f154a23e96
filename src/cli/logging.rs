//! Logging to stderr: level and format.

use std::sync::Arc;

use anyhow::Context;
use tracing_subscriber::{EnvFilter, reload};

use super::output;
use crate::{
    config::{Log, LogFormat},
    log_queue::LineWriter,
};

/// Changes the log level at run time.
#[derive(Clone)]
pub(super) struct LogLevel(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogLevel {
    /// Sets the log level or filter.
    ///
    /// # Errors
    /// When `level` is not a valid filter.
    pub(super) fn set(&self, level: &str) -> anyhow::Result<()> {
        self.0(filter(level)?)?;
        Ok(())
    }
}

/// Starts logging.
///
/// # Errors
/// When `log.level` is not a valid filter.
pub(super) fn start(log: &Log) -> anyhow::Result<LogLevel> {
    let lines = tracing_subscriber::fmt().with_writer(|| LineWriter).with_target(false);
    // A closed stderr must not cause a panic.
    let lines = lines.log_internal_errors(false);
    let filter = filter(&log.level)?;
    // In a test that runs several commands, the first one's subscriber stays.
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

/// Logs only warnings, for commands whose result is on stdout.
///
/// # Errors
/// Never in practice: the filter is a constant.
pub(super) fn start_quiet() -> anyhow::Result<()> {
    start(&Log { level: "warn".into(), format: LogFormat::Text, prompts: false }).map(drop)
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    // actix logs client mistakes as errors, which the access log has already, and the cluster logs what the NATS client does. A
    // filter can still override this.
    EnvFilter::try_new(format!("actix_server=warn,actix_http=off,async_nats=off,{level}")).with_context(
        || format!("log.level is {level:?}: expected error, warn, info, debug, trace, or a tracing filter"),
    )
}
