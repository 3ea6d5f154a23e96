//! A model with one growing sequence of tokens and its key-value cache.

use std::{fmt, mem, time::Instant};

use super::{
    branches::Branches,
    cache_growth::{MIN_STEP, MIN_STEP_CAPTURED, step},
    error::EngineError,
    forward::{Forward, ForwardBranches},
    pinned_prefixes::PinnedPrefixes,
    prefix_cache::{MIN_KEPT, PrefixCache, common},
    thread_tuning::fastest,
};
use crate::{
    device::{DeviceError, Threads},
    job::{CacheScope, Failure},
    model::{Cache, LoadedAdapter, Model, Pass},
    units::Bytes,
};

/// Decode steps after which a captured step has been run at least once.
const WARM_UP_STEPS: usize = 4;

/// Sizes and limits of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineOptions {
    /// Most positions, at most the model's context length; 0 means that length.
    pub capacity: usize,
    /// Most tokens in one pass; at least 1.
    pub chunk: usize,
    /// Most pool memory that a cleared cache keeps.
    pub keep: Bytes,
    /// Memory limit of the prefix cache; 0 turns it off. In a pool it is also limited by `keep`, except for restored sequences.
    pub prefixes: Bytes,
    /// Most drafted tokens to verify in one pass; 0 is none. Ignored if the graph returns the logits of the last token only.
    pub drafts: usize,
    /// Whether the same request must give the same bits. A model whose rows
    /// [depend on each other](Model::is_row_invariant) is then used without drafts and without the prefix cache, and a
    /// resumed answer is fed token by token.
    pub exact: bool,
}

impl Default for TimelineOptions {
    fn default() -> Self {
        Self { capacity: 0, chunk: 512, keep: Bytes(0), prefixes: Bytes(0), drafts: 0, exact: false }
    }
}

/// A model with one sequence and its cache.
///
/// Three passes are bound to the cache: decode (one token), prefill (`chunk` tokens), and verify, which returns the logits of
/// every token. They are bound again only when the cache grows, so a decode step writes three integers and makes one call.
pub struct Timeline {
    pub(super) model: Model,
    pub(super) cache: Cache,
    pub(super) decode: Pass,
    pub(super) prefill: Pass,
    pub(super) verify: Option<Pass>,
    /// Made for the first prompt that is scored, and dropped with its job.
    pub(super) score: Option<Pass>,
    /// Sequences that continue the one in the cache, while a job has several.
    pub(super) branches: Option<Branches>,
    /// The tokens of the sequence, one per used position, and the scope of their job.
    pub(super) tokens: Vec<u32>,
    pub(super) scope: CacheScope,
    /// Positions written since the cache was last freed.
    pub(super) written: usize,
    pub(super) chunk: usize,
    pub(super) rows: usize,
    pub(super) max: usize,
    pub(super) keep: Bytes,
    /// Copies of earlier sequences.
    pub(super) prefixes: PrefixCache<Cache>,
    /// Memory limit of these and the sequence in the cache between two jobs.
    pub(super) bound: Bytes,
    /// Sequences restored from files, and their memory limit.
    pub(super) restored: PinnedPrefixes,
    pub(super) max_restored: Bytes,
    /// Whether nothing may be computed in other passes than the same request was before.
    pub(super) repeats_passes: bool,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline")
            .field("length", &self.length())
            .field("room", &self.room())
            .field("max", &self.max)
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
        let max = if options.capacity == 0 { context } else { options.capacity.min(context) };
        let chunk = model.widest_pass(options.chunk.clamp(1, max));
        let decode = model.pass(1, 1, max)?.captured(&model);
        let prefill = model.pass(chunk, 1, max)?;
        let repeats_passes = options.exact && !model.is_row_invariant();
        let rows =
            if model.gives_every_row() && !repeats_passes { (options.drafts + 1).min(chunk) } else { 1 };
        let verify = (rows > 1).then(|| model.pass(rows, rows, max)).transpose()?;
        let TimelineOptions { keep, prefixes, .. } = options;
        let bound = if model.session().pool().is_some() { prefixes.min(keep) } else { prefixes };
        let mut timeline = Self {
            model,
            cache: Cache::default(),
            decode,
            prefill,
            verify,
            score: None,
            branches: None,
            tokens: Vec::new(),
            scope: CacheScope::default(),
            written: 0,
            chunk,
            rows,
            max,
            keep,
            prefixes: PrefixCache::new(bound),
            bound,
            restored: PinnedPrefixes::default(),
            max_restored: prefixes,
            repeats_passes,
        };
        if timeline.model.session().pool().is_none() {
            // If the cache cannot be mapped, loading should fail and not the first job.
            timeline.grow(max)?;
        }
        Ok(timeline)
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Lets the next passes use `adapters`; see [`Model::use_adapters`].
    pub fn use_adapters(&mut self, adapters: &[(&LoadedAdapter, f32)]) {
        self.model.use_adapters(adapters);
    }

    /// Positions in use.
    #[must_use]
    pub fn length(&self) -> usize {
        self.tokens.len()
    }

