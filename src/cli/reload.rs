//! Reloading at run time: API keys and certificates when their files change, all settings at SIGHUP.
//!
//! Settings that can change without affecting running requests take effect; the log names the others. If the settings or API
//! keys are invalid, all of them stay as they are. Certificates are reloaded separately.

use std::{
    mem,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::logging::LogLevel;
use crate::{
    auth::{AccessControl, KeysError, Rules},
    config::{Config, ConfigArgs, Settings},
    executor::{Deadlines, Executor, Limits},
    http::{self, Tls, TlsError},
};

/// Interval at which the files are checked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Settings that can change at run time: sections, or whole paths.
const CHANGEABLE: [&str; 9] = [
    "auth.",
    "cors.",
    "limits.",
    "log.level",
    "queue.max_jobs",
    "queue.max_prompt_tokens",
    "queue.timeout_ms",
    "queue.total_timeout_ms",
    "server.hosts",
];

/// The settings, and what depends on them.
pub(super) struct LiveSettings {
    pub(super) access: Arc<AccessControl>,
    pub(super) tls: Option<Arc<Tls>>,
    args: ConfigArgs,
    /// Those that were read last.
    settings: Mutex<Settings>,
    /// Those of the start, once others have been read: what needs a restart still has these.
    started: OnceLock<Settings>,
    /// The address that the server listens on.
    bind: IpAddr,
    level: LogLevel,
    deadlines: watch::Sender<Deadlines>,
}

impl LiveSettings {
    /// Reads API keys and certificates.
    ///
    /// # Errors
    /// When they are invalid.
    pub(super) fn open(args: &ConfigArgs, settings: Settings, level: LogLevel) -> anyhow::Result<Self> {
        let config = &settings.config;
        let rules = Rules::read(config)?;
        let bind = config.server.bind;
        warn_if_open(bind, &rules);
        let open = |(cert, key): (&Path, &Path)| Tls::open(cert, key);
        let tls = config.tls.files().map(open).transpose()?.map(Arc::new);
        tls.iter().for_each(|tls| warn_of_dates(tls));
        let access = Arc::new(AccessControl::new(rules));
        let deadlines = watch::Sender::new(deadlines(config));
        Ok(Self {
            access,
            tls,
            args: args.clone(),
            settings: Mutex::new(settings),
            started: OnceLock::new(),
            bind,
            level,
            deadlines,
        })
    }

    /// The current deadlines.
    pub(super) fn deadlines(&self) -> watch::Receiver<Deadlines> {
        self.deadlines.subscribe()
    }

    /// Reloads when a file changes, and at SIGHUP.
    pub(super) async fn watch(self, executor: Executor) {
        let mut seen = self.stamps();
        let mut hangups = hangups();
        loop {
            tokio::select! {
                () = hangups.next() => {
                    self.reload_all(&executor);
                    seen = self.stamps();
                }
                () = tokio::time::sleep(POLL_INTERVAL) => {
                    let now = self.stamps();
                    if now.keys != seen.keys {
                        self.reload_keys();
                    }
                    if now.tls != seen.tls {
                        self.reload_tls();
                    }
                    seen = now;
                }
            }
        }
    }

    fn stamps(&self) -> Stamps {
        let keys_file = self.with_config(|config| config.auth.keys_file.clone());
        let tls = self.tls.iter().flat_map(|tls| tls.files());
        Stamps { keys: keys_file.map(|file| (stamp(&file), file)), tls: tls.map(stamp).collect() }
    }

    fn reload_all(&self, executor: &Executor) {
        match Settings::load(&self.args) {
            Ok(settings) => self.adopt(settings, executor),
            Err(error) => {
                tracing::error!(event = "settings_reload_failed", "SIGHUP: settings not reloaded: {error}")
            }
        }
        self.reload_tls();
    }

    /// Applies the settings of `new` that can change at run time.
    fn adopt(&self, new: Settings, executor: &Executor) {
        let mut live = self.settings().changed(&new);
        live.retain(|path| is_changeable(path));
        let mut fixed = match self.started.get() {
            Some(started) => started.changed(&new),
            None => self.settings().changed(&new),
        };
        fixed.retain(|path| !is_changeable(path));
        if !fixed.is_empty() {
            let settings = fixed.join(", ");
            tracing::warn!(
                event = "settings_need_restart",
                settings,
                "SIGHUP: some changed settings take effect only after a restart"
            );
        }
        let rules = match Rules::read(&new.config) {
            Ok(rules) => rules,
            Err(error) => {
                return tracing::error!(
                    event = "settings_reload_failed",
                    "SIGHUP: settings not reloaded: {error}"
                );
            }
        };
        self.apply(rules);
        executor.set_limits(limits(&new.config));
        self.deadlines.send_replace(deadlines(&new.config));
        if live.contains(&"log.level")
            && let Err(error) = self.level.set(&new.config.log.level)
        {
            tracing::error!("SIGHUP: {error}");
        }
        tracing::info!(event = "settings_reloaded", settings = live.join(", "), "SIGHUP: settings reloaded");
        let old = mem::replace(&mut *self.settings(), new);
        // Fails if others have been read before.
        drop(self.started.set(old));
    }

    fn reload_keys(&self) {
        let read: Result<Rules, KeysError> = self.with_config(Rules::read);
        match read {
            Ok(rules) => {
                tracing::info!(event = "keys_reloaded", keys = rules.keys.len(), "API keys reloaded");
                self.apply(rules);
            }
            Err(error) => tracing::error!(event = "keys_reload_failed", "API keys not reloaded: {error}"),
        }
    }

    fn apply(&self, rules: Rules) {
        warn_if_open(self.bind, &rules);
        self.access.replace(rules);
    }

    fn reload_tls(&self) {
        let Some(tls) = &self.tls else { return };
        let reloaded: Result<(), TlsError> = tls.reload();
        match reloaded {
            Ok(()) => {
                tracing::info!(event = "certificate_reloaded", "TLS certificate reloaded");
                warn_of_dates(tls);
            }
            Err(error) => {
                tracing::error!(event = "certificate_reload_failed", "TLS certificate not reloaded: {error}");
            }
        }
    }

    fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_config<T>(&self, f: impl FnOnce(&Config) -> T) -> T {
        f(&self.settings().config)
    }
}

/// The limits of the queue.
pub(super) fn limits(config: &Config) -> Limits {
    Limits { max_jobs: config.queue.max_jobs, max_prompt_tokens: config.queue.max_prompt_tokens }
}

fn deadlines(config: &Config) -> Deadlines {
    http::Settings::from(config).deadlines
}

fn is_changeable(path: &str) -> bool {
    CHANGEABLE.iter().any(|prefix| path.starts_with(prefix))
}

fn warn_if_open(bind: IpAddr, rules: &Rules) {
    if rules.keys.is_empty() && !bind.to_canonical().is_loopback() {
        tracing::warn!(
            event = "no_api_keys",
            "listening on {bind} without API keys: anyone on the network can use the server; set auth.keys_file"
        );
    }
}

fn warn_of_dates(tls: &Tls) {
    if let Some(warning) = tls.warning(SystemTime::now()) {
        tracing::warn!("{warning}");
    }
}

/// Modification time and size, to detect a changed file; `None` without a file.
type Stamp = Option<(SystemTime, u64)>;

#[derive(PartialEq)]
struct Stamps {
    keys: Option<(Stamp, PathBuf)>,
    tls: Vec<Stamp>,
}

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// A stream of SIGHUP signals.
struct Hangups(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

#[cfg(unix)]
fn hangups() -> Hangups {
    use tokio::signal::unix::{SignalKind, signal};
    Hangups(signal(SignalKind::hangup()).ok())
}

#[cfg(not(unix))]
fn hangups() -> Hangups {
    Hangups()
}

impl Hangups {
    #[cfg(unix)]
    async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_settings_can_change_at_run_time() {
        assert!(
            ["auth.keys_file", "cors.origins", "log.level", "server.hosts"].into_iter().all(is_changeable)
        );
        assert!(!["server.port", "log.format", "tls.cert_file"].into_iter().any(is_changeable));
    }
}
