//! Stop strings: text that ends an answer and is not part of it.
//!
//! A stop string may begin in one token and end in another. So the end of the text is held back as long as it could be the
//! beginning of a stop string, and is returned as soon as it cannot.
//!
//! Each stop string is matched by the algorithm of Knuth, Morris and Pratt, which reads every byte of the answer once and
//! knows at every byte how much of the stop string is matched so far. That is also the number of bytes to hold back. The
//! `aho-corasick` crate does not expose the depth of its states, so it cannot be used here. The work for a byte grows with
//! the number of stop strings and not with their lengths.

/// The text that a token adds to an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Text that can be sent; whole characters, often empty.
    pub text: String,
    /// A stop string was found. Chunks contain neither the stop string nor later text.
    pub stopped: bool,
}

/// Watches a stream of text for stop strings.
///
/// The first complete match wins, and of several that end at the same byte the longest. The result does not depend on how the
/// text is split into chunks.
#[derive(Debug)]
pub(super) struct StopStrings {
    matchers: Vec<Matcher>,
    /// A proper prefix of some stop string, between two pushes.
    held: String,
    stopped: bool,
    /// The stop string that was found.
    found: Option<String>,
}

impl StopStrings {
    /// Watches for `stops`; an empty string never matches.
    pub(super) fn new(stops: Vec<String>) -> Self {
        let matchers = stops.into_iter().filter(|stop| !stop.is_empty()).map(Matcher::new).collect();
        Self { matchers, held: String::new(), stopped: false, found: None }
    }

    /// Adds `fresh`; returns the text that can be sent.
    pub(super) fn push(&mut self, fresh: &str) -> Chunk {
        if self.stopped {
            return Chunk { text: String::new(), stopped: true };
        }
        let arrived = self.held.len();
        self.held.push_str(fresh);
        let leaving = match self.first_match(fresh) {
            Some((end, length)) => {
                self.stopped = true;
                self.held.truncate(arrived + end);
                self.found = Some(self.held[arrived + end - length..].to_owned());
                arrived + end - length
            }
            None => self.held.len() - self.matchers.iter().map(|matcher| matcher.matched).max().unwrap_or(0),
        };
        let text = self.held.drain(..leaving).collect();
        if self.stopped {
            self.held.clear();
        }
        Chunk { text, stopped: self.stopped }
    }

    /// The stop string that was found.
    pub(super) fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// The text that was held back, at the end of the answer.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The text that was held back; a match cannot begin in it any more.
    pub(super) fn flush(&mut self) -> String {
        self.matchers.iter_mut().for_each(|matcher| matcher.matched = 0);
        self.finish()
    }

    /// The end of the winning match in `fresh`, and its length.
    fn first_match(&mut self, fresh: &str) -> Option<(usize, usize)> {
        fresh.bytes().enumerate().find_map(|(at, byte)| {
            // Every matcher reads the byte, also if another one has matched.
            let lengths = self.matchers.iter_mut().map(|matcher| matcher.read(byte));
            let longest = lengths.fold(0, usize::max);
            (longest > 0).then_some((at + 1, longest))
        })
    }
}

/// A stop string, and the length of its prefix that the text so far ends with.
#[derive(Debug)]
struct Matcher {
    stop: Box<[u8]>,
    /// The failure function: for each number of matched bytes, the next smaller number that also matches.
    shorter: Box<[usize]>,
    /// Always less than the length of `stop`, between two reads.
    matched: usize,
}

impl Matcher {
    fn new(stop: String) -> Self {
        let stop = stop.into_bytes().into_boxed_slice();
        let mut shorter = vec![0; stop.len()];
        let mut matched = 0;
        for at in 1..stop.len() {
            while matched > 0 && stop[at] != stop[matched] {
                matched = shorter[matched - 1];
            }
            matched += usize::from(stop[at] == stop[matched]);
            shorter[at] = matched;
        }
        Self { stop, shorter: shorter.into_boxed_slice(), matched: 0 }
    }

    /// Length of the stop string when this byte completes it, else 0.
    fn read(&mut self, byte: u8) -> usize {
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.shorter[self.matched - 1];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        if self.matched < self.stop.len() {
            return 0;
        }
        self.matched = self.shorter[self.matched - 1];
        self.stop.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watch(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = StopStrings::new(stops.iter().map(ToString::to_string).collect());
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
    fn text_that_cannot_become_a_stop_string_is_released_at_once() {
        let mut watch = StopStrings::new(vec!["aab".into()]);
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

    #[test]
    fn the_work_for_a_token_does_not_grow_with_the_length_of_the_stop_strings() {
        let stops = (0..16).map(|n| "a".repeat(250_000) + &n.to_string()).collect();
        let mut watch = StopStrings::new(stops);
        let begun = std::time::Instant::now();
        for _ in 0..200_000 {
            assert!(!watch.push("a").stopped);
        }
        assert_eq!(watch.finish().len(), 200_000);
        // Comparing each stop string at each position, which is what this is not, takes hours.
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn streaming_finds_the_same_stop_as_a_search_of_the_whole_text(text in "[abक]{0,24}", stops in proptest::collection::vec("[abक]{1,4}", 0..4)) {
            let ends = stops.iter().filter_map(|stop| text.find(stop).map(|at| (at + stop.len(), at)));
            let expected = ends.min().map_or((text.as_str(), false), |(_, at)| (&text[..at], true));
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let found = watch(&stops, &[&text]);
            prop_assert_eq!((found.0.as_str(), found.1), expected);
        }

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
