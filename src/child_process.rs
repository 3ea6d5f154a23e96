//! Child processes of this program: start one with pipes, read its frames, end it with its parent.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::wire::{self, WireError};

/// How long a child may take to end after it has closed its pipe.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Linux's link to the running executable; also of an executable that was replaced or removed.
const RUNNING: &str = "/proc/self/exe";

/// The program for children: the running executable. They must speak the protocol of this version, even after an upgrade has
/// replaced the file.
///
/// # Errors
/// When the system does not know the path.
pub fn own_program() -> io::Result<PathBuf> {
    let running = Path::new(RUNNING);
    if running.exists() { Ok(running.into()) } else { env::current_exe() }
}

/// A running child and its pipes. Dropping `process` kills it.
#[derive(Debug)]
pub struct PipedChild {
    /// The process; its stderr is still inside if it was piped.
    pub process: Child,
    /// Frames to the child.
    pub stdin: ChildStdin,
    /// Frames from the child.
    pub stdout: ChildStdout,
}

/// Starts `program` with pipes for stdin and stdout.
///
/// # Errors
/// When the program cannot be executed.
pub fn spawn(program: &Path, arguments: &[OsString], stderr: Stdio) -> io::Result<PipedChild> {
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    // Process lists should show the program's name.
    #[cfg(unix)]
    if program == Path::new(RUNNING)
        && let Some(name) = env::args_os().next()
    {
        command.arg0(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
    // A child has no use for API keys, and may leave a core file behind.
    command.env_remove("EKA_AUTH_KEYS");
    // Ctrl-C in a terminal goes to the whole process group. The children must outlive it, so that running answers can finish.
    #[cfg(unix)]
    command.process_group(0);
    let mut process = command.spawn()?;
    let stdin = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let stdout = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok(PipedChild { process, stdin, stdout })
}

/// Reads the payload of the next frame; `None` when the pipe ended between two frames.
///
/// # Errors
/// [`WireError`] when the pipe fails or ends within a frame, or when the frame is too long.
pub async fn read_payload(pipe: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, WireError> {
    let mut head = [0; 4];
    let first = pipe.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    pipe.read_exact(&mut head[first..]).await?;
    let mut payload = vec![0; wire::payload_length(head)?];
    pipe.read_exact(&mut payload).await?;
    Ok(Some(payload))
}

/// Waits for a child that has closed its pipe; `None` when it is still running after a second.
///
/// # Errors
/// When the system does not report how it ended.
pub async fn wait(process: &mut Child) -> io::Result<Option<ExitStatus>> {
    timeout(EXIT_TIMEOUT, process.wait()).await.ok().transpose()
}

/// Makes the system kill this process when its parent ends. Only Linux can do that.
///
/// The end of stdin also tells a child that its parent has ended, but a child that hangs or is stopped does not read stdin.
/// If the parent ended before this call, stdin has ended too. The signal comes when the *thread* that started this process
/// ends.
///
/// # Errors
/// When the system rejects.
pub fn end_with_parent() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}
