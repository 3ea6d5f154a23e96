//! Unused blocks, kept for the next request of their size.

use super::{backend::Block, sizes::largest_substitute};

/// A free block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FreeBlock {
    pub(super) block: Block,
    pub(super) size: usize,
    /// No work that was submitted before it was freed can still touch it.
    pub(super) is_settled: bool,
}

/// Free blocks, oldest first, bounded in number and in bytes.
///
/// A plain list searched from its end: a decode step leaves a few dozen blocks here, and the one freed last is the one
/// whose lines are still in the processor's caches.
#[derive(Debug)]
pub(super) struct FreeList {
    blocks: Vec<FreeBlock>,
    bytes: usize,
    max_bytes: usize,
}

/// Maximum number of blocks: more than a pass of any graph frees, and few enough for a linear search.
const MAX_BLOCKS: usize = 1024;

impl FreeList {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { blocks: Vec::new(), bytes: 0, max_bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes the best fit for `size`; of several, the one freed last.
    pub(super) fn take(&mut self, size: usize) -> Option<FreeBlock> {
        let max = largest_substitute(size);
        let mut best: Option<(usize, usize)> = None;
        for (at, free) in self.blocks.iter().enumerate().rev() {
            let fits = free.size >= size && free.size <= max;
            if fits && best.is_none_or(|(_, known)| free.size < known) {
                best = Some((at, free.size));
                if free.size == size {
                    break;
                }
            }
        }
        let (at, size) = best?;
        self.bytes -= size;
        Some(self.blocks.remove(at))
    }

    pub(super) fn put(&mut self, block: Block, size: usize) {
        self.bytes += size;
        self.blocks.push(FreeBlock { block, size, is_settled: false });
    }

    /// Removes the oldest block if there are too many.
    pub(super) fn surplus(&mut self) -> Option<FreeBlock> {
        let is_overfull = self.bytes > self.max_bytes || self.blocks.len() > MAX_BLOCKS;
        if is_overfull { self.oldest() } else { None }
    }

    /// Removes the oldest block.
    pub(super) fn oldest(&mut self) -> Option<FreeBlock> {
        let oldest = (!self.blocks.is_empty()).then(|| self.blocks.remove(0))?;
        self.bytes -= oldest.size;
        Some(oldest)
    }

    /// Notes that the device has finished all work, so that any stream may use the blocks.
    pub(super) fn settle(&mut self) {
        self.blocks.iter_mut().for_each(|free| free.is_settled = true);
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;

    fn block(n: usize) -> Block {
        Block(NonNull::without_provenance(n.try_into().unwrap()))
    }

    fn list(sizes: &[usize]) -> FreeList {
        let mut list = FreeList::new(usize::MAX);
        for (n, size) in sizes.iter().enumerate() {
            list.put(block(n + 1), *size);
        }
        list
    }

    #[test]
    fn the_smallest_block_that_fits_is_taken_and_of_equals_the_one_freed_last() {
        let mut list = list(&[1024, 1280, 1024, 4096]);
        assert_eq!(list.take(1024).unwrap().block, block(3));
        assert_eq!(list.take(1024).unwrap().block, block(1));
        assert_eq!(list.take(1024).unwrap().block, block(2), "a quarter more will do");
        assert_eq!(list.take(1024), None, "four times as much will not");
        assert_eq!(list.bytes(), 4096);
    }

    #[test]
    fn more_than_may_be_kept_leaves_by_age() {
        let mut list = list(&[512, 256, 256]);
        list.max_bytes = 512;
        assert_eq!(list.surplus().unwrap().size, 512);
        assert_eq!(list.surplus(), None);
        assert_eq!(list.oldest().unwrap().block, block(2));
        assert_eq!(list.bytes(), 256);
    }

    #[test]
    fn the_number_of_blocks_is_bounded_too() {
        let mut list = list(&vec![256; MAX_BLOCKS + 1]);
        assert_eq!(list.surplus().unwrap().block, block(1));
        assert_eq!(list.surplus(), None);
    }

    #[test]
    fn memory_freed_after_settling_is_not_settled() {
        let mut list = list(&[256]);
        list.settle();
        list.put(block(2), 512);
        assert!(list.take(256).unwrap().is_settled);
        assert!(!list.take(512).unwrap().is_settled);
    }
}
