//! Sizes of blocks.

use super::backend::ALIGNMENT;

/// The size of the block that a request for `requested` bytes gets; `None` when no memory is that large.
///
/// Few sizes make freed blocks fit later requests. Eight of them from one power of two to the next waste at most an
/// eighth of the request; below 2 KiB the alignment is coarser than that.
pub(super) fn block_size(requested: usize) -> Option<usize> {
    let step = (requested.checked_next_power_of_two()? / 16).max(ALIGNMENT);
    let size = requested.max(1).checked_next_multiple_of(step)?;
    isize::try_from(size).is_ok().then_some(size)
}

/// The largest free block that may be used for a request of `size`: to waste up to a quarter is better than an allocation on
/// the device.
pub(super) fn largest_substitute(size: usize) -> usize {
    size.saturating_add(size / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_requests_are_rounded_to_the_alignment_and_impossible_ones_have_no_size() {
        assert_eq!(block_size(0), Some(256));
        assert_eq!(block_size(1), Some(256));
        assert_eq!(block_size(256), Some(256));
        assert_eq!(block_size(257), Some(512));
        assert_eq!(block_size(1 << 20), Some(1 << 20));
        assert_eq!(block_size((1 << 20) + 1), Some((1 << 20) + (1 << 17)));
        assert_eq!(block_size(isize::MAX as usize), None);
        assert_eq!(block_size(usize::MAX), None);
    }

    proptest! {
        #[test]
        fn a_block_holds_the_request_and_wastes_at_most_an_eighth(requested in 1usize..1 << 40) {
            let size = block_size(requested).unwrap();
            prop_assert!(size >= requested && size.is_multiple_of(ALIGNMENT));
            prop_assert!(size - requested < (requested / 8).max(ALIGNMENT));
            prop_assert_eq!(block_size(size), Some(size), "a request of exactly a block's size gets that block");
        }
    }
}
