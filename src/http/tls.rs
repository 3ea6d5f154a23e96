//! TLS with a certificate and a key from files that can be reloaded.
//!
//! A connection keeps the certificate it began with, so a reload closes no connection. rustls supports TLS 1.2 and 1.3.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    Error, InconsistentKeys, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use x509_cert::{Certificate, der::Decode};

use crate::{files, units::Bytes};

/// HTTP/2 in TLS's list of application protocols.
pub(crate) const HTTP2: &[u8] = b"h2";

/// The certificate and key of the server.
#[derive(Debug)]
pub struct Tls {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

/// Why certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting} {}: {source}; name a file that eka may read", path.display())]
    Read {
        /// The setting with its path.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{setting} {}: {problem}", path.display())]
    Content {
        /// The setting with its path.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem, and what is expected.
        problem: String,
    },
    /// The key does not belong to the certificate.
    #[error(
        "tls.key_file {} is not the key of the first certificate in tls.cert_file {}; put the server's own certificate \
         first, or name its key",
        key.display(), cert.display()
    )]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// rustls refuses its own protocol versions; does not happen in practice.
    #[error("TLS cannot be set up: {0}")]
    Setup(Error),
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used.
    pub fn open(cert_file: &Path, key_file: &Path) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(read(cert_file, key_file)?));
        Ok(Self { cert_file: cert_file.into(), key_file: key_file.into(), current })
    }

    /// Reads both files again, for new connections.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used; the old certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = Arc::new(read(&self.cert_file, &self.key_file)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// The two files.
    #[must_use]
    pub fn files(&self) -> [&Path; 2] {
        [&self.cert_file, &self.key_file]
    }

    /// A warning if the certificate is expired or not yet valid.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let validity = Certificate::from_der(self.current().cert.first()?).ok()?.tbs_certificate.validity;
        let file = self.cert_file.display();
        if validity.not_after.to_system_time() < now {
            Some(format!(
                "the certificate of {file} expired at {}: clients will refuse it",
                validity.not_after
            ))
        } else if validity.not_before.to_system_time() > now {
            Some(format!("the certificate of {file} is valid only from {}", validity.not_before))
        } else {
            None
        }
    }

    /// The configuration of the HTTP server.
    pub(crate) fn server_config(self: Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Setup)?;
        let mut config = config.with_no_client_auth().with_cert_resolver(self);
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Tls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn read(cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(cert_file)?;
    let key = private_key(key_file)?;
    let provider: CryptoProvider = ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch { cert: cert_file.into(), key: key_file.into() }
        }
        Error::InvalidCertificate(_) => content(CERT, cert_file, &format!("not a certificate: {error}")),
        other => {
            content(KEY, key_file, &format!("a key that cannot be used: {other}; use RSA, ECDSA or Ed25519"))
        }
    })
}

/// Far more than a long certificate chain has.
const MAX_FILE: Bytes = Bytes::mib(4);

const CERT: &str = "tls.cert_file";
const KEY: &str = "tls.key_file";

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = bytes(CERT, path)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if chain.is_empty() => Err(content(CERT, path, "no certificate in it; PEM is expected")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(content(CERT, path, &format!("not PEM: {error}"))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&bytes(KEY, path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            content(KEY, path, "no private key in it; PEM without a passphrase is expected")
        }
        other => content(KEY, path, &format!("not PEM: {other}")),
    })
}

fn bytes(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    files::read(path, MAX_FILE).map_err(|source| TlsError::Read { setting, path: path.into(), source })
}

fn content(setting: &'static str, path: &Path, problem: &str) -> TlsError {
    TlsError::Content { setting, path: path.into(), problem: problem.into() }
}
