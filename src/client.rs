//! A server as its clients see it: requests over HTTP, and answers that come event by event.
//!
//! `eka smoke` and `eka bench --url` ask through this and through nothing that the server is made of, so that what they
//! find is what others would. It speaks plain HTTP alone.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::{Response, StatusCode, Url};
use serde_json::Value;

/// Longest silence of a server within an answer, unless somebody says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// To find nobody at an address.
const CONNECT: Duration = Duration::from_secs(10);

/// Longest event that is read; a server that never ends a line shall not fill our memory.
const EVENT_LIMIT: usize = 16 << 20;

/// What went wrong with one request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{url:?} is no address of a server: {why}; it looks like http://127.0.0.1:8110")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The API key has characters that no header can have.
    #[error("the API key cannot be sent in a header: it has characters besides visible ASCII")]
    Key,
    /// The client cannot be made.
    #[error("no HTTP client can be made: {0}")]
    Setup(#[source] reqwest::Error),
    /// Nobody answers, or not to the end.
    #[error("no answer from {url}: {}", innermost(.source))]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// An answer that says no.
    #[error("{status}{}: {message}", .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// The server's own name for it.
        code: Option<String>,
        /// The server's words.
        message: String,
    },
    /// A failure that was told after the answer had begun.
    #[error("{}: {message}", .code.as_deref().unwrap_or("failed within the answer"))]
    Failed {
        /// The server's own name for it.
        code: Option<String>,
        /// The server's words.
        message: String,
    },
    /// The answer ended before it was complete.
    #[error("the answer ended early: {0}")]
    Cut(String),
    /// What was sent is not what was agreed on.
    #[error("the answer cannot be read: {0}")]
    Garbled(String),
}

impl ClientError {
    /// A short name to count it under: the server's own code, or the status, or what happened on the way.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            Self::Refused { code: Some(code), .. } | Self::Failed { code: Some(code), .. } => code.clone(),
            Self::Refused { status, .. } => format!("http_{status}"),
            Self::Failed { .. } => "failed".into(),
            Self::Unreachable { source, .. } if source.is_timeout() => "timeout".into(),
            Self::Unreachable { source, .. } if source.is_connect() => "connect".into(),
            Self::Unreachable { .. } | Self::Cut(_) => "cut".into(),
            Self::Garbled(_) => "garbled".into(),
            Self::Url { .. } | Self::Key | Self::Setup(_) => "client".into(),
        }
    }
}

/// The cause that says most: that of the operating system.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Asks one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<reqwest::header::HeaderValue>,
}

impl Client {
    /// For the server at `url`, which may end with `/v1` as other clients write it. `patience` is the longest silence
    /// within an answer.
    ///
    /// # Errors
    /// When the address is none, or needs TLS; when the key cannot be sent.
    pub fn new(url: &str, key: Option<&str>, patience: Duration) -> Result<Self, ClientError> {
        let refuse = |why: &str| ClientError::Url { url: url.to_owned(), why: why.to_owned() };
        let base = Url::parse(url.trim_end_matches('/').trim_end_matches("/v1"))
            .map_err(|error| refuse(&error.to_string()))?;
        match base.scheme() {
            "http" if base.has_host() => {}
            "https" => {
                return Err(refuse(
                    "TLS is not spoken here; ask the server behind its proxy, or through one on this machine",
                ));
            }
            _ => return Err(refuse("it does not begin with http://")),
        }
        let key = key.map(|key| format!("Bearer {key}").parse()).transpose().map_err(|_| ClientError::Key)?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(patience)
            // The server that was named, and no proxy of this machine's environment, is what is measured.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { http, base, key })
    }

    /// The server's address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The body of `GET path`.
    ///
    /// # Errors
    /// When there is no answer, or one that says no.
    pub async fn get(&self, path: &str) -> Result<String, ClientError> {
        let url = self.at(path);
        let response = self.send(self.http.get(&url), &url).await?;
        response.text().await.map_err(|source| ClientError::Unreachable { url, source })
    }

    /// `GET path` as JSON.
    ///
    /// # Errors
    /// As [`Self::get`], and when it is no JSON.
    pub async fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).map_err(|error| ClientError::Garbled(format!("{path}: {error}")))
    }

    /// The events of `POST path`, from when the head of the answer is there.
    ///
    /// # Errors
    /// When there is no answer, or one that says no.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Events, ClientError> {
        let url = self.at(path);
        let response = self.send(self.http.post(&url).json(body), &url).await?;
        let bytes = response.bytes_stream().boxed();
        Ok(Events { url, bytes, unread: Vec::new(), events: VecDeque::new(), data: String::new() })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url())
    }

    async fn send(&self, mut request: reqwest::RequestBuilder, url: &str) -> Result<Response, ClientError> {
        if let Some(key) = &self.key {
            request = request.header(reqwest::header::AUTHORIZATION, key);
        }
        let unreachable = |source| ClientError::Unreachable { url: url.to_owned(), source };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(refusal(status, &response.text().await.unwrap_or_default()))
    }
}

