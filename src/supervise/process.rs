//! A worker process and its pipes.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    stderr::Stderr,
    worker_config::WorkerConfig,
    worker_loss::{LossKind, WorkerLoss},
};
use crate::{
    child_process::{self, PipedChild},
    job::TraceLink,
    otel,
    wire::{self, FromWorker, ToWorker, WireError},
};

/// How long a worker may take to end when asked to.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Frames read ahead of the supervisor. A worker that writes faster has to wait.
const READ_AHEAD: usize = 1024;

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    frames: mpsc::Receiver<Result<FromWorker, WireError>>,
    stderr: Stderr,
    /// Parent span of its last job.
    trace: Option<TraceLink>,
    ping_pending: bool,
    last_frame: Option<Instant>,
}

impl Process {
    /// Starts a worker.
    ///
    /// # Errors
    /// [`LossKind::NotStarted`] when the program cannot be executed.
    pub(super) fn start(config: &WorkerConfig) -> Result<Self, WorkerLoss> {
        Self::spawn(config).map_err(|e| {
            let reason = format!("cannot start {}: {e}", config.program.display());
            WorkerLoss::new(LossKind::NotStarted, reason)
        })
    }

    fn spawn(config: &WorkerConfig) -> io::Result<Self> {
        let spawned = child_process::spawn(&config.program, &config.arguments, Stdio::piped())?;
        let PipedChild { process: mut child, stdin, stdout } = spawned;
        let stderr = Stderr::forward(child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?);
        let (sender, frames) = mpsc::channel(READ_AHEAD);
        tokio::spawn(read_frames(stdout, sender));
        Ok(Self { child, stdin, frames, stderr, trace: None, ping_pending: false, last_frame: None })
    }

    /// Sends a frame.
    pub(super) async fn send(&mut self, message: &ToWorker) -> Result<(), WireError> {
        if let ToWorker::Generate(jobs) = message {
            self.trace = jobs.first().and_then(|job| job.trace.clone());
        }
        self.ping_pending |= matches!(message, ToWorker::Ping);
        let mut frame = Vec::new();
        wire::encode(message, &mut frame)?;
        self.stdin.write_all(&frame).await?;
        Ok(self.stdin.flush().await?)
    }

    /// Time since its last frame; `None` before the first one.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.last_frame.map(|at| at.elapsed())
    }

    /// Whether a ping has no answer yet.
    pub(super) const fn ping_pending(&self) -> bool {
        self.ping_pending
    }

    /// The next frame; `None` when the pipe has ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<FromWorker, WireError>> {
        let frame = self.frames.recv().await;
        self.last_frame = Some(Instant::now());
        self.ping_pending &= !matches!(frame, Some(Ok(FromWorker::Pong)));
        // Recorded here, because a trim after a job can arrive while the supervisor waits for something else.
        if let (Some(Ok(FromWorker::AutoTrimmed { took, .. })), Some(link)) = (&frame, &self.trace) {
            otel::trimmed(link, *took);
        }
        frame
    }

    /// Waits for a worker that has closed its pipe, and kills it if it keeps running. Returns how it ended and its last line
    /// on stderr.
    async fn ended(mut self) -> (String, Option<String>) {
        let how = match child_process::wait(&mut self.child).await {
            Ok(Some(status)) => describe(status),
            Ok(None) => {
                self.kill().await;
                "the worker closed its pipe but did not exit; killed".into()
            }
            Err(e) => format!("the worker's exit status cannot be read: {e}"),
        };
        (how, self.stderr.last_line().await)
    }

    /// Ends a lost worker: waits for a process that ends by itself and adds how it ended to `loss`, and kills any other process.
    pub(super) async fn clean_up(mut self, loss: WorkerLoss) -> WorkerLoss {
        if loss.kind.ends_by_itself() {
            let (how, last_stderr_line) = self.ended().await;
            return loss.with_exit(how, last_stderr_line);
        }
        self.kill().await;
        loss
    }

    /// Kills the process.
    pub(super) async fn kill(&mut self) {
        if let Err(e) = self.child.kill().await {
            tracing::warn!("cannot kill the worker: {e}");
        }
    }

    /// Asks the worker to end, and kills it if it does not.
    pub(super) async fn shut_down(mut self) {
        if self.send(&ToWorker::Shutdown).await.is_ok()
            && timeout(SHUTDOWN_TIMEOUT, self.child.wait()).await.is_ok()
        {
            // Only waits until stderr is forwarded to its end.
            let _ = self.stderr.last_line().await;
            return;
        }
        let seconds = SHUTDOWN_TIMEOUT.as_secs();
        tracing::warn!("the worker did not exit within {seconds} s of being asked to; killed");
        self.kill().await;
    }
}

async fn read_frames(stdout: ChildStdout, sender: mpsc::Sender<Result<FromWorker, WireError>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let payload = child_process::read_payload(&mut stdout).await;
        let frame = match payload {
            Ok(Some(payload)) => wire::decode(&payload),
            Ok(None) => return,
            Err(e) => Err(e),
        };
        let is_last = frame.is_err();
        if sender.send(frame).await.is_err() || is_last {
            return;
        }
    }
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("the worker was terminated by signal {signal}");
    }
    status
        .code()
        .map_or_else(|| "the worker exited".into(), |code| format!("the worker exited with code {code}"))
}
