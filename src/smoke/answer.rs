//! An answer as a client sees it.

use serde::Serialize;

/// An answer as a client sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ObservedAnswer {
    /// The whole text.
    pub text: String,
    /// The pieces of the stream, concatenated.
    #[serde(skip)]
    pub pieces: String,
    /// Why generation ended.
    pub finish_reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Time from the request to the first text.
    pub first_text_ms: f64,
    /// Time from the request to the end.
    pub response_ms: f64,
    /// Decode speed, as the server reports it.
    pub tokens_per_second: Option<f64>,
    /// How often generation was resumed on another worker.
    pub resumed: u64,
    /// Resident memory of the worker around the request, in bytes.
    pub memory: MemoryUse,
}

/// Memory around a request, in bytes; `None` if the server does not report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// Before the request.
    pub before: Option<u64>,
    /// Peak during the request.
    pub peak: Option<u64>,
    /// After the request.
    pub after: Option<u64>,
}
