//! `eka serve --ready-file`: where the server listens and whether it is ready, as JSON for the program that started it.
//!
//! The file is replaced by a rename, so a reader never sees half of it. It appears when the server listens, changes with
//! the server's state, and is removed at exit. After a crash it remains; its `pid` tells that the process is gone.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process,
};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::watch;

use crate::job::Readiness;

/// Content of the file.
#[derive(Serialize)]
struct Document<'a> {
    /// Where a client on this machine reaches the server.
    url: &'a str,
    /// The address and port that the server listens on.
    address: &'a str,
    pid: u32,
    version: &'static str,
    /// Names of the models, the default one first.
    models: &'a [String],
    /// Whether the model is loaded; until then only the port is bound.
    ready: bool,
    /// `starting`, `ready`, `restarting`, `down` or `stopping`, as in `/readyz`.
    state: &'static str,
}

/// The ready file of this process. Dropping it removes the file.
pub(super) struct ReadyFile {
    path: PathBuf,
    url: String,
    address: String,
    models: Vec<String>,
    state: &'static str,
}

impl ReadyFile {
    /// Removes the file of an earlier process before this one starts.
    ///
    /// # Errors
    /// When the file exists and cannot be removed.
    pub(super) fn remove_stale(path: &Path) -> anyhow::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| context(path))
            }
            _ => Ok(()),
        }
    }

    /// Writes the file for a server that listens at `url` and is starting.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn create(path: &Path, url: &str, models: Vec<String>) -> anyhow::Result<Self> {
        let (scheme, address) = url.split_once("://").unwrap_or(("http", url));
        let address = address.to_owned();
        let url = address
            .parse()
            .map_or_else(|_| url.to_owned(), |address| format!("{scheme}://{}", local_address(address)));
        let file = Self { path: path.to_owned(), url, address, models, state: Readiness::Starting.as_str() };
        file.write().with_context(|| context(path))?;
        Ok(file)
    }

    /// Rewrites the file at every change of `readiness`, until the sender is gone.
    pub(super) async fn follow(mut self, mut readiness: watch::Receiver<Readiness>) {
        loop {
            let state = readiness.borrow_and_update().as_str();
            if state != self.state {
                self.state = state;
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
        let document = Document {
            url: &self.url,
            address: &self.address,
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION"),
            models: &self.models,
            ready: self.state == "ready",
            state: self.state,
        };
        let mut text = serde_json::to_vec(&document)?;
        text.push(b'\n');
        let partial = self.path.with_added_extension(format!("{}.tmp", process::id()));
        fs::write(&partial, &text)?;
        fs::rename(&partial, &self.path).inspect_err(|_| drop(fs::remove_file(&partial)))
    }
}

/// Removes the file at `path` if this process wrote it: the next server may have written its own already.
pub(super) fn remove_own(path: &Path) {
    let document: serde_json::Value =
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    if document["pid"] == process::id() {
        let _ = fs::remove_file(path);
    }
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
    fn it_names_address_process_and_state_and_is_removed_at_the_end() {
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

    #[test]
    fn the_file_of_another_process_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ready.json");
        let file = create(&path, "127.0.0.1:1");
        fs::write(&path, r#"{"pid": 1}"#).unwrap();
        drop(file);
        assert!(path.exists());
        ReadyFile::remove_stale(&path).unwrap();
        ReadyFile::remove_stale(&path).unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn it_follows_the_servers_state() {
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
