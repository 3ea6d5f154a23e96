//! The interface between the generation loop and a model.

use super::error::EngineError;
use crate::job::{CacheScope, Failure};

/// A model that can be fed tokens: a [`Timeline`](super::Timeline), or a script in a test.
pub trait Forward {
    /// Forgets every position from `length` on.
    fn rewind(&mut self, length: usize);

    /// Begins the sequence `tokens` and reuses the cache of an earlier sequence of the same `scope` with the same beginning.
    /// Returns the number of reused positions: at most `max`, and less than the number of tokens, because the logits of the
    /// last token are always needed.
    fn begin(&mut self, tokens: &[u32], max: usize, scope: CacheScope) -> usize {
        let _ = (tokens, max, scope);
        self.rewind(0);
        0
    }

    /// Makes room for `more` positions at once. Optional: without it the cache grows step by step.
    ///
    /// # Errors
    /// [`EngineError::Context`] when they do not fit, [`EngineError::Device`] when there is not enough memory. In the second
    /// case every position is forgotten.
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

    /// Appends `tokens` (at least one, at most [`scored_chunk`](Self::scored_chunk)) and returns the logits of all of them,
    /// `[tokens, vocab]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    fn forward_scored(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.forward_rows(tokens, tokens.len())
    }

    /// Appends `tokens` and returns the hidden states of the last `rows` of them, `[rows, hidden]`: of the last one alone, or of all,
    /// which are then at most [`scored_chunk`](Self::scored_chunk). A sequence is fed with the same number each time.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Failure::NoEmbeddings`] from a model that gives none.
    fn forward_hidden(&mut self, tokens: &[u32], rows: usize) -> Result<&[f32], EngineError> {
        let _ = (tokens, rows);
        Err(EngineError::Job(Failure::NoEmbeddings))
    }

    /// Maximum number of tokens of one [`forward_scored`](Self::forward_scored).
    fn scored_chunk(&self) -> usize {
        1
    }

    /// Maximum number of answer tokens in one call when several are known: those of a resumed answer, or those that a constraint
    /// forces. 1 if a longer pass would compute different bits and results must be exact.
    fn answer_chunk(&self) -> usize {
        self.chunk()
    }

    /// Maximum number of tokens whose logits [`forward_rows`](Self::forward_rows) returns.
    fn rows(&self) -> usize {
        1
    }

    /// Maximum number of tokens of one call.
    fn chunk(&self) -> usize;

    /// Maximum number of positions.
    fn capacity(&self) -> usize;

    /// Number of token ids.
    fn vocabulary(&self) -> usize;
}

/// A model that computes several sequences in one pass, each with the bits that it has alone. They are branches of the sequence
/// that [`Forward`] was fed.
pub trait ForwardBranches: Forward {
    /// Makes room for `rows` positions of the cache in all: those of the sequence, and those that branches add to it.
    ///
    /// # Errors
    /// [`EngineError::Device`] when there is not enough memory. Every position is forgotten then.
    fn reserve_branches(&mut self, rows: usize) -> Result<(), EngineError>;

    /// Lets up to `sequences` branches be fed in one pass.
    ///
    /// # Errors
    /// [`EngineError::Device`] when memory cannot be mapped or bound.
    fn branch(&mut self, sequences: usize) -> Result<(), EngineError>;

    /// A new branch with room for `more` positions. It begins with all positions of the branch `from`, or else of the sequence.
    fn fork(&mut self, from: Option<usize>, more: usize) -> usize;

    /// Appends tokens (at least one each, at most [`chunk`](Forward::chunk) in all or one for each branch) to branches, and
    /// returns the logits of the last one of each, `[branches, vocab]`.
    ///
    /// # Errors
    /// [`EngineError::Context`] when they do not fit, [`EngineError::Device`] when the device fails.
    fn forward_branches(&mut self, fed: &[(usize, &[u32])]) -> Result<&mut [f32], EngineError>;
}
