//! A server of this program's own, on a free port of this machine, for a command that needs one.

use std::{
    collections::VecDeque,
    env,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStderr, Command},
    sync::watch,
};

use super::exit::{ErrorWithExit, Exit, WithExit};
use crate::{
    client::{Client, PATIENCE},
    config::ConfigArgs,
};

/// Between two looks whether it is ready.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Last lines of its log that are kept.
const LINES: usize = 30;

/// The server's process. Dropping it kills it.
pub(super) struct SpawnedServer {
    child: Child,
    pub(super) client: Client,
    /// When its process was started.
    pub(super) began: Instant,
    log: Log,
}

impl SpawnedServer {
    /// Starts `eka serve` with the settings of this command, these besides, and a free port, and waits until it listens.
    ///
    /// # Errors
    /// When it ends before that, with its last words and its exit code.
    pub(super) async fn start(
        args: &ConfigArgs,
        besides: &[&str],
        key: Option<&str>,
    ) -> anyhow::Result<Self> {
        let program = env::current_exe().context("this program's own file cannot be found")?;
        let mut command = Command::new(program);
        command.arg("serve").args(args.arguments(&[("bind", "127.0.0.1"), ("port", "0"), ("log", "info")]));
        // Its log says where it listens.
        for setting in ["log.format=text"].iter().chain(besides) {
            command.arg("--set").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let began = Instant::now();
        let mut child = command.spawn().context("the server cannot be started")?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("the server's log cannot be read"))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (address, mut found) = watch::channel(None);
        tokio::spawn(read(stderr, Arc::clone(&log), address));
        // An error is the end of the log, and so of the process.
        let url = found.wait_for(Option::is_some).await.ok().and_then(|url| url.clone());
        let Some(url) = url else { return Err(failure(&log, child.wait().await?.code())) };
        Ok(Self { child, client: Client::new(&url, key, PATIENCE).with_exit(Exit::Usage)?, began, log })
    }

    /// Waits until a request would be worked on; how long that took from the start of the process.
    ///
    /// # Errors
    /// When it ends before that.
    pub(super) async fn ready(&mut self) -> anyhow::Result<Duration> {
        while self.client.get("/readyz").await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                // For the reader of its log to come to the end.
                tokio::time::sleep(LOOK_EVERY).await;
                return Err(failure(&self.log, status.code()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(self.began.elapsed())
    }

    /// Ends it, and waits until it has.
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

/// Reads the log to its end, so that the server never waits for its reader.
async fn read(stderr: ChildStderr, log: Log, address: watch::Sender<Option<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((_, url)) = line.split_once(" on http") {
            address.send_replace(Some(format!("http{}", url.trim())));
        }
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_back(line);
        while log.len() > LINES {
            log.pop_front();
        }
    }
}

/// Why it ended: its error, which may have several lines, or whatever it said last.
fn failure(log: &Log, code: Option<i32>) -> anyhow::Error {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = log.make_contiguous();
    let error = lines.iter().rposition(|line| line.starts_with("error: "));
    let said = lines.get(error.unwrap_or(lines.len().saturating_sub(1))..).unwrap_or_default().join("\n");
    let said = if said.is_empty() { "it said nothing" } else { said.trim_start_matches("error: ") };
    ErrorWithExit::of(anyhow!("the server did not start: {said}"), ended_as(code))
}

/// The end that a process' exit code stands for.
fn ended_as(code: Option<i32>) -> Exit {
    Exit::ALL
        .into_iter()
        .find(|exit| Some(i32::from(exit.code())) == code && *exit != Exit::Done)
        .unwrap_or(Exit::Failed)
}
