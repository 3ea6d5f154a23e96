//! Server-sent events: JSON in one `data:` line, optionally after an `event:` line.

use actix_web::web::Bytes;
use serde::Serialize;

/// Events that are sent together.
#[derive(Debug, Default)]
pub(crate) struct SseEvents {
    bytes: Vec<u8>,
    /// Where each event ends.
    ends: Vec<usize>,
}

impl SseEvents {
    /// Appends an event.
    pub(crate) fn push(&mut self, event: &impl Serialize) {
        self.bytes.extend_from_slice(b"data: ");
        // Fails neither in writing to memory nor in serializing: every key is a string. JSON has no line breaks.
        let _ = serde_json::to_writer(&mut self.bytes, event);
        self.bytes.extend_from_slice(b"\n\n");
        self.ends.push(self.bytes.len());
    }

    /// Appends an event with an `event:` line before its data, as OpenAI's Responses API has it.
    pub(crate) fn push_typed(&mut self, kind: &str, event: &impl Serialize) {
        self.bytes.extend_from_slice(b"event: ");
        self.bytes.extend_from_slice(kind.as_bytes());
        self.bytes.push(b'\n');
        self.push(event);
    }

    /// Appends an event whose JSON is written already.
    pub(crate) fn push_raw(&mut self, kind: &str, json: &str) {
        self.bytes.extend_from_slice(format!("event: {kind}\ndata: {json}\n\n").as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// Appends a line of JSON, without the frame of an event.
    pub(crate) fn push_line(&mut self, line: &impl Serialize) {
        // As in `push`.
        let _ = serde_json::to_writer(&mut self.bytes, line);
        self.bytes.push(b'\n');
    }

    /// Appends a line whose JSON is written already.
    pub(crate) fn push_raw_line(&mut self, json: &str) {
        self.bytes.extend_from_slice(json.as_bytes());
        self.bytes.push(b'\n');
    }

    /// Appends `data: [DONE]`, which ends OpenAI's completion streams.
    pub(crate) fn push_done(&mut self) {
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
        self.ends.push(self.bytes.len());
    }

    /// The bytes of each event.
    pub(crate) fn split(self) -> impl Iterator<Item = Bytes> {
        let (bytes, mut from) = (Bytes::from(self.bytes), 0);
        self.ends.into_iter().map(move |end| bytes.slice(std::mem::replace(&mut from, end)..end))
    }
}

impl From<SseEvents> for Bytes {
    fn from(frame: SseEvents) -> Self {
        frame.bytes.into()
    }
}
