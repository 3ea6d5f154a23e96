//! Stop strings: text that ends an answer and is not part of it.
//!
//! A stop string may begin in one token and end in another, so the end of the text is held back while it could be
//! the beginning of one, and no longer: what cannot become a stop string any more leaves at once.

use super::decoder::Chunk;

/// Watches a stream of text for stop strings.
///
/// The match that is complete first wins, and among those that end together the longest: that is the one rule whose
/// outcome does not depend on how the text was cut into pieces.
#[derive(Debug)]
pub(super) struct Stops {
    stops: Vec<String>,
    /// A proper prefix of some stop string, between two pushes.
    held: String,
    stopped: bool,
}

impl Stops {
    /// Watches for `stops`; an empty string never matches.
    pub(super) fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), stopped: false }
    }

    /// What may leave now that `fresh` has arrived.
    pub(super) fn push(&mut self, fresh: &str) -> Chunk {
        if self.stopped {
            return Chunk { text: String::new(), stopped: true };
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(fresh);
        self.stopped = match self.first_match(&text) {
            Some(start) => {
                text.truncate(start);
                true
            }
            None => {
                self.held = text.split_off(self.safe_length(&text));
                false
            }
        };
        Chunk { text, stopped: self.stopped }
    }

    /// What was held back, when nothing more will come.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the winning match begins.
    fn first_match(&self, text: &str) -> Option<usize> {
        let found =
            self.stops.iter().filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// Length of `text` without the longest end that begins a stop string.
    fn safe_length(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = text.ceil_char_boundary(text.len().saturating_sub(longest));
        let mut starts = text[from..].char_indices().map(|(at, _)| from + at);
        starts.find(|&at| self.stops.iter().any(|stop| stop.starts_with(&text[at..]))).unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watch(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = Stops::new(stops.iter().map(ToString::to_string).collect());
        let mut text = String::new();
        for piece in pieces {
            text += &watch.push(piece).text;
        }
        text += &watch.finish();
        (text, watch.stopped)
    }

    #[test]
    fn a_stop_string_across_pieces_is_not_emitted_and_nothing_follows_it() {
        assert_eq!(watch(&["END"], &["ab", "cE", "N", "Dd", "e"]), ("abc".into(), true));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_leaves_as_soon_as_it_cannot_be_one() {
        let mut watch = Stops::new(vec!["aab".into()]);
        assert_eq!(watch.push("xaa").text, "x");
        assert_eq!(watch.push("a").text, "a", "the last two may still begin one");
        assert_eq!(watch.push("c").text, "aac");
        assert_eq!(watch.finish(), "");
    }

    #[test]
    fn a_beginning_that_nothing_completed_is_given_at_the_end() {
        assert_eq!(watch(&["।\n"], &["नमस्ते", "।"]), ("नमस्ते।".into(), false));
    }

    #[test]
    fn the_match_that_is_complete_first_wins_whatever_the_cuts() {
        for pieces in [&["xabcd"][..], &["xab", "cd"], &["x", "a", "b", "c", "d"]] {
            assert_eq!(watch(&["abcd", "bc"], pieces), ("xa".into(), true));
            assert_eq!(watch(&["c", "abc"], pieces), ("x".into(), true), "both end together: the longer");
        }
    }

    #[test]
    fn empty_stop_strings_match_nothing() {
        assert_eq!(watch(&["", ""], &["a", "", "b"]), ("ab".into(), false));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(text in "[abक]{0,24}", stops in proptest::collection::vec("[abक]{0,4}", 0..4), n in 1_usize..5) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<char> = text.chars().collect();
            let pieces: Vec<String> = chars.chunks(n).map(|piece| piece.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(watch(&stops, &pieces), watch(&stops, &[&text]));
        }
    }
}
