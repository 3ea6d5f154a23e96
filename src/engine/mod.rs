//! The loop that turns a job into tokens.
//!
//! ```text
//! Job ─► generate ──► Forward (a Timeline: model + cache) ──► logits ──► Sampler ─► token ─► emit
//!           ▲                                                                        │
//!           └───────────── Drafter: what may follow, fed along where it pays ◄───────┘
//! ```
//!
//! [`generate`] knows neither sessions nor pipes: it is given something that can be fed tokens and somewhere to say what
//! happens, so it is tested with a script in place of a model. The saying is also the asking: whoever listens answers
//! whether to go on, after every prefill chunk and every step.

mod dry;
mod generate;
mod prefixes;
mod restored;
mod sampler;
mod scores;
mod speculation;
mod threads;
mod timeline;

pub use generate::{Outcome, Step, generate};
pub use sampler::Sampler;
pub use speculation::Speculation;
pub use timeline::{Timeline, TimelineOptions};

use crate::{
    device::{DeviceError, DeviceErrorKind},
    job::{CacheSalt, Failure},
};

/// Something that can be fed tokens: a [`Timeline`], or a script in a test.
pub trait Forward {
    /// Forgets every position from `length` on.
    fn rewind(&mut self, length: usize);

    /// Begins the sequence `tokens`: forgets what was fed before, except what is kept of a sequence of the same `salt` with
    /// the same beginning. Returns how many positions are already filled: at most `most`, and fewer than there are tokens,
    /// because the logits of the last one are always needed.
    fn begin(&mut self, tokens: &[u32], most: usize, salt: CacheSalt) -> usize {
        let _ = (tokens, most, salt);
        self.rewind(0);
        0
    }

    /// Makes room for `more` positions at once. It need not be called: room is made as it is needed, but step by step.
    ///
    /// # Errors
    /// [`EngineError::Context`] when they do not fit, [`EngineError::Device`] when there is no memory for them: every
    /// position is forgotten then.
    fn reserve(&mut self, more: usize) -> Result<(), EngineError>;

    /// Appends `tokens` (at least one, at most [`chunk`](Self::chunk)) and returns the logits of the last one,
    /// `[vocab]`, for the caller to read or change.
    ///
    /// # Errors
    /// [`EngineError::Context`] when they do not fit, [`EngineError::Device`] when the device fails.
    fn forward(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.forward_rows(tokens, 1)
    }

    /// Appends `tokens` and returns the logits of the last `rows` of them, `[rows, vocab]`; at most [`rows`](Self::rows)
    /// tokens where that is more than one.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError>;

    /// Most tokens whose logits one call gives.
    fn rows(&self) -> usize {
        1
    }

    /// Most tokens of one call.
    fn chunk(&self) -> usize;

    /// Most positions in all.
    fn capacity(&self) -> usize;

    /// Number of token ids.
    fn vocabulary(&self) -> usize;
}

/// Why a generation could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No room for more positions.
    #[error("context full: {used} of {capacity} positions used, {asked} more asked")]
    Context {
        /// Positions in use.
        used: usize,
        /// Positions asked for.
        asked: usize,
        /// Positions there are.
        capacity: usize,
    },
    /// The job cannot be run by this model at all.
    #[error(transparent)]
    Job(Failure),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl EngineError {
    /// What it means for the device.
    #[must_use]
    pub fn fault(&self) -> DeviceErrorKind {
        match self {
            Self::Device(e) => e.kind(),
            _ => DeviceErrorKind::Other,
        }
    }

    /// What to do about a lack of memory, where the error itself does not say.
    fn way_out(&self) -> &'static str {
        match self {
            Self::Device(DeviceError::NoRoom { .. }) => "",
            _ => {
                "; use a shorter prompt or answer, lower engine.context_length, or raise device.memory_limit_bytes"
            }
        }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        match e {
            EngineError::Job(failure) => failure,
            other if other.fault() == DeviceErrorKind::OutOfMemory => {
                Self::OutOfMemory { message: format!("{other}{}", other.way_out()) }
            }
            other => Self::Device { message: other.to_string() },
        }
    }
}
