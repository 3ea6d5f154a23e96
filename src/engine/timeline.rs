//! One growing sequence of tokens and its key-value cache.

use std::fmt;

use super::{EngineError, Forward};
use crate::{
    device::DeviceError,
    model::{Cache, Model, Pass},
};

/// How a timeline is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineOptions {
    /// Most positions; the model's context length is the upper limit, and what 0 stands for.
    pub capacity: usize,
    /// Most tokens of one pass; at least 1.
    pub chunk: usize,
}

/// A model and one sequence fed to it.
///
/// Two passes are bound over one cache: one token wide for decode, `chunk` wide for prefill. Neither is ever bound
/// again, so a decode step is three integers written and one call.
pub struct Timeline {
    model: Model,
    cache: Cache,
    decode: Pass,
    prefill: Pass,
    length: usize,
    chunk: usize,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let capacity = self.cache.capacity();
        f.debug_struct("Timeline")
            .field("length", &self.length)
            .field("capacity", &capacity)
            .finish_non_exhaustive()
    }
}

impl Timeline {
    /// An empty timeline of `model`.
    ///
    /// # Errors
    /// [`DeviceError`] when memory cannot be mapped or bound.
    pub fn new(model: Model, options: TimelineOptions) -> Result<Self, DeviceError> {
        let most = model.manifest().context_length;
        let capacity = if options.capacity == 0 { most } else { options.capacity.min(most) };
        let chunk = model.widest_pass(options.chunk.clamp(1, capacity));
        let cache = model.cache(capacity)?;
        let decode = model.pass(&cache, 1, 1)?;
        let prefill = model.pass(&cache, chunk, 1)?;
        Ok(Self { model, cache, decode, prefill, length: 0, chunk })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Positions in use.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Runs both passes once, so that the first request does not pay for pages and kernels touched for the first time.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the model does not run.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let tokens = vec![0; self.chunk.min(8)];
        for tokens in [&tokens[..], &tokens[..1]] {
            self.rewind(0);
            self.forward(tokens)?;
        }
        self.clear();
        Ok(())
    }

    /// Forgets everything and gives the cache's memory back.
    pub fn clear(&mut self) {
        self.length = 0;
        self.cache.discard();
    }

    /// Feeds `tokens` in chunks and returns the logits of every one of them, `[tokens, vocab]`: for verifying a model
    /// and not for serving it, as the logits of a long text are many.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        // Graphs that give the logits of the last token alone are fed token by token.
        let width = if self.model.gives_every_row() { self.chunk } else { 1 };
        let mut pass = self.model.pass(&self.cache, width, width)?;
        let mut all = Vec::with_capacity(tokens.len() * self.vocabulary());
        for chunk in tokens.chunks(width) {
            self.room_for(chunk.len())?;
            all.extend_from_slice(pass.run(&mut self.model, chunk, self.length)?);
            self.length += chunk.len();
        }
        Ok(all)
    }

    fn room_for(&self, asked: usize) -> Result<(), EngineError> {
        let (used, capacity) = (self.length, self.cache.capacity());
        if asked > capacity - used {
            return Err(EngineError::Context { used, asked, capacity });
        }
        Ok(())
    }
}

impl Forward for Timeline {
    fn rewind(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.room_for(tokens.len())?;
        let pass = if tokens.len() == 1 { &mut self.decode } else { &mut self.prefill };
        let logits = pass.run(&mut self.model, tokens, self.length)?;
        self.length += tokens.len();
        Ok(logits)
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn vocabulary(&self) -> usize {
        self.model.manifest().dims.vocab
    }
}
