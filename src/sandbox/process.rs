//! One child, as its parent sees it.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout},
    time::timeout,
};

use super::{
    Command,
    task::{Answer, Reply},
};
use crate::wire::{self, WireError};

/// For a child whose pipe has ended to be gone.
const AFTER_PIPE: Duration = Duration::from_secs(1);

/// Messages up to this many bytes are copied on this thread, which is faster than handing them to another.
pub(super) const SHORT: usize = 64 << 10;

/// A running child. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    /// Its processor time at the end of the last task.
    cpu_time: Duration,
}

/// Why a child did not answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// It was ended for its processor time.
    CpuTime,
    /// It ran out of memory or stack: both end in the same signals.
    Memory,
    /// It ended by itself, or does not speak the protocol.
    Broken(String),
}

impl Process {
    /// Starts a child.
    pub(super) fn start(command: &Command) -> io::Result<Self> {
        let mut program = tokio::process::Command::new(&command.program);
        program.args(&command.arguments).kill_on_drop(true);
        program.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Libraries write to stderr when they abort. That is of no use, and a client decides how long it is.
        program.stderr(Stdio::null());
        program.env_remove("EKA_AUTH_KEYS");
        // Ctrl-C in a terminal goes to the whole process group, and conversations go on until the server has ended.
        #[cfg(unix)]
        program.process_group(0);
        let mut child = program.spawn()?;
        let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, stdin, stdout, cpu_time: Duration::ZERO })
    }

    /// Its id, until it has ended.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Its processor time at the end of the last task.
    pub(super) const fn cpu_time(&self) -> Duration {
        self.cpu_time
    }

    /// Has it do the task in `frame`, and gives it back with the answer. Dropping this kills the process.
    pub(super) async fn answer(mut self, frame: &[u8]) -> (Self, Result<Answer, Lost>) {
        let answer = match self.exchange(frame).await {
            Ok(Reply { answer, cpu_time }) => {
                self.cpu_time = cpu_time;
                Ok(answer)
            }
            // The pipe of a process that has ended breaks while it is written to, or ends before the reply.
            Err(WireError::Io(_)) => Err(self.end().await),
            Err(other) => Err(Lost::Broken(other.to_string())),
        };
        (self, answer)
    }

    async fn exchange(&mut self, frame: &[u8]) -> Result<Reply, WireError> {
        self.stdin.write_all(frame).await?;
        self.stdin.flush().await?;
        let mut head = [0; 4];
        self.stdout.read_exact(&mut head).await?;
        let mut payload = vec![0; wire::payload_length(head)?];
        self.stdout.read_exact(&mut payload).await?;
        if payload.len() <= SHORT {
            return wire::decode(&payload);
        }
        // This thread streams answers.
        let decoded = tokio::task::spawn_blocking(move || wire::decode(&payload)).await;
        decoded.map_err(io::Error::other)?
    }

    /// How a child ended whose pipe has.
    async fn end(&mut self) -> Lost {
        match timeout(AFTER_PIPE, self.child.wait()).await {
            Ok(Ok(status)) => reason(status),
            Ok(Err(error)) => Lost::Broken(format!("its end cannot be read: {error}")),
            Err(_) => Lost::Broken("it closed its pipe and did not end".into()),
        }
    }
}

#[cfg(unix)]
fn reason(status: ExitStatus) -> Lost {
    use rustix::process::Signal;
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => Lost::CpuTime,
        // Its own limits never end it so: somebody did, or the system, which is short of memory.
        Some(signal) if signal == Signal::KILL.as_raw() => Lost::Broken("it was killed from outside".into()),
        // An allocation or a stack that fails ends in an abort.
        Some(_) => Lost::Memory,
        None => Lost::Broken(format!("it ended with {status}")),
    }
}

#[cfg(not(unix))]
fn reason(status: ExitStatus) -> Lost {
    if status.code().is_some_and(|code| (0..256).contains(&code)) {
        Lost::Broken(format!("it ended with {status}"))
    } else {
        Lost::Memory
    }
}

/// Processor time of a running process; `None` where the system does not say.
pub(super) fn cpu_time_of(pid: u32) -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it is in parentheses and may hold anything. User and system time are fields 14 and 15 of the
        // line, hence 12th and 13th after the name.
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

/// Lets everything else on this machine go first.
pub(super) fn lower_priority(pid: u32) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, setpriority_process};
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // What cannot be lowered runs on as it is, until its deadline.
        let _ = pid.map(|pid| setpriority_process(Some(pid), LOWEST_PRIORITY));
    }
    #[cfg(not(unix))]
    let _ = pid;
}

#[cfg(unix)]
const LOWEST_PRIORITY: i32 = 19;
