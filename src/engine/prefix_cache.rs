//! Caches of earlier sequences, found by their beginning.
//!
//! A few entries within a memory limit, the least recently used evicted first. With so few entries, comparing a prompt to each
//! takes microseconds, while reading it takes seconds: a tree would save nothing.
//!
//! A lookup never finds sequences of another scope. Other adapters have other keys and values. With the entries of another salt,
//! the number of cached tokens in an answer would reveal another client's prompt, token by token. All scopes share one memory limit.

use crate::{job::CacheScope, units::Bytes};

/// Fewest positions that are worth a copy: reading them again takes no longer than a token or two.
pub(super) const MIN_KEPT: usize = 16;

/// Sequences with their caches, the least recently used first.
#[derive(Debug)]
pub(super) struct PrefixCache<T> {
    entries: Vec<CachedPrefix<T>>,
    max: Bytes,
}

#[derive(Debug)]
struct CachedPrefix<T> {
    scope: CacheScope,
    tokens: Vec<u32>,
    kept: T,
    bytes: Bytes,
}

impl<T> PrefixCache<T> {
    /// Empty, with a limit of `max`.
    pub(super) const fn new(max: Bytes) -> Self {
        Self { entries: Vec::new(), max }
    }

    /// Changes the limit.
    pub(super) fn set_limit(&mut self, max: Bytes) {
        self.max = max;
        self.make_room(max);
    }

    /// Size of all entries.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes(self.entries.iter().map(|entry| entry.bytes.0).sum())
    }

    /// Length of the longest cached prefix of `tokens`.
    pub(super) fn longest(&self, scope: CacheScope, tokens: &[u32]) -> usize {
        let entries = self.entries.iter().filter(|entry| entry.scope == scope);
        entries.map(|entry| common(&entry.tokens, tokens)).max().unwrap_or(0)
    }

    /// The cache of a sequence that begins with these tokens, which becomes the most recently used one.
    pub(super) fn find(&mut self, scope: CacheScope, tokens: &[u32]) -> Option<&T> {
        let is_it = |entry: &CachedPrefix<T>| entry.scope == scope && entry.tokens.starts_with(tokens);
        let found = self.entries.iter().position(is_it)?;
        self.entries[found..].rotate_left(1);
        self.entries.last().map(|entry| &entry.kept)
    }

    /// Adds an entry if it fits the limit. Entries that are a prefix of it are removed.
    pub(super) fn keep(&mut self, scope: CacheScope, tokens: Vec<u32>, kept: T, bytes: Bytes) {
        if bytes > self.max || self.find(scope, &tokens).is_some() {
            return;
        }
        self.supersede(scope, &tokens);
        self.make_room(Bytes(self.max.0 - bytes.0));
        self.entries.push(CachedPrefix { scope, tokens, kept, bytes });
    }

    /// Removes entries that are a prefix of `tokens`.
    pub(super) fn supersede(&mut self, scope: CacheScope, tokens: &[u32]) {
        self.entries.retain(|entry| entry.scope != scope || !tokens.starts_with(&entry.tokens));
    }

    /// Evicts the least recently used entries until at most `max` bytes are left.
    pub(super) fn make_room(&mut self, max: Bytes) {
        while self.bytes() > max {
            self.entries.remove(0);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Length of the common prefix of two sequences.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::{AdapterKey, CacheSalt};

    const ANY: CacheScope = CacheScope { salt: CacheSalt([0; 32]), adapters: AdapterKey::NONE };

    fn kept(max: u64, sequences: &[&[u32]]) -> PrefixCache<usize> {
        let mut prefixes = PrefixCache::new(Bytes(max));
        for (i, tokens) in sequences.iter().enumerate() {
            prefixes.keep(ANY, tokens.to_vec(), i, Bytes::from(tokens.len()));
        }
        prefixes
    }

    #[test]
    fn the_longest_prefix_is_found_and_used_entries_are_evicted_last() {
        let mut prefixes = kept(9, &[&[1, 2, 3], &[1, 5, 6], &[7, 8, 9]]);
        assert_eq!(prefixes.longest(ANY, &[1, 5, 9, 9]), 2);
        assert_eq!(prefixes.longest(ANY, &[2]), 0);
        assert_eq!(prefixes.find(ANY, &[1, 2]), Some(&0));
        assert_eq!(prefixes.find(ANY, &[2]), None);
        prefixes.keep(ANY, vec![4], 3, Bytes(1));
        assert_eq!([prefixes.longest(ANY, &[1, 2, 3]), prefixes.longest(ANY, &[1, 5, 6])], [3, 1]);
        assert_eq!(prefixes.bytes(), Bytes(7));
    }

    #[test]
    fn a_longer_sequence_replaces_its_prefix() {
        let mut prefixes = kept(9, &[&[1, 2], &[1, 2, 3]]);
        assert_eq!((prefixes.bytes(), prefixes.find(ANY, &[1, 2])), (Bytes(3), Some(&1)));
        prefixes.supersede(ANY, &[1, 2, 3, 4]);
        assert_eq!(prefixes.bytes(), Bytes(0));
    }

    #[test]
    fn an_entry_above_the_limit_is_not_kept_and_evicts_nothing() {
        assert_eq!(kept(3, &[&[1, 2], &[5, 6, 7, 8]]).longest(ANY, &[1, 2]), 2);
    }

    #[test]
    fn entries_of_one_salt_are_neither_found_nor_replaced_by_another() {
        let mut prefixes = kept(9, &[&[1, 2, 3]]);
        let other = CacheSalt([1; 32]).into();
        assert_eq!((prefixes.longest(other, &[1, 2, 3]), prefixes.find(other, &[1, 2])), (0, None));
        prefixes.supersede(other, &[1, 2, 3, 4]);
        prefixes.keep(other, vec![1, 2, 3], 7, Bytes(3));
        assert_eq!(prefixes.find(ANY, &[1, 2]), Some(&0));
        assert_eq!(prefixes.find(other, &[1, 2]), Some(&7));
        assert_eq!(prefixes.bytes(), Bytes(6), "each salt has its own copy");
    }

    proptest! {
        #[test]
        fn the_limit_is_never_exceeded(
            sequences in prop::collection::vec(prop::collection::vec(0u32..3, 1..9), 0..20), max in 0u64..40,
        ) {
            let mut prefixes = PrefixCache::new(Bytes(max));
            for tokens in sequences {
                prefixes.keep(ANY, tokens.clone(), (), Bytes::from(tokens.len()));
                prop_assert!(prefixes.bytes() <= Bytes(max));
                prop_assert_eq!(prefixes.longest(ANY, &tokens) == tokens.len(), tokens.len() as u64 <= max);
            }
        }
    }
}