/// What a server says with a status that is no success.
fn refusal(status: StatusCode, body: &str) -> ClientError {
    let document: Value = serde_json::from_str(body).unwrap_or_default();
    let (code, message) = told(&document["error"]);
    let words = || body.chars().take(200).collect::<String>();
    ClientError::Refused { status: status.as_u16(), code, message: message.unwrap_or_else(words) }
}

/// Code and message of an error as OpenAI writes it; some servers put text or a number there.
fn told(error: &Value) -> (Option<String>, Option<String>) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let code = text(&error["code"]).or_else(|| text(&error["type"]));
    (code, text(&error["message"]).or_else(|| text(error)))
}

/// The events of one answer.
pub struct Events {
    url: String,
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    /// The beginning of a line whose end has not come.
    unread: Vec<u8>,
    /// Complete events that nobody asked for yet.
    events: VecDeque<String>,
    /// The lines of the event that has not ended.
    data: String,
}

impl Events {
    /// The next event's document; `None` at `[DONE]`.
    ///
    /// # Errors
    /// When the connection breaks or ends before that, what comes is no JSON, or the server tells of a failure.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        let Some(data) = self.data().await? else {
            return Err(ClientError::Cut("without [DONE]".into()));
        };
        if data == "[DONE]" {
            return Ok(None);
        }
        let document: Value = serde_json::from_str(&data)
            .map_err(|error| ClientError::Garbled(format!("{error} in an event")))?;
        match document.get("error").filter(|error| !error.is_null()) {
            None => Ok(Some(document)),
            Some(error) => {
                let (code, message) = told(error);
                Err(ClientError::Failed { code, message: message.unwrap_or_else(|| error.to_string()) })
            }
        }
    }

    /// The next event's data; `None` when the connection has ended.
    async fn data(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(data) = self.events.pop_front() {
                return Ok(Some(data));
            }
            match self.bytes.next().await {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(ClientError::Unreachable { url: self.url.clone(), source });
                }
                Some(Ok(bytes)) => self.push(&bytes)?,
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.unread.extend_from_slice(bytes);
        let mut lines = std::mem::take(&mut self.unread);
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let rest = lines.split_off(end + 1);
            let line = String::from_utf8(std::mem::replace(&mut lines, rest))
                .map_err(|_| ClientError::Garbled("an event is not UTF-8".into()))?;
            self.line(line.trim_end_matches(['\n', '\r']));
        }
        self.unread = lines;
        if self.unread.len() + self.data.len() > EVENT_LIMIT {
            return Err(ClientError::Garbled(format!("an event is longer than {EVENT_LIMIT} bytes")));
        }
        Ok(())
    }

    /// A line of the format of server-sent events: comments and fields besides `data` mean nothing here.
    fn line(&mut self, line: &str) {
        if line.is_empty() {
            if !self.data.is_empty() {
                self.events.push_back(std::mem::take(&mut self.data));
            }
        } else if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn events(pieces: &[&str]) -> Events {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece.as_bytes()))).collect();
        Events {
            url: String::new(),
            bytes: stream::iter(pieces).boxed(),
            unread: Vec::new(),
            events: VecDeque::new(),
            data: String::new(),
        }
    }

    #[tokio::test]
    async fn events_are_found_wherever_the_network_cuts_them() {
        let mut cut = events(&[
            ": hi\n\nda",
            "ta: {\"a\":",
            " 1}\r",
            "\n\r\ndata:{\ndata: \"b\": 2}\n",
            "\ndata: [DONE]\n\n",
        ]);
        assert_eq!(cut.next().await.unwrap().unwrap()["a"], 1);
        assert_eq!(cut.next().await.unwrap().unwrap()["b"], 2);
        assert!(cut.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_answer_that_ends_early_is_no_answer() {
        let mut early = events(&["data: {\"a\": 1}\n\n"]);
        assert!(early.next().await.unwrap().is_some());
        assert_eq!(early.next().await.unwrap_err().code(), "cut");
        let mut failed = events(&["data: {\"error\": {\"code\": \"worker_lost\", \"message\": \"m\"}}\n\n"]);
        assert_eq!(failed.next().await.unwrap_err().code(), "worker_lost");
        assert_eq!(events(&["data: {\n\n"]).next().await.unwrap_err().code(), "garbled");
    }

    #[test]
    fn an_address_is_taken_as_other_clients_write_it() {
        let url = |url: &str| Client::new(url, None, PATIENCE).map(|client| client.url().to_owned());
        assert_eq!(url("http://[::1]:8110/v1/").unwrap(), "http://[::1]:8110");
        assert_eq!(url("http://localhost").unwrap(), "http://localhost");
        for refused in ["https://localhost", "localhost:8110", "ftp://x", ""] {
            assert!(url(refused).is_err(), "{refused}");
        }
        assert!(Client::new("http://x", Some("a\nb"), PATIENCE).is_err());
    }

    #[test]
    fn a_refusal_is_counted_by_the_servers_own_name_for_it() {
        let refused = |body: &str| refusal(StatusCode::TOO_MANY_REQUESTS, body).code();
        assert_eq!(refused(r#"{"error": {"code": "queue_full", "message": "m"}}"#), "queue_full");
        assert_eq!(refused(r#"{"error": {"code": 429, "message": "m", "type": "too_many"}}"#), "too_many");
        assert_eq!(refused("<html>"), "http_429");
    }
}
