//! Why a connection to the NATS server cannot be used.

use std::path::PathBuf;

/// Why a connection to the NATS server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file of the settings cannot be read.
    #[error("{}: {source}; set {setting}", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The server does not accept the credentials.
    #[error(
        "the NATS server at {urls} refuses the credentials: {reason}; check cluster.user and cluster.password_file, or \
         cluster.nkey_file"
    )]
    Credentials {
        /// Its URLs.
        urls: String,
        /// Its reason.
        reason: String,
    },
    /// No TLS connection can be made.
    #[error(
        "no TLS connection to the NATS server at {urls}: {reason}; check cluster.ca_file, cluster.cert_file and \
         cluster.key_file"
    )]
    Tls {
        /// Its URLs.
        urls: String,
        /// Why not.
        reason: String,
    },
    /// The server cannot be reached. Trying again later may help.
    #[error("the NATS server at {urls} cannot be reached: {reason}; check cluster.join")]
    Unreachable {
        /// Its URLs.
        urls: String,
        /// Why not.
        reason: String,
    },
    /// The server has no JetStream, or does not allow its use.
    #[error("the NATS server at {urls} does not keep the queue: {reason}")]
    Stream {
        /// Its URLs.
        urls: String,
        /// Why not, and the way out.
        reason: String,
    },
}

impl ConnectError {
    /// Whether trying again later may help.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
