//! Sequences restored from files. They stay until they are removed by name.
//!
//! Unlike entries of the [prefix cache](super::prefix_cache), they are not evicted and not replaced by longer sequences, because
//! a client that restores a system prompt relies on it. They are kept in host memory, even if a GPU computes: copying to the GPU
//! takes milliseconds, while reading the prompt takes seconds, and all device memory stays with the pool.

use super::prefix_cache::common;
use crate::{
    job::{CacheScope, PromptScope},
    model::HostCache,
    units::Bytes,
};

/// Restored sequences by name.
#[derive(Debug, Default)]
pub(super) struct PinnedPrefixes(Vec<PinnedPrefix>);

#[derive(Debug)]
struct PinnedPrefix {
    name: String,
    /// Sequences that may use it.
    scope: PromptScope,
    tokens: Vec<u32>,
    kept: HostCache,
}

impl PinnedPrefixes {
    /// Size of all entries.
    pub(super) fn bytes(&self) -> Bytes {
        self.0.iter().map(|entry| entry.kept.bytes()).sum()
    }

    /// Size of the entries with other names.
    pub(super) fn bytes_except(&self, name: &str) -> Bytes {
        self.0.iter().filter(|entry| entry.name != name).map(|entry| entry.kept.bytes()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Length of the longest prefix of `tokens` that is restored for `scope`.
    pub(super) fn longest(&self, scope: CacheScope, tokens: &[u32]) -> usize {
        self.of(scope).map(|entry| common(&entry.tokens, tokens)).max().unwrap_or(0)
    }

    /// The entry for `scope` that begins with these tokens.
    pub(super) fn find(&self, scope: CacheScope, tokens: &[u32]) -> Option<&HostCache> {
        self.of(scope).find(|entry| entry.tokens.starts_with(tokens)).map(|entry| &entry.kept)
    }

    fn of(&self, scope: CacheScope) -> impl Iterator<Item = &PinnedPrefix> {
        self.0.iter().filter(move |entry| entry.scope.includes(scope))
    }

    /// Adds an entry, or replaces the one with this name.
    pub(super) fn add(&mut self, name: String, scope: PromptScope, tokens: Vec<u32>, kept: HostCache) {
        self.remove(&name);
        self.0.push(PinnedPrefix { name, scope, tokens, kept });
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|entry| entry.name != name);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
