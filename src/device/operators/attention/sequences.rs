//! The sequences of a pass, and where the cache keeps their positions.
//!
//! A pass over one sequence gives attention one number, the position of its last token, as `GroupQueryAttention` has it. A
//! pass over several sequences gives a table of numbers in place of it:
//!
//! ```text
//! tokens, last position, segments, (first position, cache row) for each segment      of each sequence
//! ```
//!
//! Sequences that begin with the same tokens share a segment: its keys and values are in the cache once.

use std::ops::Range;

/// Most segments of a sequence: what all sequences share, what those of one prompt share, and the rest.
pub const MAX_SEGMENTS: usize = 3;

/// Positions from `position` on, up to the next segment, are in the cache's rows from `row` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSegment {
    /// The first position.
    pub position: usize,
    /// Its row.
    pub row: usize,
}

/// A sequence of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassSequence {
    /// Tokens in this pass, at least one.
    pub tokens: usize,
    /// Positions of the sequence, these tokens included.
    pub total: usize,
    /// Where the cache has them: at least one segment and at most [`MAX_SEGMENTS`], the first from position 0 on.
    pub segments: Vec<CacheSegment>,
}

impl PassSequence {
    /// Numbers in the table of a pass over `sequences`.
    #[must_use]
    pub const fn table_len(sequences: usize) -> usize {
        sequences * (3 + 2 * MAX_SEGMENTS)
    }

    /// The only sequence of a pass of `tokens`, whose positions are the cache's rows.
    fn alone(tokens: usize, last: usize) -> Self {
        Self { tokens, total: last + 1, segments: vec![CacheSegment { position: 0, row: 0 }] }
    }

    /// Appends the sequence to a table.
    pub fn encode(&self, table: &mut Vec<i32>) {
        // No context is longer than 2^24.
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let segments = self.segments.iter().flat_map(|segment| [segment.position, segment.row]);
        let head = [self.tokens, self.total.saturating_sub(1), self.segments.len()];
        table.extend(head.into_iter().chain(segments).map(number));
    }

    /// The rows of the cache that hold positions of `block`, in contiguous parts.
    fn rows(&self, block: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        contiguous(&self.segments, block)
    }

    /// Whether the sequence has its new tokens, and a cache of `capacity` rows has room for all positions.
    fn fits(&self, capacity: usize) -> bool {
        let starts = self.segments.iter().map(|segment| segment.position);
        self.tokens > 0
            && self.total >= self.tokens
            && self.segments.first().is_some_and(|first| first.position == 0)
            && starts.is_sorted_by(|a, b| a < b)
            && self.rows(&(0..self.total)).all(|rows| rows.end <= capacity)
    }
}

/// The rows of the cache that hold the positions of `block`, in parts that are contiguous.
pub(super) fn contiguous(
    segments: &[CacheSegment],
    block: &Range<usize>,
) -> impl Iterator<Item = Range<usize>> {
    let block = block.clone();
    let ends = segments.iter().skip(1).map(|next| next.position).chain([usize::MAX]);
    segments.iter().zip(ends).filter_map(move |(segment, end)| {
        let (start, end) = (block.start.max(segment.position), block.end.min(end));
        let first = segment.row + start.saturating_sub(segment.position);
        (start < end).then(|| first..first + (end - start))
    })
}

/// The sequences of a pass of `tokens` over a cache of `capacity` rows, from the numbers that the graph is given; `None` if
/// these do not fit the pass.
pub(super) fn decode(numbers: &[i32], tokens: usize, capacity: usize) -> Option<Vec<PassSequence>> {
    let mut rest = numbers.iter().map(|number| usize::try_from(*number).ok());
    let mut sequences = Vec::new();
    if let [_] = numbers {
        sequences.push(PassSequence::alone(tokens, rest.next()??));
    }
    while let Some(tokens) = rest.next() {
        let (tokens, last, count) = (tokens?, rest.next()??, rest.next()??);
        if !(1..=MAX_SEGMENTS).contains(&count) {
            return None;
        }
        let mut segments = Vec::with_capacity(count);
        for _ in 0..count {
            segments.push(CacheSegment { position: rest.next()??, row: rest.next()?? });
        }
        sequences.push(PassSequence { tokens, total: last + 1, segments });
    }
    let all: usize = sequences.iter().map(|sequence| sequence.tokens).sum();
    (all == tokens && sequences.iter().all(|sequence| sequence.fits(capacity))).then_some(sequences)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(position: usize, row: usize) -> CacheSegment {
        CacheSegment { position, row }
    }

    #[test]
    fn one_number_is_the_last_position_of_one_sequence() {
        assert_eq!(decode(&[6], 3, 7), Some(vec![PassSequence::alone(3, 6)]));
        for (numbers, tokens) in [(&[7][..], 3), (&[1], 3), (&[-1], 1), (&[], 1)] {
            assert_eq!(decode(numbers, tokens, 7), None, "{numbers:?}");
        }
    }

    #[test]
    fn a_table_gives_back_its_sequences_and_is_refused_where_it_leaves_the_cache() {
        let first = PassSequence { tokens: 1, total: 12, segments: vec![segment(0, 0), segment(10, 40)] };
        let second = PassSequence {
            tokens: 4,
            total: 16,
            segments: vec![segment(0, 0), segment(10, 20), segment(15, 30)],
        };
        let mut table = Vec::new();
        [&first, &second].into_iter().for_each(|sequence| sequence.encode(&mut table));
        assert!(table.len() <= PassSequence::table_len(2));
        assert_eq!(decode(&table, 5, 42), Some(vec![first, second]));
        assert_eq!(decode(&table, 5, 41), None, "no row 41");
        assert_eq!(decode(&table, 4, 42), None, "five tokens");
        assert_eq!(decode(&table[..table.len() - 1], 5, 42), None);
    }

    #[test]
    fn rows_are_contiguous_within_a_segment() {
        let segments = [segment(0, 0), segment(10, 40), segment(12, 20)];
        let rows = |block| contiguous(&segments, &block).collect::<Vec<_>>();
        assert_eq!(rows(3..12), [3..10, 40..42]);
        assert_eq!(rows(8..20), [8..10, 40..42, 20..28]);
        assert_eq!(rows(11..13), [41..42, 20..21]);
    }

    proptest! {
        #[test]
        fn numbers_of_any_kind_never_panic(numbers in prop::collection::vec(any::<i32>(), 0..20), tokens in 0usize..9) {
            let _ = decode(&numbers, tokens, 100);
        }

        #[test]
        fn small_numbers_never_panic(numbers in prop::collection::vec(-1i32..6, 0..20), tokens in 0usize..9) {
            if let Some(sequences) = decode(&numbers, tokens, 100) {
                prop_assert_eq!(sequences.iter().map(|sequence| sequence.tokens).sum::<usize>(), tokens);
            }
        }
    }
}
