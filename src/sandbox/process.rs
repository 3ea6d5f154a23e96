//! A child process, from the parent's side.

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, ChildStdout},
};

use super::task::{Answer, Reply};
use crate::{
    child_process::{self, PipedChild},
    wire::{self, WireError},
};

/// Messages up to this many bytes are encoded and decoded on this thread, which is faster than handing them to another.
pub(super) const SHORT: usize = 64 << 10;

/// The program that a child runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildProgram {
    /// Path of the executable.
    pub program: PathBuf,
    /// Arguments that make it run the child's loop, `eka sandbox`.
    pub arguments: Vec<OsString>,
}

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Its CPU time at the end of the last task.
    cpu_time: Duration,
}

/// Why a child did not answer.
#[derive(Debug)]
pub(super) enum ChildFailure {
    /// It exceeded its CPU time.
    CpuTime,
    /// It ran out of memory or stack; both end with the same signals.
    Memory,
    /// It ended otherwise, or broke the protocol.
    Broken(String),
}

impl Process {
    /// Starts a child.
    pub(super) fn start(program: &ChildProgram) -> io::Result<Self> {
        // A library that aborts writes to stderr, and the request decides how much.
        let spawned = child_process::spawn(&program.program, &program.arguments, Stdio::null())?;
        let PipedChild { process: child, stdin, stdout } = spawned;
        Ok(Self { child, stdin, stdout, cpu_time: Duration::ZERO })
    }

    /// Its process id, until it has ended.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its CPU time at the end of the last task.
    pub(super) const fn cpu_time(&self) -> Duration {
        self.cpu_time
    }

    /// Runs the task in `frame`; returns the process with the answer. Dropping the future kills the process.
    pub(super) async fn answer(mut self, frame: &[u8]) -> (Self, Result<Answer, ChildFailure>) {
        let answer = match self.exchange(frame).await {
            Ok(Reply { answer, cpu_time }) => {
                self.cpu_time = cpu_time;
                Ok(answer)
            }
            // The process has ended: the pipe breaks while it is written to, or ends before the reply.
            Err(WireError::Io(_)) => Err(self.end().await),
            Err(other) => Err(ChildFailure::Broken(other.to_string())),
        };
        (self, answer)
    }

    async fn exchange(&mut self, frame: &[u8]) -> Result<Reply, WireError> {
        self.stdin.write_all(frame).await?;
        self.stdin.flush().await?;
        let payload = child_process::read_payload(&mut self.stdout).await?;
        let payload = payload.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?;
        if payload.len() <= SHORT {
            return wire::decode(&payload);
        }
        // On another thread, because this one streams answers.
        let decoded = tokio::task::spawn_blocking(move || wire::decode(&payload)).await;
        decoded.map_err(io::Error::other)?
    }

    /// Waits for a child that has closed its pipe.
    async fn end(&mut self) -> ChildFailure {
        match child_process::wait(&mut self.child).await {
            Ok(Some(status)) => reason(status),
            Ok(None) => ChildFailure::Broken("the process closed its pipe but did not exit".into()),
            Err(error) => ChildFailure::Broken(format!("the exit status cannot be read: {error}")),
        }
    }
}

#[cfg(unix)]
fn reason(status: ExitStatus) -> ChildFailure {
    use rustix::process::Signal;
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => ChildFailure::CpuTime,
        // Not one of its own limits: a user killed it, or the system was short of memory.
        Some(signal) if signal == Signal::KILL.as_raw() => {
            ChildFailure::Broken("the process was killed from outside".into())
        }
        // A failed allocation or a stack overflow aborts the process.
        Some(_) => ChildFailure::Memory,
        None => ChildFailure::Broken(format!("the process ended with {status}")),
    }
}

#[cfg(not(unix))]
fn reason(status: ExitStatus) -> ChildFailure {
    if status.code().is_some_and(|code| (0..256).contains(&code)) {
        ChildFailure::Broken(format!("the process ended with {status}"))
    } else {
        ChildFailure::Memory
    }
}

/// CPU time of a running process; `None` if the system does not report it.
pub(super) fn cpu_time_of(pid: u32) -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The process name is in parentheses and may contain anything. User and system time are fields 14 and 15 of the line, hence
        // fields 12 and 13 after the name.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// Gives a process the lowest priority.
pub(super) fn lower_priority(pid: u32) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, setpriority_process};
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // If that fails, the process still has its deadline.
        let _ = pid.map(|pid| setpriority_process(Some(pid), LOWEST_PRIORITY));
    }
    #[cfg(not(unix))]
    let _ = pid;
}

#[cfg(unix)]
const LOWEST_PRIORITY: i32 = 19;
