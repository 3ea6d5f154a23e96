//! Starts `eka serve` on a free port, for `eka smoke` and `eka bench`.

use std::{
    collections::VecDeque,
    env, fs,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStderr, Command},
};

use super::exit::{ErrorWithExit, Exit, WithExit};
use crate::{
    client::{Client, PATIENCE},
    config::ConfigArgs,
};

/// Interval at which the server's state is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Last lines of the server's log that an error message shows.
const LOG_LINES: usize = 30;

/// The server's process. Dropping it kills it.
pub(super) struct SpawnedServer {
    child: Child,
    pub(super) client: Client,
    /// Start of the process.
    pub(super) started_at: Instant,
    log: Log,
    /// Holds the ready file, which the server rewrites.
    _directory: TempDir,
}

impl SpawnedServer {
    /// Starts `eka serve` with the settings of this command and `extra_settings`, and waits until it listens.
    ///
    /// # Errors
    /// When the server exits before that: its error message and exit code.
    pub(super) async fn start(
        args: &ConfigArgs,
        extra_settings: &[&str],
        key: Option<&str>,
    ) -> anyhow::Result<Self> {
        let program = env::current_exe().context("cannot find the path of this program")?;
        let mut command = Command::new(program);
        command.arg("serve").args(args.arguments(&[("bind", "127.0.0.1"), ("port", "0"), ("log", "info")]));
        // An error is quoted from the log, which must be text for that.
        for setting in ["log.format=text"].iter().chain(extra_settings) {
            command.arg("--set").arg(setting);
        }
        let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
        let ready_file = directory.path().join("ready.json");
        command.arg("--ready-file").arg(&ready_file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let started_at = Instant::now();
        let mut child = command.spawn().context("cannot start the server")?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("cannot read the server's log"))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let reader = tokio::spawn(read(stderr, Arc::clone(&log)));
        let url = loop {
            if let Some(url) = url(&ready_file) {
                break url;
            }
            if let Some(status) = child.try_wait()? {
                let _ = reader.await;
                return Err(failure(&log, status.code()));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        Ok(Self {
            child,
            client: Client::new(&url, key, PATIENCE).with_exit(Exit::Usage)?,
            started_at,
            log,
            _directory: directory,
        })
    }

    /// Waits until the model is loaded. Returns the time since the process was started.
    ///
    /// # Errors
    /// When the server exits before that.
    pub(super) async fn ready(&mut self) -> anyhow::Result<Duration> {
        while self.client.get("/readyz").await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                // The log's reader needs a moment for the last lines.
                tokio::time::sleep(POLL_INTERVAL).await;
                return Err(failure(&self.log, status.code()));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(self.started_at.elapsed())
    }

    /// Stops the server and waits until it has exited.
    pub(super) async fn stop(mut self) {
        #[cfg(unix)]
        if let Some(pid) =
            self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        #[cfg(not(unix))]
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }
}

type Log = Arc<Mutex<VecDeque<String>>>;

/// The URL in the ready file, once the server has written it.
fn url(ready_file: &Path) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(&fs::read(ready_file).ok()?).ok()?;
    document["url"].as_str().map(str::to_owned)
}

/// Reads the log to its end, so that the pipe never fills up.
async fn read(stderr: ChildStderr, log: Log) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_back(line);
        while log.len() > LOG_LINES {
            log.pop_front();
        }
    }
}

/// The server's error message, which may have several lines, or else the last line of its log.
fn failure(log: &Log, code: Option<i32>) -> anyhow::Error {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = log.make_contiguous();
    let error = lines.iter().rposition(|line| line.starts_with("error: "));
    let last = lines.get(error.unwrap_or(lines.len().saturating_sub(1))..).unwrap_or_default().join("\n");
    let reason = if last.is_empty() { "its log is empty" } else { last.trim_start_matches("error: ") };
    ErrorWithExit::of(anyhow!("the server did not start: {reason}"), exit_of(code))
}

/// The [`Exit`] of a process that failed with `code`.
fn exit_of(code: Option<i32>) -> Exit {
    Exit::ALL
        .into_iter()
        .find(|exit| Some(i32::from(exit.code())) == code && *exit != Exit::Done)
        .unwrap_or(Exit::Failed)
}
