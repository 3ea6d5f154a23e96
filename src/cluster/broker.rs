//! The connection to the NATS server.

use std::{fs, io, path::Path, time::Duration};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind,
    ServerError, Subscriber,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{connect_error::ConnectError, options::Options, subjects::Subjects};

/// Longest wait for the first connection, and for one address of a later one.
const CONNECT: Duration = Duration::from_secs(3);

/// Attempts after [`SWITCH`]: a cluster of NATS servers has another one that answers, and a pause would be one of every running
/// stream.
const AT_ONCE: usize = 3;
const SWITCH: Duration = Duration::from_millis(5);

/// Pause before another attempt. The client's own grows to 4 s.
const RECONNECT: Duration = Duration::from_millis(100);

/// A connection that died without a word is found after two of these.
const PING: Duration = Duration::from_secs(2);

/// Bytes of a message that are kept free for headers and the fields around a part.
const ENVELOPE: usize = 4096;

/// Longest part of a grant. Longer messages would delay the tokens of other jobs.
const MAX_PART: usize = 256 * 1024;

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The server knows of no subscriber.
    NoResponders,
    /// No answer in time, or no connection.
    Late,
}

/// A connection to the NATS server. It reconnects by itself; clones are the same connection.
#[derive(Clone, Debug)]
pub struct Broker {
    client: Client,
    /// Since when it is connected; `None` while it is not.
    connected: watch::Receiver<Option<Instant>>,
    pub(super) subjects: Subjects,
}

impl Broker {
    /// Connects once.
    ///
    /// # Errors
    /// [`ConnectError`] when files, credentials or certificates are wrong, or no server can be reached.
    pub async fn connect(options: &Options, what: &str) -> Result<Self, ConnectError> {
        let (sender, connected) = watch::channel(None);
        let on_event = move |event: Event| {
            note(&sender, &event);
            async {}
        };
        let connect = with_credentials(options)?
            .name(format!("eka {what} {}", options.id))
            .custom_inbox_prefix(format!("_INBOX.{}", options.id))
            .ping_interval(PING)
            .connection_timeout(CONNECT)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| if attempt <= AT_ONCE { SWITCH } else { RECONNECT })
            .event_callback(on_event);
        let urls: Vec<&str> = options.urls.split(',').map(str::trim).collect();
        let client = timeout(CONNECT + Duration::from_secs(1), connect.connect(urls)).await;
        let unreachable =
            || ConnectError::Unreachable { urls: options.urls.clone(), reason: "no answer".into() };
        let client = client.map_err(|_| unreachable())?.map_err(|error| classify(&error, &options.urls))?;
        Ok(Self { client, connected, subjects: Subjects::new(&options.prefix) })
    }

    /// Since when it is connected; `None` while it is not.
    pub(super) fn connected_since(&self) -> Option<Instant> {
        *self.connected.borrow()
    }

    /// Changes whenever the connection is lost or made.
    pub(super) fn connection(&self) -> watch::Receiver<Option<Instant>> {
        self.connected.clone()
    }

    /// Waits until there is a connection.
    pub(super) async fn wait_connected(&self) {
        // An error means that the client has ended, and with it the process.
        let _ = self.connected.clone().wait_for(Option::is_some).await;
    }

    /// A unique subject for answers.
    pub(super) fn new_inbox(&self) -> String {
        self.client.new_inbox()
    }

    /// Longest part of a long message.
    pub(super) fn max_part(&self) -> usize {
        self.client.max_payload().saturating_sub(ENVELOPE).clamp(1024, MAX_PART)
    }

    /// Subscribes to a subject.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(super) async fn subscribe(&self, subject: String) -> Result<Subscriber, ConnectError> {
        self.client.subscribe(subject).await.map_err(|error| ConnectError::Unreachable {
            urls: "cluster.join".into(),
            reason: error.to_string(),
        })
    }

    /// Publishes a message. Waits while the client's buffer is full, so never call it where tokens are generated.
    pub(super) async fn publish(&self, subject: &str, payload: Vec<u8>) {
        // Fails only for invalid subjects and messages that are too long; ours are neither.
        if let Err(error) = self.client.publish(subject.to_owned(), payload.into()).await {
            tracing::error!(subject, "message not published: {error}");
        }
    }

    /// Publishes a message with a subject for answers.
    pub(super) async fn publish_with_reply(&self, subject: &str, reply: &str, payload: Vec<u8>) {
        let (subject, reply) = (subject.to_owned(), reply.to_owned());
        if let Err(error) = self.client.publish_with_reply(subject, reply, payload.into()).await {
            tracing::error!("message not published: {error}");
        }
    }

    /// Sends a request and waits for its answer for at most `limit`.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(super) async fn request(
        &self,
        subject: &str,
        payload: Vec<u8>,
        limit: Duration,
    ) -> Result<Message, NoAnswer> {
        self.request_with(subject, HeaderMap::new(), payload, limit).await
    }

    /// [`Self::request`] with headers.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(super) async fn request_with(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Vec<u8>,
        limit: Duration,
    ) -> Result<Message, NoAnswer> {
        if self.connected_since().is_none() {
            // It would wait in the client's buffer and reach its receiver when nothing waits for the answer.
            let _ = timeout(limit, self.wait_connected()).await;
            return Err(NoAnswer::Late);
        }
        let request = Request::new().payload(payload.into()).timeout(None);
        let request = if headers.is_empty() { request } else { request.headers(headers) };
        match timeout(limit, self.client.send_request(subject.to_owned(), request)).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Err(NoAnswer::NoResponders),
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Late),
        }
    }

    /// Answers a request.
    pub(super) async fn answer(&self, request: &Message, payload: Vec<u8>) {
        if let Some(reply) = &request.reply {
            self.publish(reply.as_str(), payload).await;
        }
    }

    /// Waits until all messages are with the server: those of a client that is dropped before may be lost.
    pub(super) async fn flush(&self, limit: Duration) {
        let _ = timeout(limit, self.client.flush()).await;
    }
}

