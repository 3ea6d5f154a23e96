//! How the dimensions of a head are arranged.
//!
//! Attention rotates the first half of a head against the second, and its operators take heads of a multiple of 16
//! dimensions. Other models are exported exactly all the same: scores are sums over dimensions, so the dimensions of queries
//! and keys may have any common order, and dimensions of zeros change nothing.
//!
//! ```text
//! stored, 6 dimensions, 4 of them rotated, pairs side by side     a0 b0 a1 b1 c d
//! here, 8 dimensions, pairs half a head apart                     a0 a1 c  d  b0 b1 0 0
//! ```
//!
//! A pair that is not rotated has a cosine of one and a sine of zero.

use std::{ops::Range, sync::Arc};

use super::rope::Rotary;

/// Dimensions of a head that attention with rotary positions takes are a multiple of this; without, of half of it.
pub(super) const STEP: usize = 16;

/// For each dimension of a head in the graph, the stored dimension that it is; zero where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeadLayout {
    slots: Arc<[Option<usize>]>,
    stored: usize,
}

impl HeadLayout {
    /// `stored` dimensions in order, and zeros up to `width`.
    pub(super) fn padded(stored: usize, width: usize) -> Self {
        Self { slots: (0..width).map(|slot| (slot < stored).then_some(slot)).collect(), stored }
    }

    /// `stored` dimensions, of which `rotary` rotates the first, such that the two of a pair are `half` apart.
    pub(super) fn rotated(stored: usize, width: usize, rotary: &Rotary, half: usize) -> Self {
        let mut slots = vec![None; width];
        let pairs = rotary.dims / 2;
        for pair in 0..pairs {
            let (one, other) =
                if rotary.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pairs + pair) };
            slots[pair] = Some(one);
            slots[half + pair] = Some(other);
        }
        let rest = slots.iter_mut().filter(|slot| slot.is_none()).zip(rotary.dims..stored);
        rest.for_each(|(slot, dimension)| *slot = Some(dimension));
        Self { slots: slots.into(), stored }
    }

    /// `stored` dimensions, of which `rotary` rotates the last, such that the two of a pair are `half` apart.
    pub(super) fn rotated_last(stored: usize, width: usize, rotary: &Rotary, half: usize) -> Self {
        let first = Self::rotated(stored, width, rotary, half);
        let still = stored - rotary.dims;
        let moved =
            |dimension| if dimension < rotary.dims { still + dimension } else { dimension - rotary.dims };
        Self { slots: first.slots.iter().map(|slot| slot.map(moved)).collect(), stored }
    }

    /// The layout of heads that have only dimensions `range` of those of this one, with zeros for the others.
    pub(super) fn part(&self, range: Range<usize>) -> Self {
        let kept = |dimension: usize| range.contains(&dimension).then(|| dimension - range.start);
        Self { slots: self.slots.iter().map(|slot| slot.and_then(kept)).collect(), stored: range.len() }
    }

    /// Dimensions of a head in the graph.
    pub(super) fn width(&self) -> usize {
        self.slots.len()
    }

    /// Dimensions of a head in the checkpoint.
    pub(super) fn stored_width(&self) -> usize {
        self.stored
    }

    /// The stored line for `line`, counted over all heads.
    pub(super) fn stored(&self, line: usize) -> Option<usize> {
        let (head, dimension) = (line / self.width(), line % self.width());
        self.slots.get(dimension).copied().flatten().map(|stored| head * self.stored + stored)
    }

    fn is_as_stored(&self) -> bool {
        self.width() == self.stored && self.slots.iter().enumerate().all(|(at, slot)| *slot == Some(at))
    }

    pub(super) fn unless_as_stored(self) -> Option<Self> {
        (!self.is_as_stored()).then_some(self)
    }
}

/// How far the two dimensions of a pair are apart: half of what is rotated where the operators can leave the rest, else
/// half a head.
pub(super) fn half(rotary: &Rotary, stored: usize, width: usize) -> usize {
    let leaves_rest = stored == width && rotary.dims.is_multiple_of(STEP);
    if leaves_rest { rotary.dims / 2 } else { width / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::rope::Scaling;

    fn rotary(dims: usize, interleaved: bool) -> Rotary {
        Rotary { theta: 1e4, dims, interleaved, is_reversed: false, still_pairs: 0, scaling: Scaling::None }
    }

    fn slots(layout: &HeadLayout) -> Vec<Option<usize>> {
        (0..layout.width()).map(|line| layout.stored(line)).collect()
    }

    #[test]
    fn pairs_end_up_half_a_head_apart_and_the_rest_between_them() {
        let layout = HeadLayout::rotated(6, 8, &rotary(4, true), 4);
        let expected = [0, 2, 4, 5, 1, 3].map(Some);
        assert_eq!(slots(&layout)[..6], expected);
        assert_eq!(slots(&layout)[6..], [None, None]);
        assert_eq!(layout.stored(8), Some(6), "the next head follows");
    }

    #[test]
    fn heads_of_a_supported_size_stay_as_they_are() {
        assert!(HeadLayout::rotated(64, 64, &rotary(64, false), 32).is_as_stored());
        assert!(HeadLayout::rotated(64, 64, &rotary(32, false), 16).is_as_stored());
        assert!(!HeadLayout::rotated(64, 64, &rotary(64, true), 32).is_as_stored());
        assert_eq!(half(&rotary(32, false), 64, 64), 16);
        assert_eq!(half(&rotary(20, false), 80, 80), 40);
    }
}
