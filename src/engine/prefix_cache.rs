//! What is kept of earlier sequences, to be found by how they begin.
//!
//! A few entries within a bound of bytes, the least recently used first to go. With so few, comparing a prompt to each of
//! them takes microseconds, where reading it takes seconds: a tree would save nothing.
//!
//! A lookup never finds sequences of another salt: the number of cached tokens in an answer would otherwise reveal another
//! client's prompt, token by token. All salts share one memory bound.

use crate::{job::CacheSalt, units::Bytes};

/// Sequences and what belongs to them, the least recently used first.
#[derive(Debug)]
pub(super) struct PrefixCache<T> {
    entries: Vec<CachedPrefix<T>>,
    most: Bytes,
}

#[derive(Debug)]
struct CachedPrefix<T> {
    salt: CacheSalt,
    tokens: Vec<u32>,
    kept: T,
    bytes: Bytes,
}

impl<T> PrefixCache<T> {
    /// None yet, and never more than `most`.
    pub(super) const fn new(most: Bytes) -> Self {
        Self { entries: Vec::new(), most }
    }

    /// Never more than `most` from now on.
    pub(super) fn bound_by(&mut self, most: Bytes) {
        self.most = most;
        self.make_room(most);
    }

    /// What all of them take.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes(self.entries.iter().map(|entry| entry.bytes.0).sum())
    }

    /// Of how many of its first tokens something is kept.
    pub(super) fn longest(&self, salt: CacheSalt, tokens: &[u32]) -> usize {
        let entries = self.entries.iter().filter(|entry| entry.salt == salt);
        entries.map(|entry| common(&entry.tokens, tokens)).max().unwrap_or(0)
    }

    /// What is kept of a sequence that begins with these tokens. It is the most recently used one then.
    pub(super) fn find(&mut self, salt: CacheSalt, tokens: &[u32]) -> Option<&T> {
        let is_it = |entry: &CachedPrefix<T>| entry.salt == salt && entry.tokens.starts_with(tokens);
        let found = self.entries.iter().position(is_it)?;
        self.entries[found..].rotate_left(1);
        self.entries.last().map(|entry| &entry.kept)
    }

    /// Keeps one more, where there is room for it at all. Those that it goes on with are part of it, and go.
    pub(super) fn keep(&mut self, salt: CacheSalt, tokens: Vec<u32>, kept: T, bytes: Bytes) {
        if bytes > self.most || self.find(salt, &tokens).is_some() {
            return;
        }
        self.supersede(salt, &tokens);
        self.make_room(Bytes(self.most.0 - bytes.0));
        self.entries.push(CachedPrefix { salt, tokens, kept, bytes });
    }

    /// Drops those that this one goes on with.
    pub(super) fn supersede(&mut self, salt: CacheSalt, tokens: &[u32]) {
        self.entries.retain(|entry| entry.salt != salt || !tokens.starts_with(&entry.tokens));
    }

    /// Drops the least recently used until no more than `most` is left.
    pub(super) fn make_room(&mut self, most: Bytes) {
        while self.bytes() > most {
            self.entries.remove(0);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

/// How many tokens two sequences begin with in common.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANY: CacheSalt = CacheSalt([0; 32]);

    fn kept(most: u64, sequences: &[&[u32]]) -> PrefixCache<usize> {
        let mut prefixes = PrefixCache::new(Bytes(most));
        for (i, tokens) in sequences.iter().enumerate() {
            prefixes.keep(ANY, tokens.to_vec(), i, Bytes::from(tokens.len()));
        }
        prefixes
    }

    #[test]
    fn the_longest_beginning_is_found_and_what_is_used_stays_longest() {
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
    fn what_goes_on_with_another_takes_its_place() {
        let mut prefixes = kept(9, &[&[1, 2], &[1, 2, 3]]);
        assert_eq!((prefixes.bytes(), prefixes.find(ANY, &[1, 2])), (Bytes(3), Some(&1)));
        prefixes.supersede(ANY, &[1, 2, 3, 4]);
        assert_eq!(prefixes.bytes(), Bytes(0));
    }

    #[test]
    fn what_is_larger_than_the_bound_is_not_kept_and_drives_nobody_out() {
        assert_eq!(kept(3, &[&[1, 2], &[5, 6, 7, 8]]).longest(ANY, &[1, 2]), 2);
    }

    #[test]
    fn what_is_kept_for_one_salt_is_neither_found_nor_superseded_by_another() {
        let mut prefixes = kept(9, &[&[1, 2, 3]]);
        let other = CacheSalt([1; 32]);
        assert_eq!((prefixes.longest(other, &[1, 2, 3]), prefixes.find(other, &[1, 2])), (0, None));
        prefixes.supersede(other, &[1, 2, 3, 4]);
        prefixes.keep(other, vec![1, 2, 3], 7, Bytes(3));
        assert_eq!(prefixes.find(ANY, &[1, 2]), Some(&0));
        assert_eq!(prefixes.find(other, &[1, 2]), Some(&7));
        assert_eq!(prefixes.bytes(), Bytes(6), "each has its own copy");
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound_is_kept(
            sequences in prop::collection::vec(prop::collection::vec(0u32..3, 1..9), 0..20), most in 0u64..40,
        ) {
            let mut prefixes = PrefixCache::new(Bytes(most));
            for tokens in sequences {
                prefixes.keep(ANY, tokens.clone(), (), Bytes::from(tokens.len()));
                prop_assert!(prefixes.bytes() <= Bytes(most));
                prop_assert_eq!(prefixes.longest(ANY, &tokens) == tokens.len(), tokens.len() as u64 <= most);
            }
        }
    }
}
