//! The server's listening socket.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use anyhow::Context;
use tokio::net::TcpSocket;

use super::exit::{Exit, WithExit};
use crate::config::Config;

/// Length of the accept queue, which the system may lower. A client that finds it full retries after a second, which fails a
/// health probe.
const BACKLOG: u32 = 4096;

/// Listens on the configured address.
///
/// # Errors
/// When the address cannot be used.
pub(super) fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(config.server.bind, config.server.port);
    bind(address)
        .with_context(|| format!("cannot listen on {address}; set server.bind or server.port"))
        .with_exit(Exit::Machine)
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
