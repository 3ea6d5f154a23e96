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
//! are bound anew, hence none for less than [`LEAST_STEP`], and where steps are captured anew as well, for less than
//! [`LEAST_STEP_CAPTURED`]. The cache is a few blocks that grow one after the other, so growing takes no more than the larger
//! cache and one block of the smaller.
//!
//! Memory of the host that is not from a pool is mapped, and what is never written costs nothing, however large it is: a
//! smaller cache saves nothing. There the first step is the whole context, on the same path.
//!
//! # What is kept of it
//! The keys and values of a position depend on its token and those before it alone, so a sequence that begins like an
//! earlier one of the same salt starts where the two part. The last sequence stays in the cache as it is. Where the cache is mapped, what a
//! new sequence would write over is copied first, to be copied back when its turn comes: no more than the rows in use, and
//! all of it together within a bound. In a pool only the last one stays, as a copy would stand in the way of a cache that
//! grows.
//!
//! What came from a file is there besides, in the host's memory and within the same bound, and is copied into the cache like
//! what was copied before.

use std::{fmt, mem, time::Instant};

use super::{
    error::EngineError,
    forward::Forward,
    pinned_prefixes::PinnedPrefixes,
    prefix_cache::{PrefixCache, common},
    thread_tuning::fastest,
};
use crate::{
    device::{DeviceError, Threads},
    job::CacheSalt,
    model::{Cache, HostCache, Model, Pass},
    units::Bytes,
};

/// The fewest positions that a cache in a pool grows by: a fraction of a megabyte in most models.
const LEAST_STEP: usize = 64;

/// The same where steps are captured, as each larger cache means to capture them anew.
const LEAST_STEP_CAPTURED: usize = 256;

/// Decode steps over the same cache of which the last but one is captured and the last one run again, if any is.
const WARM_UP_STEPS: usize = 4;

/// The fewest positions that are worth a copy: reading as many again takes no longer than a token or two.
const LEAST_KEPT: usize = 16;

/// How a timeline is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineOptions {
    /// Most positions; the model's context length is the upper limit, and what 0 stands for.
    pub capacity: usize,
    /// Most tokens of one pass; at least 1.
    pub chunk: usize,
    /// Most of a pool's memory that the cache keeps when it is cleared.
    pub keep: Bytes,
    /// Most memory of sequences that later ones may begin with; in a pool within `keep`, but for those that came from files.
    /// 0 is none.
    pub prefixes: Bytes,
    /// Most tokens that are guessed and verified in one pass; 0 is none. With none either where the graph gives only the
    /// logits of the last token.
    pub drafts: usize,
}

impl Default for TimelineOptions {
    fn default() -> Self {
        Self { capacity: 0, chunk: 512, keep: Bytes(0), prefixes: Bytes(0), drafts: 0 }
    }
}

