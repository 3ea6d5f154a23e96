//! Sequences that came from files, to stay until somebody says otherwise.
//!
//! Unlike what is [kept](super::prefixes) of earlier sequences they have names, no longer sequence takes their place, and none
//! has to go for another: who restores a system prompt counts on it. They lie in the host's memory, also where a GPU computes:
//! a copy across takes milliseconds where reading the prompt takes seconds, and the device's memory stays what the pool makes
//! of it.

use super::prefix_cache::common;
use crate::{job::CacheSalt, model::HostCache, units::Bytes};

/// Sequences by name.
#[derive(Debug, Default)]
pub(super) struct PinnedPrefixes(Vec<PinnedPrefix>);

#[derive(Debug)]
struct PinnedPrefix {
    name: String,
    /// Salt of the sequences that may use it; `None` means all sequences.
    salt: Option<CacheSalt>,
    tokens: Vec<u32>,
    kept: HostCache,
}

impl PinnedPrefixes {
    /// What all of them take.
    pub(super) fn bytes(&self) -> Bytes {
        self.0.iter().map(|entry| entry.kept.bytes()).sum()
    }

    /// What those of other names take.
    pub(super) fn bytes_beside(&self, name: &str) -> Bytes {
        self.0.iter().filter(|entry| entry.name != name).map(|entry| entry.kept.bytes()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Length of the longest prefix of `tokens` that is restored for sequences of `salt`.
    pub(super) fn longest(&self, salt: CacheSalt, tokens: &[u32]) -> usize {
        self.of(salt).map(|entry| common(&entry.tokens, tokens)).max().unwrap_or(0)
    }

    /// The restored entry for sequences of `salt` that begins with these tokens.
    pub(super) fn find(&self, salt: CacheSalt, tokens: &[u32]) -> Option<&HostCache> {
        self.of(salt).find(|entry| entry.tokens.starts_with(tokens)).map(|entry| &entry.kept)
    }

    fn of(&self, salt: CacheSalt) -> impl Iterator<Item = &PinnedPrefix> {
        self.0.iter().filter(move |entry| entry.salt.is_none_or(|own| own == salt))
    }

    /// Adds one, in the place of another of its name.
    pub(super) fn add(&mut self, name: String, salt: Option<CacheSalt>, tokens: Vec<u32>, kept: HostCache) {
        self.remove(&name);
        self.0.push(PinnedPrefix { name, salt, tokens, kept });
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|entry| entry.name != name);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