/// Follows the connection, and logs what an operator has to know.
fn note(connected: &watch::Sender<Option<Instant>>, event: &Event) {
    match event {
        Event::Connected => {
            tracing::info!(event = "broker_connected", "connected to the NATS server");
            connected.send_replace(Some(Instant::now()));
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!(event = "broker_lost", "connection to the NATS server lost; reconnecting");
            connected.send_replace(None);
        }
        // Asynchronous: publishing says that it went well, and nothing arrives.
        Event::ServerError(ServerError::Other(message)) => {
            tracing::error!(
                event = "broker_refused",
                "the NATS server refuses: {message}; check the permissions of cluster.user"
            );
        }
        Event::ServerError(ServerError::AuthorizationViolation) => {
            tracing::error!(event = "broker_refused", "the NATS server refuses the credentials");
        }
        other => tracing::debug!("NATS client: {other}"),
    }
}

fn with_credentials(options: &Options) -> Result<ConnectOptions, ConnectError> {
    let credentials = &options.credentials;
    let mut connect = ConnectOptions::new();
    if let Some((user, file)) = &credentials.user {
        let password = read("cluster.password_file", file)?;
        connect = connect.user_and_password(user.clone(), password);
    }
    if let Some(file) = &credentials.nkey_file {
        connect = connect.nkey(read("cluster.nkey_file", file)?);
    }
    if let Some(file) = &credentials.ca_file {
        read("cluster.ca_file", file)?;
        connect = connect.add_root_certificates(file.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &credentials.certificate {
        read("cluster.cert_file", certificate)?;
        read("cluster.key_file", key)?;
        connect = connect.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    Ok(connect)
}

/// The content of a file without the line's end.
fn read(setting: &'static str, path: &Path) -> Result<String, ConnectError> {
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| ConnectError::File { setting, path: path.into(), source })?;
    Ok(text.trim().to_owned())
}

fn classify(error: &async_nats::ConnectError, urls: &str) -> ConnectError {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let (urls, reason) = (urls.to_owned(), format!("{}{source}", error.kind()));
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Credentials { urls, reason }
        }
        ConnectErrorKind::Tls => ConnectError::Tls { urls, reason },
        // With TLS 1.3 a server refuses a client's certificate after the handshake, so the client reports it as an error of reading.
        _ if is_tls(error) => ConnectError::Tls { urls, reason },
        _ => ConnectError::Unreachable { urls, reason },
    }
}

/// Whether an error or one of its causes is of TLS.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = |error: &io::Error| error.get_ref().is_some_and(|inner| is_tls(inner));
    error.is::<rustls::Error>()
        || error.downcast_ref::<io::Error>().is_some_and(inner)
        || error.source().is_some_and(is_tls)
}