/// A model and one sequence fed to it.
///
/// PassTimes are bound over one cache: one token wide for decode, `chunk` wide for prefill, and one that gives the logits of
/// every token to verify guesses. None is bound again but when the cache grows, so a decode step is three integers
/// written and one call.
pub struct Timeline {
    model: Model,
    cache: Cache,
    decode: Pass,
    prefill: Pass,
    verify: Option<Pass>,
    /// The tokens that were fed, one for each position in use, and the salt of their job.
    tokens: Vec<u32>,
    salt: CacheSalt,
    /// Positions that were written since the cache's memory was given back.
    written: usize,
    chunk: usize,
    rows: usize,
    most: usize,
    keep: Bytes,
    /// Earlier sequences, copied.
    prefixes: PrefixCache<Cache>,
    /// Most that these and the sequence in the cache may take between two jobs.
    bound: Bytes,
    /// Sequences that came from files, and most that they may take.
    restored: PinnedPrefixes,
    most_restored: Bytes,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline")
            .field("length", &self.length())
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
        let decode = model.pass(1, 1, most)?.captured(&model);
        let prefill = model.pass(chunk, 1, most)?;
        let rows = if model.gives_every_row() { (options.drafts + 1).min(chunk) } else { 1 };
        let verify = (rows > 1).then(|| model.pass(rows, rows, most)).transpose()?;
        let TimelineOptions { keep, prefixes, .. } = options;
        let bound = if model.session().pool().is_some() { prefixes.min(keep) } else { prefixes };
        let mut timeline = Self {
            model,
            cache: Cache::default(),
            decode,
            prefill,
            verify,
            tokens: Vec::new(),
            salt: CacheSalt::default(),
            written: 0,
            chunk,
            rows,
            most,
            keep,
            prefixes: PrefixCache::new(bound),
            bound,
            restored: PinnedPrefixes::default(),
            most_restored: prefixes,
        };
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
        self.tokens.len()
    }

    /// Runs both passes once, so that the first request does not pay for pages and kernels touched for the first time, and
    /// tries with how many threads they are fastest.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the model does not run.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let tokens = vec![0; self.chunk.min(8)];
        self.rewind(0);
        self.forward(&tokens)?;
        // As many steps as it takes until one is captured and run again, so that what cannot be is known before the first
        // request.
        let steps = if self.model.session().captures() { WARM_UP_STEPS } else { 1 };
        let mut said: Vec<Vec<f32>> = Vec::new();
        for _ in 0..steps {
            self.rewind(0);
            said.push(self.forward(&tokens[..1])?.to_vec());
        }
        if !said.windows(2).all(|two| is_alike(&two[0], &two[1])) {
            tracing::warn!(
                "captured steps compute something else here, so steps are done operator by operator"
            );
            self.decode.refuse_capture();
        }
        self.learn_threads(&tokens)?;
        self.clear();
        Ok(())
    }

    /// Tries how many of its threads passes of one token and of `tokens` are fastest with, where that can be told.
    fn learn_threads(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        let Some(Threads { decode: all, .. }) = self.model.session().threads() else { return Ok(()) };
        let mut pass = |threads, tokens: &[u32]| {
            self.model.set_threads(threads);
            self.rewind(0);
            let began = Instant::now();
            self.forward(tokens)?;
            Ok::<_, EngineError>(began.elapsed())
        };
        let decode = fastest(all, |threads| pass(Threads::all(threads), &tokens[..1]))?;
        let prefill = fastest(all, |threads| pass(Threads::all(threads), tokens))?;
        self.model.set_threads(Threads { decode, prefill });
        Ok(())
    }

    /// Gives back what is held for captured steps: to be called before the pool is trimmed of their scratch.
    pub fn release_captured(&mut self) {
        self.decode.release_captured();
    }

    /// Gives memory of its pool back until at most `keep` is held, and before that what captured steps hold, if it takes
    /// their scratch away. Nothing where memory comes from no pool.
    pub fn trim(&mut self, keep: Bytes) {
        let Some(pool) = self.model.session().pool().cloned() else { return };
        if pool.has_to_trim(keep) {
            self.release_captured();
        }
        pool.trim(keep);
    }

    /// Positions that the cache has room for now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.cache.capacity()
    }

    /// Forgets everything but what came from files, and gives the cache's memory back, but for what is to be kept.
    pub fn clear(&mut self) {
        self.clear_to(self.keep);
    }

    /// Forgets everything but what came from files, and gives the cache's memory back where it is more than `keep`: all of
    /// it, as a smaller one would have to be taken anew.
    pub fn clear_to(&mut self, keep: Bytes) {
        self.prefixes.clear();
        self.forget(keep);
    }

    /// Ends a sequence: keeps it for those that begin like it, if it `may_be_kept`, and as much of it and of earlier ones
    /// as there may be. What is not kept gives its memory back as [`clear`](Self::clear) does.
    pub fn settle(&mut self, may_be_kept: bool) {
        let spent = self.cache.spent(self.written);
        if may_be_kept && !self.tokens.is_empty() && spent <= self.bound {
            self.prefixes.supersede(self.salt, &self.tokens);
            self.prefixes.make_room(Bytes(self.bound.0 - spent.0));
            return;
        }
        if may_be_kept {
            self.save(self.elsewhere(self.salt, &self.tokens));
        }
        self.forget(self.keep);
    }

    /// What is kept of sequences that are over, those that came from files among them.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        let of_cache = if self.tokens.is_empty() { Bytes(0) } else { self.cache.spent(self.written) };
        self.prefixes.bytes() + of_cache + self.restored.bytes()
    }

    /// Hands out the keys and values of everything that was fed, as [`Model::copy_out`] does.
    ///
    /// # Errors
    /// As it has.
    pub fn copy_out<E: From<DeviceError>>(&self, each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.model.copy_out(&self.cache, self.tokens.len(), each)
    }

    /// What another sequence from a file may take that is called `name`, one of that name having gone.
    #[must_use]
    pub fn room_to_restore(&self, name: &str) -> Bytes {
        Bytes(self.most_restored.0.saturating_sub(self.restored.bytes_beside(name).0))
    }

    /// Keeps what came from a file for sequences of `salt`, or of all without one, that begin like it, until it is
    /// [forgotten](Self::forget_restored) by its name. What else is kept makes room for it.
    pub fn restore(&mut self, name: String, salt: Option<CacheSalt>, tokens: Vec<u32>, kept: HostCache) {
        self.restored.add(name, salt, tokens, kept);
        self.bound_others();
    }

    /// Forgets what came from the file of a name; of all files without one.
    pub fn forget_restored(&mut self, name: Option<&str>) {
        match name {
            Some(name) => self.restored.remove(name),
            None => self.restored.clear(),
        }
        self.bound_others();
    }

    /// Leaves what is not from a file the rest of the bound. A pool's memory is another than the host's.
    fn bound_others(&mut self) {
        if self.model.session().pool().is_some() {
            return;
        }
        self.bound = Bytes(self.most_restored.0.saturating_sub(self.restored.bytes().0));
        self.prefixes.bound_by(self.bound);
        self.settle(true);
    }

    /// Of how many of its first tokens something is kept outside of the cache.
    fn elsewhere(&self, salt: CacheSalt, tokens: &[u32]) -> usize {
        self.prefixes.longest(salt, tokens).max(self.restored.longest(salt, tokens))
    }

    /// Forgets the sequence in the cache.
    fn forget(&mut self, keep: Bytes) {
        self.tokens.clear();
        self.written = 0;
        self.cache.discard();
        if self.cache.held() > keep {
            self.release();
        }
    }

    /// Copies what is in the cache, if that is more than `known` from another place; as much as there may be. It is a
    /// favour to later sequences, so that there is no memory for it is no error.
    fn save(&mut self, known: usize) {
        let length = self.tokens.len().min(self.cache.most_within(self.bound));
        // A copy is of the whole sequence, so what is lost must be a fair part of it.
        if self.cache.is_pooled() || length < known + LEAST_KEPT.max(length / 8) {
            return;
        }
        match self.model.copy(&self.cache, length) {
            Ok(copy) => {
                let bytes = copy.spent(length);
                self.prefixes.keep(self.salt, self.tokens[..length].to_vec(), copy, bytes);
            }
            Err(e) => tracing::debug!("a sequence is not kept: {e}"),
        }
    }

    /// Puts what is kept of a sequence that begins with `tokens`, and will have so many, into the cache.
    fn resume(&mut self, tokens: &[u32], of: usize) -> Result<(), DeviceError> {
        if self.room() < of.min(self.most) {
            self.grow(self.room_for(of))?;
        }
        if let Some(kept) = self.restored.find(self.salt, tokens) {
            self.cache.fill(kept, tokens.len())?;
        } else if let Some(kept) = self.prefixes.find(self.salt, tokens) {
            self.cache.take_over(kept, tokens.len())?;
        } else {
            return Ok(());
        }
        self.written = self.written.max(tokens.len());
        tokens.clone_into(&mut self.tokens);
        Ok(())
    }

    fn passes(&mut self) -> impl Iterator<Item = &mut Pass> {
        [&mut self.decode, &mut self.prefill].into_iter().chain(&mut self.verify)
    }

    fn release(&mut self) {
        self.tokens.clear();
        self.written = 0;
        self.passes().for_each(Pass::detach);
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
            all.extend_from_slice(pass.run(&mut self.model, chunk, self.tokens.len())?);
            self.tokens.extend_from_slice(chunk);
            self.written = self.written.max(self.tokens.len());
        }
        Ok(all)
    }

    /// How large a cache for `positions` is made.
    fn room_for(&self, positions: usize) -> usize {
        if self.model.session().captures() {
            // A prompt alone would leave no room for the first step, which would then be the first of another cache.
            return step(positions.saturating_add(LEAST_STEP), self.most, LEAST_STEP_CAPTURED);
        }
        step(positions, self.most, LEAST_STEP)
    }

    /// Grows the cache to `capacity` positions, with those in use. When that fails, all of it is given back.
    fn grow(&mut self, capacity: usize) -> Result<(), DeviceError> {
        let (older, tokens) = (mem::take(&mut self.cache), mem::take(&mut self.tokens));
        self.release();
        let grown = self.model.cache(capacity, older, tokens.len()).and_then(|cache| {
            let mut passes = [Some(&mut self.decode), Some(&mut self.prefill), self.verify.as_mut()];
            passes.iter_mut().flatten().try_for_each(|pass| pass.attach(&self.model, &cache))?;
            Ok(cache)
        });
        match grown {
            Ok(cache) => (self.cache, self.written, self.tokens) = (cache, tokens.len(), tokens),
            Err(e) => {
                self.release();
                return Err(e);
            }
        }
        Ok(())
    }
}