    /// Runs both passes once, so that the first request does not pay for first-time page and kernel loads, and measures how many
    /// threads are fastest.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the model does not run.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        let tokens = vec![0; self.chunk.min(8)];
        self.rewind(0);
        self.forward(&tokens)?;
        // Enough steps to run a captured one, so that a wrong capture is found before the first request.
        let steps = if self.model.session().captures() { WARM_UP_STEPS } else { 1 };
        let mut logits: Vec<Vec<f32>> = Vec::new();
        for _ in 0..steps {
            self.rewind(0);
            logits.push(self.forward(&tokens[..1])?.to_vec());
        }
        if !logits.windows(2).all(|two| agree(&two[0], &two[1])) {
            tracing::warn!("captured CUDA graphs give wrong results here; running decode steps without them");
            self.decode.refuse_capture();
        }
        self.learn_threads(&tokens)?;
        self.clear();
        Ok(())
    }

    /// Finds the fastest thread counts for passes of one token and of `tokens`, if they can be set.
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

    /// Releases captured steps. Call this before their scratch buffers are trimmed from the pool.
    pub fn release_captured(&mut self) {
        self.decode.release_captured();
    }

    /// Trims the pool to at most `keep`, after releasing captured steps whose scratch buffers that would free. Does nothing without
    /// a pool.
    pub fn trim(&mut self, keep: Bytes) {
        let Some(pool) = self.model.session().pool().cloned() else { return };
        if pool.needs_trim(keep) {
            self.release_captured();
        }
        pool.trim(keep);
    }

    /// Whether it computes several sequences in one pass, each with the bits that it has alone.
    #[must_use]
    pub fn takes_sequences(&self) -> bool {
        self.model.takes_sequences()
    }

    /// Positions that fit into the cache without growing.
    #[must_use]
    pub fn room(&self) -> usize {
        self.cache.capacity()
    }

    /// Clears everything except restored sequences, and frees the cache if it is larger than the `keep` of the options.
    pub fn clear(&mut self) {
        self.clear_to(self.keep);
    }

    /// Clears everything except restored sequences, and frees the cache if it is larger than `keep`.
    pub fn clear_to(&mut self, keep: Bytes) {
        self.prefixes.clear();
        self.forget(keep);
    }

    /// Passes the keys and values of the sequence to `each`; see [`Model::copy_out`].
    ///
    /// # Errors
    /// Propagates any error from `each`.
    pub fn copy_out<E: From<DeviceError>>(&self, each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.model.copy_out(&self.cache, self.tokens.len(), each)
    }

    /// Clears the sequence in the cache.
    pub(super) fn forget(&mut self, keep: Bytes) {
        self.branches = None;
        self.tokens.clear();
        self.written = 0;
        self.cache.discard();
        if self.cache.held() > keep {
            self.release();
        } else if self.room() > self.max && !self.cache.is_pooled() {
            // It had room for several sequences. Where memory is short, the next job tries again.
            self.release();
            if let Err(e) = self.grow(self.max) {
                tracing::warn!("cannot map a cache: {e}");
            }
        }
    }

    fn passes(&mut self) -> impl Iterator<Item = &mut Pass> {
        [&mut self.decode, &mut self.prefill].into_iter().chain(&mut self.verify).chain(&mut self.score)
    }

    pub(super) fn release(&mut self) {
        self.branches = None;
        self.tokens.clear();
        self.written = 0;
        self.passes().for_each(Pass::detach);
        self.cache = Cache::default();
    }

    /// Feeds `tokens` in chunks and returns the logits of all of them, `[tokens, vocab]`. For verifying a model: the logits of a long
    /// text need much memory.
    ///
    /// # Errors
    /// As [`Forward::forward`].
    pub fn forward_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.reserve(tokens.len())?;
        // A graph that returns the logits of the last token only is fed token by token.
        let width = if self.model.gives_every_row() { self.chunk } else { 1 };
        let mut pass = self.model.pass(width, width, self.max)?;
        pass.attach(&self.model, &self.cache)?;
        let mut all = Vec::with_capacity(tokens.len() * self.vocabulary());
        for chunk in tokens.chunks(width) {
            all.extend_from_slice(pass.run(&mut self.model, chunk, self.tokens.len())?);
            self.tokens.extend_from_slice(chunk);
            self.written = self.written.max(self.tokens.len());
        }
        Ok(all)
    }

    /// Size of a new cache for `positions`.
    pub(super) fn room_for(&self, positions: usize) -> usize {
        if self.model.session().captures() {
            // Without extra room the first decode step would already need a larger cache.
            return step(positions.saturating_add(MIN_STEP), self.max, MIN_STEP_CAPTURED);
        }
        step(positions, self.max, MIN_STEP)
    }

    /// Grows the cache to `capacity` positions and keeps its content. On failure the whole cache is freed.
    pub(super) fn grow(&mut self, capacity: usize) -> Result<(), DeviceError> {
        let (older, tokens) = (mem::take(&mut self.cache), mem::take(&mut self.tokens));
        self.release();
        let grown = self.model.cache(capacity, older, tokens.len()).and_then(|cache| {
            let passes = [&mut self.decode, &mut self.prefill].into_iter().chain(&mut self.verify);
            passes.chain(&mut self.score).try_for_each(|pass| pass.attach(&self.model, &cache))?;
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

/// Whether two runs of the same step agree within rounding errors.
fn agree(first: &[f32], second: &[f32]) -> bool {
    let greatest = first.iter().fold(0f32, |max, logit| max.max(logit.abs()));
    first.iter().zip(second).all(|(a, b)| (a - b).abs() <= greatest * 0.01)
}

impl Forward for Timeline {
    fn rewind(&mut self, length: usize) {
        self.tokens.truncate(length);
    }

    fn begin(&mut self, tokens: &[u32], max: usize, scope: CacheScope) -> usize {
        if self.repeats_passes || (self.bound == Bytes(0) && self.restored.is_empty()) {
            self.rewind(0);
            self.scope = scope;
            return 0;
        }
        let all = tokens.len();
        let tokens = &tokens[..max.min(all.saturating_sub(1))];
        let is_enough = |found: usize| found >= MIN_KEPT.min(tokens.len().max(1));
        let here = if scope == self.scope { common(&self.tokens, tokens) } else { 0 };
        let known = self.longest_copy(self.scope, &self.tokens);
        if here >= self.longest_copy(scope, tokens) && is_enough(here) {
            self.save(known.max(here));
            self.rewind(here);
            return here;
        }
        self.save(known);
        self.forget(Bytes(u64::MAX));
        self.scope = scope;
        // Looked up again, because saving may have evicted an entry.
        let kept = self.longest_copy(scope, tokens);
        if is_enough(kept)
            && let Err(e) = self.resume(&tokens[..kept], all)
        {
            tracing::warn!("cannot reuse a cached sequence: {e}");
            self.clear();
        }
        self.length()
    }

    fn reserve(&mut self, more: usize) -> Result<(), EngineError> {
        let (used, capacity) = (self.tokens.len(), self.max);
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
        // A pass can have more rows than requested, because it also contains tokens that are certain.
        let more = logits.len().saturating_sub(rows * self.model.manifest().dims.vocab);
        Ok(&mut logits[more..])
    }

    fn forward_scored(&mut self, tokens: &[u32]) -> Result<&mut [f32], EngineError> {
        self.reserve(tokens.len())?;
        let width = self.scored_chunk();
        let pass = match &mut self.score {
            Some(pass) => pass,
            none => {
                let mut pass = self.model.pass(width, width, self.max)?;
                pass.attach(&self.model, &self.cache)?;
                none.insert(pass)
            }
        };
        let logits = pass.run(&mut self.model, tokens, self.tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        self.written = self.written.max(self.tokens.len());
        Ok(logits)
    }

    fn forward_hidden(&mut self, tokens: &[u32], rows: usize) -> Result<&[f32], EngineError> {
        if !self.model.gives_hidden_states() {
            return Err(EngineError::Job(Failure::NoEmbeddings));
        }
        self.reserve(tokens.len())?;
        let pass = match &mut self.score {
            Some(pass) => pass,
            none => {
                let rows = if rows == 1 { 1 } else { self.chunk.min(rows) };
                let mut pass = self.model.pass_with_hidden(self.chunk, rows, self.max)?;
                pass.attach(&self.model, &self.cache)?;
                none.insert(pass)
            }
        };
        pass.run(&mut self.model, tokens, self.tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        self.written = self.written.max(self.tokens.len());
        Ok(pass.hidden(&self.model))
    }

    fn scored_chunk(&self) -> usize {
        // The logits of a whole chunk would take half a gigabyte with a large vocabulary.
        const MAX_LOGITS: usize = 8 << 20;
        if !self.model.gives_every_row() {
            return 1;
        }
        self.chunk.min(MAX_LOGITS / self.vocabulary()).max(1)
    }

    fn answer_chunk(&self) -> usize {
        if self.repeats_passes { 1 } else { self.chunk }
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn capacity(&self) -> usize {
        self.max
    }

    fn vocabulary(&self) -> usize {
        self.model.manifest().dims.vocab
    }
}

impl ForwardBranches for Timeline {
    fn reserve_branches(&mut self, rows: usize) -> Result<(), EngineError> {
        if rows > self.room() {
            self.grow(rows)?;
        }
        Ok(())
    }

    fn branch(&mut self, sequences: usize) -> Result<(), EngineError> {
        let (trunk, sizes) = (self.tokens.len(), [self.chunk, sequences]);
        self.branches = Some(Branches::new(&self.model, &self.cache, trunk, sizes)?);
        Ok(())
    }

    fn fork(&mut self, from: Option<usize>, more: usize) -> usize {
        let Some(branches) = &mut self.branches else { return 0 };
        let forked = branches.fork(from, more);
        self.written = self.written.max(branches.rows());
        forked
    }

    fn forward_branches(&mut self, fed: &[(usize, &[u32])]) -> Result<&mut [f32], EngineError> {
        match &mut self.branches {
            Some(branches) => branches.forward(&mut self.model, fed),
            None => Err(EngineError::Context { used: 0, asked: fed.len(), capacity: 0 }),
        }
    }
}
