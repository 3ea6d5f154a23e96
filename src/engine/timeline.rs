//! One growing sequence of tokens and its key-value cache.
//!
//! # How the cache grows
//! In a pool, the cache has room for what the job at hand needs, and is given back when it is done. It is made for the
//! prompt as a whole, whose length is known, and grows with the answer, whose length is not: to the next of four steps
//! between one power of two and the next, and of [`LEAST_STEP`] positions where those would be finer.
//!
//! So at most a quarter of it is unused, or one small step. From one step to the next it grows by a seventh or more, and
//! so what is copied on the way to `n` positions is less than `7 n` of them, where the steps on that way read `n² / 2`.
//! Steps of a constant size would copy `n²` as well, doubling would leave half unused; and each step means that inputs
//! are bound anew, hence none for less than [`LEAST_STEP`]. Tensors grow one after the other, so growing takes no more
//! than the larger cache and one tensor of the smaller.
//!
//! Memory of the host that is not from a pool is mapped, and what is never written costs nothing, however large it is: a
//! smaller cache saves nothing. There the first step is the whole context, on the same path.

use std::{fmt, mem};

use super::{EngineError, Forward};
use crate::{
    device::DeviceError,
    model::{Cache, Model, Pass},
    units::Bytes,
};

/// The fewest positions that a cache in a pool grows by: a fraction of a megabyte in most models.
const LEAST_STEP: usize = 64;

/// How a timeline is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineOptions {
    /// Most positions; the model's context length is the upper limit, and what 0 stands for.
    pub capacity: usize,
    /// Most tokens of one pass; at least 1.
    pub chunk: usize,
    /// Most of a pool's memory that the cache keeps when it is cleared.
    pub keep: Bytes,
}

impl Default for TimelineOptions {
    fn default() -> Self {
        Self { capacity: 0, chunk: 512, keep: Bytes(0) }
    }
}

/// A model and one sequence fed to it.
///
/// Two passes are bound over one cache: one token wide for decode, `chunk` wide for prefill. Neither is bound again
/// but when the cache grows, so a decode step is three integers written and one call.
pub struct Timeline {
    model: Model,
    cache: Cache,
    decode: Pass,
    prefill: Pass,
    length: usize,
    chunk: usize,
    most: usize,
    keep: Bytes,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline")
            .field("length", &self.length)
            .field("room", &self.room())
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

impl Timeline {
    /// An empty timeline of `model`.
    ///
    /// # Errors
    /// [`DeviceError`] when memory cannot be mapped or bound.
    pub fn new(model: Model, options: TimelineOptions) -> Result<Self, DeviceError> {
        let context = model.manifest().context_length;
        let most = if options.capacity == 0 { context } else { options.capacity.min(context) };
        let chunk = model.widest_pass(options.chunk.clamp(1, most));
        let decode = model.pass(1, 1, most)?;
        let prefill = model.pass(chunk, 1, most)?;
        let cache = Cache::default();
        let mut timeline = Self { model, cache, decode, prefill, length: 0, chunk, most, keep: options.keep };
        if timeline.model.session().pool().is_none() {
            // What cannot even be mapped shall be known at load.
            timeline.grow(most)?;
        }
        Ok(timeline)
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

    /// Positions that the cache has room for now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.cache.capacity()
    }

    /// Forgets everything and gives the cache's memory back, but for what is to be kept.
    pub fn clear(&mut self) {
        self.clear_to(self.keep);
    }

    /// Forgets everything, and gives the cache's memory back where it is more than `keep`: all of it, as a smaller one
    /// would have to be taken anew.
    pub fn clear_to(&mut self, keep: Bytes) {
        self.length = 0;
        self.cache.discard();
        if self.cache.held() > keep {
            self.release();
        }
    }

    fn release(&mut self) {
        self.length = 0;
        self.decode.detach();
        self.prefill.detach();
        self.cache = Cache::default();
    }

    /// Feeds `tokens` in chunks and returns the logits of every one of them, `[tokens, vocab]`: for verifying a model
    /// and not for serving it, as the logits of a long text are many.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.reserve(tokens.len())?;
        // Graphs that give the logits of the last token alone are fed token by token.
        let width = if self.model.gives_every_row() { self.chunk } else { 1 };
        let mut pass = self.model.pass(width, width, self.most)?;
        pass.attach(&self.model, &self.cache)?;
        let mut all = Vec::with_capacity(tokens.len() * self.vocabulary());
        for chunk in tokens.chunks(width) {
            all.extend_from_slice(pass.run(&mut self.model, chunk, self.length)?);
            self.length += chunk.len();
        }
        Ok(all)
    }

    /// Grows the cache to `capacity` positions, with those in use. When that fails, all of it is given back.
    fn grow(&mut self, capacity: usize) -> Result<(), DeviceError> {
        let (older, used) = (mem::take(&mut self.cache), self.length);
        self.release();
        let grown = self.model.cache(capacity, older, used).and_then(|cache| {
            self.decode.attach(&self.model, &cache)?;
            self.prefill.attach(&self.model, &cache)?;
            Ok(cache)
        });
        match grown {
            Ok(cache) => (self.cache, self.length) = (cache, used),
            Err(e) => {
                self.release();
                return Err(e);
            }
        }
        Ok(())
    }
}

/// The step that has room for `positions`, of `most` in all.
fn step(positions: usize, most: usize) -> usize {
    let step = (positions.next_power_of_two() / 8).max(LEAST_STEP);
    positions.next_multiple_of(step).min(most)
}

impl Forward for Timeline {
    fn rewind(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        let (used, capacity) = (self.length, self.most);
        if more > capacity - used {
            return Err(EngineError::Context { used, asked: more, capacity });
        }
        if used + more > self.room() {
            self.grow(step(used + more, capacity))?;
        }
        Ok(())
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.reserve(tokens.len())?;
        let pass = if tokens.len() == 1 { &mut self.decode } else { &mut self.prefill };
        let logits = pass.run(&mut self.model, tokens, self.length)?;
        self.length += tokens.len();
        Ok(logits)
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn capacity(&self) -> usize {
        self.most
    }

    fn vocabulary(&self) -> usize {
        self.model.manifest().dims.vocab
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_room_and_leave_no_more_than_a_quarter_unused() {
        assert_eq!(
            [1, 64, 65, 512, 513, 1024, 1025].map(|n| step(n, 4096)),
            [64, 64, 128, 512, 640, 1024, 1280]
        );
        assert_eq!([1, 100, 101].map(|n| step(n, 101)), [64, 101, 101], "never more than there may be");
        let mut moved = 0;
        for n in 1..100_000 {
            let (room, before) = (step(n, usize::MAX), step(n - 1, usize::MAX));
            assert!(room >= n && (room - n < LEAST_STEP || (room - n) * 4 <= n), "{n}: {room}");
            moved += if room > before { n - 1 } else { 0 };
            assert!(moved < 7 * n, "{n}: {moved} were copied");
        }
    }
}
