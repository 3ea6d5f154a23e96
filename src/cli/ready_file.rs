//! `eka serve --ready-file`: where the server listens and whether it is ready, as JSON for the program that started it.
//!
//! The file is replaced by a rename, so a reader never sees half of it. It appears when the server listens, changes with
//! the server's state, and is removed at exit. After a crash it remains; its `pid` tells that the process is gone.

use std::{
    env,
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{files, job::Readiness};

/// Content of the file.
#[derive(Serialize, Deserialize)]
struct Document {
    /// Where a client on this machine reaches the server.
    url: String,
    /// The address and port that the server listens on.
    address: String,
    pid: u32,
    version: String,
    /// Ids of the models, the default one first.
    models: Vec<String>,
    /// Whether `state` is `ready`: requests are answered, and a model that is not loaded is loaded on demand.
    ready: bool,
    /// `starting`, `ready`, `restarting`, `down` or `stopping`, as in `/readyz`.
    state: String,
}

/// The ready file of this process. Dropping it removes the file.
pub(super) struct ReadyFile {
    path: PathBuf,
    document: Document,
}

impl ReadyFile {
    /// Removes the ready file that an earlier process left behind, before this one starts.
    ///
    /// # Errors
    /// When the file is not a ready file, belongs to a server that is running, or cannot be removed.
    pub(super) fn remove_stale(path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        let other = || format!("--ready-file {shown} exists and is not a ready file; choose another path");
        let content = files::optional(files::read(path, files::MAX_JSON)).with_context(other)?;
        let Some(content) = content else { return Ok(()) };
        let document: Document = serde_json::from_slice(&content).with_context(other)?;
        ensure!(
            document.pid == process::id() || !is_running(document.pid),
            "--ready-file {shown} belongs to the running server with process id {}; stop it, or choose another path",
            document.pid
        );
        files::optional(fs::remove_file(path))
            .with_context(|| format!("--ready-file {shown}: cannot remove the old file"))?;
        Ok(())
    }

    /// Writes the file for a server that listens at `url` and is starting.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn create(path: &Path, url: &str, models: Vec<String>) -> anyhow::Result<Self> {
        let (scheme, address) = url.split_once("://").unwrap_or(("http", url));
        let local = |address| format!("{scheme}://{}", local_address(address));
        let document = Document {
            url: address.parse().map_or_else(|_| url.to_owned(), local),
            address: address.to_owned(),
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models,
            ready: false,
            state: Readiness::Starting.as_str().to_owned(),
        };
        let file = Self { path: path.to_owned(), document };
        file.write().with_context(|| context(path))?;
        Ok(file)
    }

    /// Rewrites the file at every change of `readiness`, until the sender is gone.
    pub(super) async fn follow(mut self, mut readiness: watch::Receiver<Readiness>) {
        loop {
            let state = readiness.borrow_and_update().as_str();
            if state != self.document.state {
                self.document.state = state.to_owned();
                self.document.ready = state == "ready";
                if let Err(error) = self.write() {
                    tracing::warn!("{}: {error}", context(&self.path));
                }
            }
            if readiness.changed().await.is_err() {
                return;
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut text = serde_json::to_vec(&self.document)?;
        text.push(b'\n');
        let partial = self.path.with_added_extension(format!("{}.tmp", process::id()));
        fs::write(&partial, &text)?;
        fs::rename(&partial, &self.path).inspect_err(|_| drop(fs::remove_file(&partial)))
    }
}

/// Removes the file at `path` if this process wrote it: the next server may have written its own already.
pub(super) fn remove_own(path: &Path) {
    let content = files::read(path, files::MAX_JSON).unwrap_or_default();
    if serde_json::from_slice(&content).is_ok_and(|document: Document| document.pid == process::id()) {
        let _ = fs::remove_file(path);
    }
}

/// Whether `pid` is a running process of this program. After a crash, the system may give its id to another program.
fn is_running(pid: u32) -> bool {
    let name = |path: io::Result<PathBuf>| Some(path.ok()?.file_name()?.to_owned());
    let (own, found): (Option<OsString>, _) =
        (name(env::current_exe()), name(fs::read_link(format!("/proc/{pid}/exe"))));
    match own.zip(found) {
        // "eka (deleted)" after an update.
        Some((own, found)) => found.as_encoded_bytes().starts_with(own.as_encoded_bytes()),
        // Another user's process, or a system without /proc.
        None => process_exists(pid),
    }
}

#[cfg(unix)]
fn process_exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(not(unix))]
fn process_exists(_: u32) -> bool {
    false
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        remove_own(&self.path);
    }
}

fn context(path: &Path) -> String {
    format!("--ready-file {} cannot be written", path.display())
}

/// The address at which a client on the same machine reaches a server that listens on `address`.
pub(super) fn local_address(address: SocketAddr) -> SocketAddr {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(host, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(path: &Path, address: &str) -> ReadyFile {
        ReadyFile::create(path, &format!("http://{address}"), vec!["demo".into()]).unwrap()
    }

    fn read(path: &Path) -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn the_file_has_address_pid_and_state_and_is_removed_on_drop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let file = create(&path, "0.0.0.0:8110");
        let document = read(&path);
        assert_eq!(document["url"], "http://127.0.0.1:8110");
        assert_eq!(document["address"], "0.0.0.0:8110");
        assert_eq!(document["pid"], process::id());
        assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!((&document["ready"], &document["state"]), (&false.into(), &"starting".into()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file remains");
        drop(file);
        assert!(!path.exists());
    }

    /// Writes the ready file that a process with this id would write.
    fn write_for(path: &Path, pid: u32) {
        let file = create(path, "127.0.0.1:1");
        let mut document = read(path);
        drop(file);
        document["pid"] = pid.into();
        fs::write(path, document.to_string()).unwrap();
    }

    /// The id of a process that has exited.
    fn exited() -> u32 {
        let mut child = process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn the_file_of_another_process_is_not_removed_at_exit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let file = create(&path, "127.0.0.1:1");
        write_for(&path, 1);
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_a_crashed_server_left_behind_is_removed_at_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        // A container's first process has the same id in every run.
        for pid in [exited(), process::id()] {
            write_for(&path, pid);
            ReadyFile::remove_stale(&path).unwrap();
            assert!(!path.exists());
        }
        ReadyFile::remove_stale(&path).unwrap();
    }

    #[test]
    fn a_process_id_that_belongs_to_another_program_now_does_not_keep_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let mut other = process::Command::new("sleep").arg("60").spawn().unwrap();
        write_for(&path, other.id());
        let removed = ReadyFile::remove_stale(&path);
        other.kill().unwrap();
        other.wait().unwrap();
        removed.unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_ready_file_is_kept_and_named_in_the_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.json");
        for content in ["", "notes", "{}", r#"{"pid": 1}"#, r#"[{"pid": 1}]"#] {
            fs::write(&path, content).unwrap();
            let error = ReadyFile::remove_stale(&path).unwrap_err().to_string();
            assert!(
                error.ends_with("notes.json exists and is not a ready file; choose another path"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        ReadyFile::remove_stale(directory.path()).unwrap_err();
    }

    #[tokio::test]
    async fn the_file_is_removed_when_the_server_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let (sender, readiness) = watch::channel(Readiness::Stopping);
        drop(sender);
        let file = create(&path, "127.0.0.1:1");
        let followed = tokio::spawn(file.follow(readiness));
        followed.await.unwrap();
        assert!(!path.exists(), "the server has ended");
    }
}