/// Whether two runs of the same step agree, but for the order of some sums.
fn is_alike(first: &[f32], second: &[f32]) -> bool {
    let greatest = first.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    first.iter().zip(second).all(|(a, b)| (a - b).abs() <= greatest * 0.01)
}

/// The step that has room for `positions`, of `most` in all, and is no smaller than `least`.
fn step(positions: usize, most: usize, least: usize) -> usize {
    let step = (positions.next_power_of_two() / 8).max(least);
    positions.next_multiple_of(step).min(most)
}

impl Forward for Timeline {
    fn rewind(&mut self, length: usize) {
        self.tokens.truncate(length);
    }

    fn begin(&mut self, tokens: &[u32], most: usize, salt: CacheSalt) -> usize {
        if self.bound == Bytes(0) && self.restored.is_empty() {
            self.rewind(0);
            self.salt = salt;
            return 0;
        }
        let all = tokens.len();
        let tokens = &tokens[..most.min(all.saturating_sub(1))];
        let is_enough = |found: usize| found >= LEAST_KEPT.min(tokens.len().max(1));
        let here = if salt == self.salt { common(&self.tokens, tokens) } else { 0 };
        let saved = self.elsewhere(self.salt, &self.tokens);
        if here >= self.elsewhere(salt, tokens) && is_enough(here) {
            self.save(saved.max(here));
            self.rewind(here);
            return here;
        }
        self.save(saved);
        self.forget(Bytes(u64::MAX));
        self.salt = salt;
        // Looked up again: for what was saved just now another may have gone.
        let kept = self.elsewhere(salt, tokens);
        if is_enough(kept)
            && let Err(e) = self.resume(&tokens[..kept], all)
        {
            tracing::warn!("what is kept of a sequence cannot be used: {e}");
            self.clear();
        }
        self.length()
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        let (used, capacity) = (self.tokens.len(), self.most);
        if more > capacity - used {
            return Err(EngineError::Context { used, asked: more, capacity });
        }
        if used + more > self.room() {
            self.grow(self.room_for(used + more))?;
        }
        Ok(())
    }

