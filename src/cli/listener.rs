//! The server's listening sockets.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::Context;
use tokio::net::TcpSocket;

use super::exit::{Exit, WithExit};
use crate::{
    config::{Config, ListenAddress},
    http::Listener,
};

/// Length of the accept queue, which the system may lower. A client that finds it full retries after a second, which fails a
/// health probe.
const BACKLOG: u32 = 4096;

/// The sockets of a server.
pub(super) struct Listeners {
    pub(super) all: Vec<Listener>,
    /// Of `server.bind` and `server.port`.
    pub(super) address: SocketAddr,
    /// The files of Unix sockets, which are removed when this is dropped.
    pub(super) files: SocketFiles,
}

/// Files of Unix sockets. Dropping it removes them.
pub(super) struct SocketFiles(Vec<PathBuf>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens on the configured addresses.
///
/// # Errors
/// When one of them cannot be used.
pub(super) fn listen(config: &Config) -> anyhow::Result<Listeners> {
    let first = SocketAddr::new(config.server.bind, config.server.port);
    let listener = bind(first)
        .with_context(|| format!("cannot listen on {first}; set server.bind or server.port"))
        .with_exit(Exit::Machine)?;
    let address = listener.local_addr()?;
    let mut listeners =
        Listeners { all: vec![Listener::Tcp(listener)], address, files: SocketFiles(Vec::new()) };
    for further in &config.server.listen.0 {
        listeners.add(further).with_exit(Exit::Machine)?;
    }
    Ok(listeners)
}

impl Listeners {
    fn add(&mut self, address: &ListenAddress) -> anyhow::Result<()> {
        match address {
            ListenAddress::Tcp(address) => {
                let listener = bind(*address)
                    .with_context(|| format!("cannot listen on {address}; correct server.listen"))?;
                tracing::info!(event = "listening_also", "listening on {} too", listener.local_addr()?);
                self.all.push(Listener::Tcp(listener));
            }
            ListenAddress::Unix(path) => {
                let shown = path.display();
                let listener = bind_unix(path)
                    .with_context(|| format!("cannot listen on unix:{shown}; correct server.listen"))?;
                tracing::info!(event = "listening_also", "listening on unix:{shown} too");
                self.files.0.push(path.clone());
                self.all.push(listener);
            }
        }
        Ok(())
    }
}

/// Like [`TcpListener::bind`], which has a queue of only 128 connections.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted server takes over the port from closed connections. On Windows the option would share the port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Listens on a Unix socket, in place of the file that a server left behind when it was killed.
#[cfg(unix)]
fn bind_unix(path: &Path) -> io::Result<Listener> {
    use std::os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            _ => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens on it")),
        }
    }
    UnixListener::bind(path).map(Listener::Unix)
}

#[cfg(not(unix))]
fn bind_unix(_: &Path) -> io::Result<Listener> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets for servers"))
}
