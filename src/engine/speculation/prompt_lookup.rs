//! Prompt lookup: finds an earlier place where the sequence ends like it does now.

use std::collections::HashMap;

/// Fewest matching tokens. Two often match by chance.
const MIN_MATCH: usize = 3;

/// Matching tokens are counted up to this number.
const MAX_MATCH: usize = 32;

/// A sequence, and the last earlier place that ends like it does.
#[derive(Debug, Default)]
pub(super) struct PromptLookup {
    tokens: Vec<u32>,
    /// Position after the last occurrence of each run of [`MIN_MATCH`] tokens.
    places: HashMap<[u32; MIN_MATCH], usize>,
    found: Option<Match>,
}

/// An earlier place that ends like the sequence does.
#[derive(Clone, Copy, Debug)]
struct Match {
    /// Position after it.
    next: usize,
    /// Matching tokens, at most [`MAX_MATCH`].
    length: usize,
}

/// Whether a token was predicted correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LookupVerdict {
    /// Matching tokens before it.
    pub(super) length: usize,
    pub(super) was_right: bool,
}

impl PromptLookup {
    /// Appends a token; returns whether the lookup had predicted it, if it had predicted any.
    pub(super) fn push(&mut self, token: u32) -> Option<LookupVerdict> {
        let verdict = self
            .found
            .map(|Match { next, length }| LookupVerdict { length, was_right: self.tokens[next] == token });
        self.tokens.push(token);
        let earlier =
            self.tokens.last_chunk::<MIN_MATCH>().and_then(|run| self.places.insert(*run, self.tokens.len()));
        self.found = match (self.found, verdict) {
            // The longer the match, the better the draft, so a longer match is kept rather than a later one.
            (Some(Match { next, length }), Some(LookupVerdict { was_right: true, .. })) => {
                Some(Match { next: next + 1, length: (length + 1).min(MAX_MATCH) })
            }
            _ => earlier.map(|next| Match { next, length: self.matching(next) }),
        };
        verdict
    }

    /// How many tokens before `place` match the end of the sequence.
    fn matching(&self, place: usize) -> usize {
        let (there, here) = (self.tokens[..place].iter().rev(), self.tokens.iter().rev());
        there.zip(here).take(MAX_MATCH).take_while(|(there, here)| there == here).count()
    }

    /// The whole sequence.
    pub(super) fn text(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of matching tokens; `None` without a match.
    pub(super) fn match_length(&self) -> Option<usize> {
        self.found.map(|found| found.length)
    }

    /// The next `length` tokens if the sequence repeats; none without a match. A continuation that reaches the end of the sequence
    /// starts over.
    pub(super) fn draft(&self, length: usize) -> Vec<u32> {
        self.found.map_or_else(Vec::new, |Match { next, .. }| {
            self.tokens[next..].iter().copied().cycle().take(length).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(tokens: &[u32]) -> PromptLookup {
        let mut lookup = PromptLookup::default();
        for token in tokens {
            lookup.push(*token);
        }
        lookup
    }

    #[test]
    fn the_draft_is_what_followed_last_time() {
        let text = lookup(&[1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 9, 1, 2, 3]);
        assert_eq!((text.match_length(), text.draft(3)), (Some(4), vec![6, 7, 9]));
        let text = lookup(&[1, 2, 3, 4, 1, 2]);
        assert_eq!((text.match_length(), text.draft(3)), (None, vec![]));
    }

    #[test]
    fn a_match_that_continues_is_kept_and_one_that_breaks_is_looked_up_again() {
        let mut text = lookup(&[9, 1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 0, 1, 2, 3]);
        assert_eq!(text.draft(1), [7], "the last occurrence");
        assert_eq!(text.push(4), Some(LookupVerdict { length: 3, was_right: false }));
        assert_eq!(text.draft(2), [5, 6], "2, 3, 4 occurs once");
        assert_eq!(text.push(5), Some(LookupVerdict { length: 4, was_right: true }));
        assert_eq!(text.match_length(), Some(5));
    }

    #[test]
    fn a_repeating_pattern_continues() {
        let text = lookup(&[1, 2, 1, 2, 1, 2]);
        assert_eq!(text.draft(5), [1, 2, 1, 2, 1]);
        assert_eq!(lookup(&[5; 4]).draft(3), [5; 3]);
    }

    proptest! {
        #[test]
        fn the_match_is_what_a_search_through_the_sequence_finds(tokens in prop::collection::vec(0u32..4, 0..60)) {
            let text = lookup(&tokens);
            match text.found {
                Some(Match { next, length }) => {
                    prop_assert!(next < tokens.len());
                    prop_assert!(length >= MIN_MATCH);
                    prop_assert_eq!(&tokens[next - length..next], &tokens[tokens.len() - length..]);
                    prop_assert_eq!(text.draft(1)[0], tokens[next]);
                }
                None => if let Some(run) = tokens.last_chunk::<MIN_MATCH>() {
                    let seen = tokens[..tokens.len() - 1].windows(MIN_MATCH).any(|window| window == run);
                    prop_assert!(!seen);
                }
            }
        }
    }
}
