//! The server-sent events of one answer.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use eventsource_stream::{Event, EventStreamError, Eventsource};
use futures_util::{Stream, StreamExt};
use serde_json::Value;

use super::error::ClientError;

/// Longest event. It bounds the memory that a server can make the client use.
const EVENT_LIMIT: usize = 16 << 20;

/// Why the stream of bytes ended.
#[derive(Debug)]
enum ReadError {
    Network(reqwest::Error),
    TooLong,
}

/// The events of one answer.
pub struct Events {
    url: String,
    events: Pin<Box<dyn Stream<Item = Result<Event, EventStreamError<ReadError>>> + Send>>,
    /// Bytes that were read since the last event.
    unfinished: Arc<AtomicUsize>,
}

impl Events {
    /// Parses the body of the answer from `url`.
    pub(super) fn new(
        url: String,
        bytes: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
    ) -> Self {
        let unfinished = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unfinished);
        let limited = bytes.map(move |bytes| {
            let bytes = bytes.map_err(ReadError::Network)?;
            let before = counter.fetch_add(bytes.len(), Ordering::Relaxed);
            if before + bytes.len() > EVENT_LIMIT { Err(ReadError::TooLong) } else { Ok(bytes) }
        });
        Self { url, events: limited.eventsource().boxed(), unfinished }
    }

    /// The next event's document; `None` at `[DONE]`.
    ///
    /// # Errors
    /// When the connection ends before `[DONE]`, an event is not JSON, or the server reports an error.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        let event = match self.events.next().await {
            None => return Err(ClientError::Truncated("without [DONE]".into())),
            Some(event) => event.map_err(|error| self.error(error))?,
        };
        self.unfinished.store(0, Ordering::Relaxed);
        if event.data == "[DONE]" {
            return Ok(None);
        }
        let document: Value = serde_json::from_str(&event.data)
            .map_err(|error| ClientError::Invalid(format!("an event is not JSON: {error}")))?;
        match document.get("error").filter(|error| !error.is_null()) {
            None => Ok(Some(document)),
            Some(error) => Err(ClientError::of_event(error)),
        }
    }

    fn error(&self, error: EventStreamError<ReadError>) -> ClientError {
        match error {
            EventStreamError::Transport(ReadError::Network(source)) => {
                ClientError::Unreachable { url: self.url.clone(), source }
            }
            EventStreamError::Transport(ReadError::TooLong) => {
                ClientError::Invalid(format!("an event is longer than {EVENT_LIMIT} bytes"))
            }
            EventStreamError::Utf8(_) => ClientError::Invalid("an event is not UTF-8".into()),
            EventStreamError::Parser(_) => ClientError::Invalid("not a stream of events".into()),
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
        Events::new(String::new(), stream::iter(pieces))
    }

    #[tokio::test]
    async fn events_are_found_wherever_the_network_splits_them() {
        let mut split = events(&[
            ": hi\n\nda",
            "ta: {\"a\":",
            " 1}\r",
            "\n\r\ndata:{\ndata: \"b\": 2}\n",
            "\ndata: [DONE]\n\n",
        ]);
        assert_eq!(split.next().await.unwrap().unwrap()["a"], 1);
        assert_eq!(split.next().await.unwrap().unwrap()["b"], 2);
        assert!(split.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_truncated_or_failed_answer_is_an_error() {
        let mut early = events(&["data: {\"a\": 1}\n\n"]);
        assert!(early.next().await.unwrap().is_some());
        assert_eq!(early.next().await.unwrap_err().code(), "cut");
        let mut failed = events(&["data: {\"error\": {\"code\": \"worker_lost\", \"message\": \"m\"}}\n\n"]);
        assert_eq!(failed.next().await.unwrap_err().code(), "worker_lost");
        assert_eq!(events(&["data: {\n\n"]).next().await.unwrap_err().code(), "garbled");
    }

    #[tokio::test]
    async fn an_event_without_an_end_is_refused_before_it_fills_the_memory() {
        let piece = "x".repeat(1 << 20);
        let pieces =
            ["data: "].into_iter().chain(std::iter::repeat_n(piece.as_str(), 17)).collect::<Vec<_>>();
        assert!(events(&pieces).next().await.unwrap_err().to_string().contains("longer than"));
        let event = format!("data: \"{}\"\n\n", "x".repeat(1 << 16));
        let mut many = events(&vec![event.as_str(); 300]);
        for _ in 0..300 {
            assert!(many.next().await.unwrap().is_some());
        }
    }
}