    fn forward_rows(&mut self, tokens: &[u32], rows: usize) -> Result<&mut [f32], EngineError> {
        self.reserve(tokens.len())?;
        let pass = match &mut self.verify {
            Some(verify) if rows > 1 => verify,
            _ if tokens.len() == 1 => &mut self.decode,
            _ => &mut self.prefill,
        };
        let logits = pass.run(&mut self.model, tokens, self.tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        self.written = self.written.max(self.tokens.len());
        // What was verified along with tokens that follow for certain has more rows.
        let more = logits.len().saturating_sub(rows * self.model.manifest().dims.vocab);
        Ok(&mut logits[more..])
    }

    fn rows(&self) -> usize {
        self.rows
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
            [1, 64, 65, 512, 513, 1024, 1025].map(|n| step(n, 4096, LEAST_STEP)),
            [64, 64, 128, 512, 640, 1024, 1280]
        );
        assert_eq!(
            [1, 100, 101].map(|n| step(n, 101, LEAST_STEP)),
            [64, 101, 101],
            "never more than there may be"
        );
        let mut moved = 0;
        for n in 1..100_000 {
            let (room, before) = (step(n, usize::MAX, LEAST_STEP), step(n - 1, usize::MAX, LEAST_STEP));
            assert!(room >= n && (room - n < LEAST_STEP || (room - n) * 4 <= n), "{n}: {room}");
            moved += if room > before { n - 1 } else { 0 };
            assert!(moved < 7 * n, "{n}: {moved} were copied");
        }
    }
}
