//! Where the text at hand has said the same before.

use std::collections::HashMap;

/// Tokens that must be alike before what followed them is taken for a guess. Two are often a chance.
const LEAST: usize = 3;

/// Tokens beyond which it is not counted how many are alike.
const MOST: usize = 32;

/// A text, and how it went on after its last tokens the last time.
#[derive(Debug, Default)]
pub(super) struct PromptLookup {
    tokens: Vec<u32>,
    /// Behind which position each run of [`LEAST`] tokens was seen last.
    places: HashMap<[u32; LEAST], usize>,
    found: Option<Match>,
}

/// An earlier place that ends like the text does.
#[derive(Clone, Copy, Debug)]
struct Match {
    /// The position behind it.
    next: usize,
    /// Tokens that are alike, up to [`MOST`].
    length: usize,
}

/// What became of a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LookupVerdict {
    /// Tokens that were alike before it.
    pub(super) length: usize,
    pub(super) was_right: bool,
}

impl PromptLookup {
    /// Appends a token; what became of the guess that was made for it, if there was one.
    pub(super) fn push(&mut self, token: u32) -> Option<LookupVerdict> {
        let guess = self
            .found
            .map(|Match { next, length }| LookupVerdict { length, was_right: self.tokens[next] == token });
        self.tokens.push(token);
        let earlier =
            self.tokens.last_chunk::<LEAST>().and_then(|run| self.places.insert(*run, self.tokens.len()));
        self.found = match (self.found, guess) {
            // The longer two places are alike, the better the guess: a later place would begin anew.
            (Some(Match { next, length }), Some(LookupVerdict { was_right: true, .. })) => {
                Some(Match { next: next + 1, length: (length + 1).min(MOST) })
            }
            _ => earlier.map(|next| Match { next, length: self.alike(next) }),
        };
        guess
    }

    /// How many tokens before `place` are those that the text ends with.
    fn alike(&self, place: usize) -> usize {
        let (there, here) = (self.tokens[..place].iter().rev(), self.tokens.iter().rev());
        there.zip(here).take(MOST).take_while(|(there, here)| there == here).count()
    }

    /// All of it.
    pub(super) fn text(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens are alike, where there is anything to guess from.
    pub(super) fn match_length(&self) -> Option<usize> {
        self.found.map(|found| found.length)
    }

    /// The next `length` tokens if the text goes on as it did before; nothing where nothing is alike. Where the earlier place
    /// is so near that its continuation runs into the end, it goes on in the same circle.
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
    fn what_followed_the_last_time_is_the_guess() {
        let text = lookup(&[1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 9, 1, 2, 3]);
        assert_eq!((text.match_length(), text.draft(3)), (Some(4), vec![6, 7, 9]));
        let text = lookup(&[1, 2, 3, 4, 1, 2]);
        assert_eq!((text.match_length(), text.draft(3)), (None, vec![]));
    }

    #[test]
    fn a_match_that_goes_on_is_kept_and_one_that_breaks_is_looked_up_again() {
        let mut text = lookup(&[9, 1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 0, 1, 2, 3]);
        assert_eq!(text.draft(1), [7], "the last place");
        assert_eq!(text.push(4), Some(LookupVerdict { length: 3, was_right: false }));
        assert_eq!(text.draft(2), [5, 6], "2, 3, 4 was said once");
        assert_eq!(text.push(5), Some(LookupVerdict { length: 4, was_right: true }));
        assert_eq!(text.match_length(), Some(5));
    }

    #[test]
    fn a_circle_goes_round() {
        let text = lookup(&[1, 2, 1, 2, 1, 2]);
        assert_eq!(text.draft(5), [1, 2, 1, 2, 1]);
        assert_eq!(lookup(&[5; 4]).draft(3), [5; 3]);
    }

    proptest! {
        #[test]
        fn a_guess_is_what_a_search_through_the_text_finds(tokens in prop::collection::vec(0u32..4, 0..60)) {
            let text = lookup(&tokens);
            match text.found {
                Some(Match { next, length }) => {
                    prop_assert!(next < tokens.len());
                    prop_assert!(length >= LEAST);
                    prop_assert_eq!(&tokens[next - length..next], &tokens[tokens.len() - length..]);
                    prop_assert_eq!(text.draft(1)[0], tokens[next]);
                }
                None => if let Some(run) = tokens.last_chunk::<LEAST>() {
                    let seen = tokens[..tokens.len() - 1].windows(LEAST).any(|window| window == run);
                    prop_assert!(!seen);
                }
            }
        }
    }
}
