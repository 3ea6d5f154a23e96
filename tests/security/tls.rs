//! TLS over real sockets: certificate reload, protocol versions, unusable files.

use std::{fs, path::PathBuf, sync::Arc, time::SystemTime};

use eka::http::{Tls, TlsError};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{
    http2,
    program::{Program, argument, run, text},
    server::{Server, ServerOptions},
};

/// A directory with `cert.pem` and `key.pem`.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> (Self, CertificateDer<'static>) {
        let files = Self(tempfile::tempdir().unwrap());
        let certificate = files.replace(CertificateParams::new(names()).unwrap());
        (files, certificate)
    }

    /// Puts another certificate in the place of the last one.
    fn replace(&self, params: CertificateParams) -> CertificateDer<'static> {
        let signing_key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&signing_key).unwrap();
        fs::write(self.key(), signing_key.serialize_pem()).unwrap();
        fs::write(self.cert(), cert.pem()).unwrap();
        cert.der().clone()
    }

    fn cert(&self) -> PathBuf {
        self.0.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }

    fn open(&self) -> Result<Tls, TlsError> {
        Tls::open(&self.cert(), &self.key())
    }

    fn refused(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

fn names() -> Vec<String> {
    vec!["localhost".into()]
}

/// A connection from a client that trusts only this certificate.
async fn connect(address: &str, trusted: &CertificateDer<'static>) -> std::io::Result<TlsStream<TcpStream>> {
    connect_to_speak(b"http/1.1", address, trusted).await
}

async fn connect_to_speak(
    protocol: &[u8],
    address: &str,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

async fn livez(connection: &mut TlsStream<TcpStream>) -> String {
    connection.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(connection.read_buf(&mut answer).await.unwrap() > 0, "the connection ended");
    }
    String::from_utf8(answer).unwrap()
}

fn start(files: &Files) -> (Server, Arc<Tls>, String) {
    let tls = Arc::new(files.open().unwrap());
    let server = Server::start_with(ServerOptions::default(), |state| state.tls = Some(Arc::clone(&tls)));
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    (server, tls, address)
}

#[tokio::test]
async fn a_new_certificate_does_not_drop_connections() {
    let (files, first) = Files::new();
    let (_server, tls, address) = start(&files);
    let mut early = connect(&address, &first).await.unwrap();
    assert!(livez(&mut early).await.starts_with("HTTP/1.1 200"));
    let second = files.replace(CertificateParams::new(names()).unwrap());
    tls.reload().unwrap();
    assert!(livez(&mut early).await.starts_with("HTTP/1.1 200"), "it goes on");
    connect(&address, &first).await.unwrap_err();
    assert!(livez(&mut connect(&address, &second).await.unwrap()).await.starts_with("HTTP/1.1 200"));
    fs::write(files.key(), "no key").unwrap();
    tls.reload().unwrap_err();
    connect(&address, &second).await.unwrap();
}

#[tokio::test]
async fn tls_negotiates_http_1_1_and_http_2() {
    let (files, certificate) = Files::new();
    let (server, _tls, address) = start(&files);
    let connection = connect(&address, &certificate).await.unwrap();
    assert_eq!(connection.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let connection = connect_to_speak(b"h2", &address, &certificate).await.unwrap();
    let mut client = http2::client(connection).await;
    let answer = client.send_request(http2::request(&server, "/livez", None)).await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (hyper::Version::HTTP_2, 200));
    assert!(http2::text(answer).await.contains("alive"));
    let refused = connect_to_speak(b"spdy/3", &address, &certificate).await.unwrap_err().to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
}

/// The first message of an old client: a TLS 1.1 hello with one of its cipher suites.
fn old_hello() -> Vec<u8> {
    let mut hello = vec![0x03, 0x02];
    hello.extend([7; 32]);
    // No session, AES-128-CBC-SHA, no compression.
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    [&[0x16, 0x03, 0x02, 0, length + 4, 0x01, 0, 0, length], &hello[..]].concat()
}

#[tokio::test]
async fn tls_below_1_2_and_plain_http_are_rejected() {
    let (files, certificate) = Files::new();
    let (_server, _tls, address) = start(&files);
    for (bytes, is_refused) in [
        // A fatal alert: handshake_failure or protocol_version.
        (
            old_hello(),
            (|answer| answer.first() == Some(&0x15) && [Some(&40), Some(&70)].contains(&answer.last()))
                as fn(&[u8]) -> bool,
        ),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), |answer| answer.starts_with(b"HTTP/1.1 400 ")),
    ] {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(is_refused(&answer), "{answer:?}");
    }
    connect(&address, &certificate).await.unwrap();
}

