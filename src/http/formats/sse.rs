//! Server-sent events: JSON in one `data:` line, optionally after an `event:` line.

use actix_web::web::Bytes;
use serde::Serialize;

/// Events that are sent together.
#[derive(Debug, Default)]
pub(crate) struct SseEvents(Vec<u8>);

impl SseEvents {
    /// Appends an event.
    pub(crate) fn push(&mut self, event: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // Fails neither in writing to memory nor in serializing: every key is a string. JSON has no line breaks.
        let _ = serde_json::to_writer(&mut self.0, event);
        self.0.extend_from_slice(b"\n\n");
    }

    /// Appends an event with an `event:` line before its data, as OpenAI's Responses API has it.
    pub(crate) fn push_typed(&mut self, kind: &str, event: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(kind.as_bytes());
        self.0.push(b'\n');
        self.push(event);
    }

    /// Appends an event whose JSON is written already.
    pub(crate) fn push_raw(&mut self, kind: &str, json: &str) {
        self.0.extend_from_slice(format!("event: {kind}\ndata: {json}\n\n").as_bytes());
    }

    /// Appends a line of JSON, without the frame of an event.
    pub(crate) fn push_line(&mut self, line: &impl Serialize) {
        // As in `push`.
        let _ = serde_json::to_writer(&mut self.0, line);
        self.0.push(b'\n');
    }

    /// Appends a line whose JSON is written already.
    pub(crate) fn push_raw_line(&mut self, json: &str) {
        self.0.extend_from_slice(json.as_bytes());
        self.0.push(b'\n');
    }

    /// Appends `data: [DONE]`, which ends OpenAI's completion streams.
    pub(crate) fn push_done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }
}

impl From<SseEvents> for Bytes {
    fn from(frame: SseEvents) -> Self {
        frame.0.into()
    }
}
