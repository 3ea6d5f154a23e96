//! A worker process and its pipes.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{WorkerCommand, stderr::Stderr};
use crate::{
    job::TraceLink,
    otel,
    wire::{self, Down, Up, WireError},
};

/// How long a worker that was told to end may take.
const KIND_END: Duration = Duration::from_secs(5);

/// How long a worker whose pipe has ended may take to be gone.
const AFTER_PIPE: Duration = Duration::from_secs(1);

/// Frames read ahead of the keeper; a worker that writes faster waits.
const READ_AHEAD: usize = 1024;

/// A running worker. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    frames: mpsc::Receiver<Result<Up, WireError>>,
    stderr: Stderr,
    /// Where its last job's part of a trace hangs.
    trace: Option<TraceLink>,
    /// Whether a ping is unanswered.
    is_pinged: bool,
    /// When it last said something.
    last_heard: Option<Instant>,
}

impl Process {
    /// Starts a worker.
    pub(super) fn start(command: &WorkerCommand) -> io::Result<Self> {
        let mut program = Command::new(&command.program);
        program.args(&command.arguments).kill_on_drop(true);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // It has no use for them, and may leave a core file behind.
        program.env_remove("EKA_AUTH_KEYS");
        // Ctrl-C in a terminal goes to the whole process group: the worker must outlive it to finish the last answer.
        #[cfg(unix)]
        program.process_group(0);
        let mut child = program.spawn()?;
        let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stderr = Stderr::pass_on(child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?);
        let (sender, frames) = mpsc::channel(READ_AHEAD);
        tokio::spawn(read_frames(stdout, sender));
        Ok(Self { child, stdin, frames, stderr, trace: None, is_pinged: false, last_heard: None })
    }

    /// Sends a frame.
    pub(super) async fn send(&mut self, message: &Down) -> Result<(), WireError> {
        if let Down::Generate(job) = message {
            self.trace.clone_from(&job.trace);
        }
        self.is_pinged |= matches!(message, Down::Ping);
        let mut frame = Vec::new();
        wire::encode(message, &mut frame)?;
        self.stdin.write_all(&frame).await?;
        Ok(self.stdin.flush().await?)
    }

    /// For how long it has said nothing, if it has said something before.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.last_heard.map(|at| at.elapsed())
    }

    /// Whether the answer to a ping is still to come.
    pub(super) const fn is_pinged(&self) -> bool {
        self.is_pinged
    }

    /// The next frame; `None` when the pipe has ended. Safe to abandon while waiting.
    pub(super) async fn next(&mut self) -> Option<Result<Up, WireError>> {
        let frame = self.frames.recv().await;
        self.last_heard = Some(Instant::now());
        self.is_pinged &= !matches!(frame, Some(Ok(Up::Pong)));
        // Here, because a trim that follows a job is heard by whoever listens then.
        if let (Some(Ok(Up::Held { took, .. })), Some(link)) = (&frame, &self.trace) {
            otel::trimmed(link, *took);
        }
        frame
    }

    /// Waits for the end of a worker whose pipe has ended, kills it if it does not come, and says how it ended and what
    /// it said last: the latter for the log alone, as it may name files.
    pub(super) async fn ended(mut self) -> (String, Option<String>) {
        let how = match timeout(AFTER_PIPE, self.child.wait()).await {
            Ok(status) => describe(status),
            Err(_) => {
                self.kill().await;
                "it closed its pipe and did not end; killed".into()
            }
        };
        (how, self.stderr.last_words().await)
    }

    /// Ends the process now.
    pub(super) async fn kill(&mut self) {
        if let Err(e) = self.child.kill().await {
            tracing::warn!("the worker cannot be killed: {e}");
        }
    }

    /// Asks the worker to end, and kills it if it does not.
    pub(super) async fn shut_down(mut self) {
        if self.send(&Down::Shutdown).await.is_ok() && timeout(KIND_END, self.child.wait()).await.is_ok() {
            // Passed on, not asked for.
            let _ = self.stderr.last_words().await;
            return;
        }
        tracing::warn!("the worker did not end within {} s of being asked; killed", KIND_END.as_secs());
        self.kill().await;
    }
}

async fn read_frames(stdout: ChildStdout, sender: mpsc::Sender<Result<Up, WireError>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let frame = match read_frame(&mut stdout).await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => return,
            Err(e) => Err(e),
        };
        let over = frame.is_err();
        if sender.send(frame).await.is_err() || over {
            return;
        }
    }
}

async fn read_frame(stdout: &mut BufReader<ChildStdout>) -> Result<Option<Up>, WireError> {
    let mut head = [0; 4];
    let first = stdout.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    stdout.read_exact(&mut head[first..]).await?;
    let mut payload = vec![0; wire::payload_length(head)?];
    stdout.read_exact(&mut payload).await?;
    wire::decode(&payload).map(Some)
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => {
            #[cfg(unix)]
            if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
                return format!("it was ended by signal {signal}");
            }
            status.code().map_or_else(|| "it ended".into(), |code| format!("it ended with exit code {code}"))
        }
        Err(e) => format!("its end cannot be read: {e}"),
    }
}
