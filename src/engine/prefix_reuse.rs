//! Sequences that later ones may begin with.
//!
//! Keys and values of a position depend only on its token and the tokens before it. So a sequence that begins like an earlier one
//! of the same client and adapters continues where the two differ. The last sequence stays in the cache as it is. In a mapped cache, the part
//! that a new sequence would overwrite is copied first, within a memory limit, and copied back when needed. In a pool only the
//! last sequence stays, because a copy would get in the way of a growing cache.
//!
//! Sequences restored from files are kept in host memory within the same limit, and copied into the cache when needed.

use super::{prefix_cache::MIN_KEPT, timeline::Timeline};
use crate::{
    device::DeviceError,
    job::{CacheScope, PromptScope},
    model::HostCache,
    units::Bytes,
};

impl Timeline {
    /// Ends a sequence. If it `may_be_kept`, it stays in the prefix cache as far as the limit allows. Other memory is freed as in
    /// [`clear`](Self::clear).
    pub fn settle(&mut self, may_be_kept: bool) {
        self.score = None;
        if self.branches.take().is_some() && !self.cache.is_pooled() {
            self.end_branches(may_be_kept);
            return;
        }
        let spent = self.cache.spent(self.written);
        if may_be_kept && !self.tokens.is_empty() && spent <= self.bound {
            self.prefixes.supersede(self.scope, &self.tokens);
            self.prefixes.make_room(Bytes(self.bound.0 - spent.0));
            return;
        }
        if may_be_kept {
            self.save(self.longest_copy(self.scope, &self.tokens));
        }
        self.forget(self.keep);
    }

    /// Keeps a copy of what all branches began with, and returns the memory of their rows.
    fn end_branches(&mut self, may_be_kept: bool) {
        if may_be_kept {
            self.save(self.longest_copy(self.scope, &self.tokens));
        }
        self.forget(self.keep);
    }

    /// Size of the prefix cache, including restored sequences.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        let of_cache = if self.tokens.is_empty() { Bytes(0) } else { self.cache.spent(self.written) };
        self.prefixes.bytes() + of_cache + self.restored.bytes()
    }

    /// Memory available for a sequence restored under `name`, which replaces one of the same name.
    #[must_use]
    pub fn room_to_restore(&self, name: &str) -> Bytes {
        Bytes(self.max_restored.0.saturating_sub(self.restored.bytes_except(name).0))
    }

    /// Adds a sequence from a file for jobs of `scope`. It stays until
    /// [`forget_restored`](Self::forget_restored). Other entries are evicted to make room.
    pub fn restore(&mut self, name: String, scope: PromptScope, tokens: Vec<u32>, kept: HostCache) {
        self.restored.add(name, scope, tokens, kept);
        self.limit_prefix_cache();
    }

    /// Removes the restored sequence with this name, or all of them.
    pub fn forget_restored(&mut self, name: Option<&str>) {
        match name {
            Some(name) => self.restored.remove(name),
            None => self.restored.clear(),
        }
        self.limit_prefix_cache();
    }

    /// Limits the prefix cache to the memory that restored sequences leave. With a pool they use different memory.
    fn limit_prefix_cache(&mut self) {
        if self.model.session().pool().is_some() {
            return;
        }
        self.bound = Bytes(self.max_restored.0.saturating_sub(self.restored.bytes().0));
        self.prefixes.set_limit(self.bound);
        self.settle(true);
    }

    /// Length of the longest prefix of `tokens` in the prefix cache or among restored sequences.
    pub(super) fn longest_copy(&self, scope: CacheScope, tokens: &[u32]) -> usize {
        self.prefixes.longest(scope, tokens).max(self.restored.longest(scope, tokens))
    }

    /// Copies the sequence in the cache to the prefix cache, as far as the limit allows, unless the copy would be little longer than
    /// the `known` one. Only later sequences need it, so a lack of memory is not an error.
    pub(super) fn save(&mut self, known: usize) {
        let length = self.tokens.len().min(self.cache.capacity_within(self.bound));
        // The copy is of the whole sequence, so the new part must be large enough to be worth it.
        if self.cache.is_pooled() || length < known + MIN_KEPT.max(length / 8) {
            return;
        }
        match self.model.copy(&self.cache, length) {
            Ok(copy) => {
                let bytes = copy.spent(length);
                self.prefixes.keep(self.scope, self.tokens[..length].to_vec(), copy, bytes);
            }
            Err(e) => tracing::debug!("cannot keep a sequence for the prefix cache: {e}"),
        }
    }

    /// Copies the keys and values of `tokens`, the cached prefix of a sequence of length `of`, into the cache.
    pub(super) fn resume(&mut self, tokens: &[u32], of: usize) -> Result<(), DeviceError> {
        if self.room() < of.min(self.max) {
            self.grow(self.room_for(of))?;
        }
        if let Some(kept) = self.restored.find(self.scope, tokens) {
            self.cache.fill(kept, tokens.len())?;
        } else if let Some(kept) = self.prefixes.find(self.scope, tokens) {
            self.cache.take_over(kept, tokens.len())?;
        } else {
            return Ok(());
        }
        self.written = self.written.max(tokens.len());
        tokens.clone_into(&mut self.tokens);
        Ok(())
    }
}