#[test]
fn unusable_certificate_files_are_named_with_the_reason() {
    let (files, _) = Files::new();
    let cert = fs::read(files.cert()).unwrap();
    let key = fs::read(files.key()).unwrap();
    let other = KeyPair::generate().unwrap().serialize_pem();
    for (cert_file, key_file, setting, problem) in [
        (&b""[..], &key[..], "tls.cert_file", "no certificate in it"),
        (&cert, &cert, "tls.key_file", "no private key in it"),
        (&cert, other.as_bytes(), "tls.key_file", "is not the key of the first certificate"),
        (&cert[..60], &key, "tls.cert_file", "not PEM"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &key,
            "tls.cert_file",
            "not a certificate",
        ),
        (
            &cert,
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "tls.key_file",
            "cannot be used",
        ),
    ] {
        fs::write(files.cert(), cert_file).unwrap();
        fs::write(files.key(), key_file).unwrap();
        let message = files.refused();
        assert!(message.contains(setting) && message.contains(problem), "{message}");
        assert!(message.contains(".pem"), "the file is named: {message}");
    }
    fs::remove_file(files.key()).unwrap();
    fs::write(files.cert(), cert).unwrap();
    assert!(files.refused().contains("key.pem: No such file"), "{}", files.refused());
}

#[test]
fn an_expired_certificate_is_a_warning() {
    let (files, _) = Files::new();
    assert_eq!(files.open().unwrap().warning(SystemTime::now()), None);
    let mut params = CertificateParams::new(names()).unwrap();
    params.not_after = date_time_ymd(2020, 2, 29);
    params.not_before = date_time_ymd(2019, 1, 1);
    files.replace(params);
    let warning = files.open().unwrap().warning(SystemTime::now()).unwrap();
    assert!(warning.contains("expired at 2020-02-29"), "{warning}");
    let mut params = CertificateParams::new(names()).unwrap();
    params.not_before = date_time_ymd(2999, 1, 1);
    params.not_after = date_time_ymd(3000, 1, 1);
    files.replace(params);
    assert!(files.open().unwrap().warning(SystemTime::now()).unwrap().contains("only from 2999"));
}

#[tokio::test]
async fn the_server_serves_https_and_reloads_its_certificate() {
    let (files, first) = Files::new();
    let settings = [
        format!("tls.cert_file={}", argument(&files.cert())),
        format!("tls.key_file={}", argument(&files.key())),
    ];
    let flags = ["--set", &settings[0], "--set", &settings[1]];
    let program = Program::start_listening(&flags).await;
    let address = program.url.strip_prefix("https://").unwrap().to_owned();
    connect(&address, &first).await.unwrap();
    let second = files.replace(CertificateParams::new(names()).unwrap());
    program.has_logged("certificate_reloaded").await;
    connect(&address, &second).await.unwrap();
    let mismatched =
        run(&["serve", "--set", &settings[0], "--set", &format!("tls.key_file={}", argument(&files.cert()))]);
    assert!(!mismatched.status.success());
    assert!(text(&mismatched.stderr).contains("no private key in it"), "{}", text(&mismatched.stderr));
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_a_sentence() {
    let (files, _) = Files::new();
    let tls = Arc::new(files.open().unwrap());
    let server = Server::start_with(ServerOptions::default(), |state| state.tls = Some(tls));
    let answer = server.client.get(&server.url).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    let error: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(error["error"]["code"], "tls_required");
    assert!(error["error"]["message"].as_str().unwrap().contains("use https:// instead of http://"));
}
