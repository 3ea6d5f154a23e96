//! Requests to one server.

use std::time::Duration;

use reqwest::{Response, Url};
use serde_json::Value;

use super::{error::ClientError, events::Events};

/// Default for the longest silence of a server within an answer.
pub const PATIENCE: Duration = Duration::from_secs(300);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<reqwest::header::HeaderValue>,
}

impl Client {
    /// A client of the server at `url`, which may end with `/v1`. `patience` is the longest silence within an answer.
    ///
    /// # Errors
    /// When the URL is invalid or needs TLS, or the key cannot be sent in a header.
    pub fn new(url: &str, key: Option<&str>, patience: Duration) -> Result<Self, ClientError> {
        let refuse = |reason: &str| ClientError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let base = Url::parse(url.trim_end_matches('/').trim_end_matches("/v1"))
            .map_err(|error| refuse(&error.to_string()))?;
        match base.scheme() {
            "http" if base.has_host() => {}
            "https" => {
                return Err(refuse("TLS is not supported; use the plain HTTP port or a local proxy"));
            }
            _ => return Err(refuse("it does not start with http://")),
        }
        let key = key.map(|key| format!("Bearer {key}").parse()).transpose().map_err(|_| ClientError::Key)?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(patience)
            // A proxy of the environment would distort measurements.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { http, base, key })
    }

    /// The server's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The body of `GET path`.
    ///
    /// # Errors
    /// When the server cannot be reached, or answers with an error status.
    pub async fn get(&self, path: &str) -> Result<String, ClientError> {
        let url = self.at(path);
        let response = self.send(self.http.get(&url), &url).await?;
        response.text().await.map_err(|source| ClientError::Unreachable { url, source })
    }

    /// `GET path` as JSON.
    ///
    /// # Errors
    /// As [`Self::get`], and when the body is not JSON.
    pub async fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).map_err(|error| ClientError::Invalid(format!("{path}: {error}")))
    }

    /// The answer of `POST path` as JSON.
    ///
    /// # Errors
    /// As [`Self::get_json`].
    pub async fn post_json(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let url = self.at(path);
        let response = self.send(self.http.post(&url).json(body), &url).await?;
        let text = response.text().await.map_err(|source| ClientError::Unreachable { url, source })?;
        serde_json::from_str(&text).map_err(|error| ClientError::Invalid(format!("{path}: {error}")))
    }

    /// Sends `POST path` and returns its events when the head of the answer has arrived.
    ///
    /// # Errors
    /// When the server cannot be reached, or answers with an error status.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Events, ClientError> {
        let url = self.at(path);
        let response = self.send(self.http.post(&url).json(body), &url).await?;
        Ok(Events::new(url, response.bytes_stream()))
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
        Err(ClientError::of_response(status, &response.text().await.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_end_with_v1_and_tls_is_refused() {
        let url = |url: &str| Client::new(url, None, PATIENCE).map(|client| client.url().to_owned());
        assert_eq!(url("http://[::1]:8110/v1/").unwrap(), "http://[::1]:8110");
        assert_eq!(url("http://localhost").unwrap(), "http://localhost");
        for refused in ["https://localhost", "localhost:8110", "ftp://x", ""] {
            assert!(url(refused).is_err(), "{refused}");
        }
        assert!(Client::new("http://x", Some("a\nb"), PATIENCE).is_err());
    }
}
