//! Host memory as a backend of a pool.
//!
//! Large blocks are mapped, so that freeing one returns its pages to the system immediately; small ones come from the heap. It
//! serves the CPU provider, and replaces a device in tests, where its capacity can be limited and writes to free blocks are
//! detected.

use std::{
    alloc::{self, Layout},
    collections::HashMap,
    ptr::NonNull,
};

use memmap2::{MmapMut, MmapOptions};

use super::backend::{ALIGNMENT, Backend, BackendStats, Block, BlockKind, OutOfMemory};
use crate::device::{DeviceError, strided_copy::StridedCopy};

/// Minimum size of mapped blocks. A mapping costs a system call and a page fault per page, so it must be rare or large. The C
/// library has the same threshold.
const MAPPED_FROM: usize = 128 << 10;

/// Fill pattern of free blocks: −1.6e13 as a float, and far out of bounds as an index.
const FREE: u8 = 0xD5;

/// Options of a [`HostBackend`].
#[derive(Clone, Copy, Debug)]
pub(super) struct HostOptions {
    /// Maximum number of bytes, without spilled blocks.
    pub(super) capacity: usize,
    /// Fill free blocks with a pattern and check that it does not change.
    pub(super) is_checked: bool,
    /// Minimum size of mapped blocks.
    pub(super) mapped_from: usize,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { capacity: usize::MAX, is_checked: cfg!(debug_assertions), mapped_from: MAPPED_FROM }
    }
}

/// Memory of the host as a backend.
#[derive(Debug)]
pub(super) struct HostBackend {
    options: HostOptions,
    mapped: HashMap<Block, MmapMut>,
    reserved: usize,
    reserved_peak: usize,
}

impl HostBackend {
    pub(super) fn new(options: HostOptions) -> Self {
        Self { options, mapped: HashMap::new(), reserved: 0, reserved_peak: 0 }
    }

    fn map(&mut self, bytes: usize) -> Result<Block, OutOfMemory> {
        let mut map =
            MmapOptions::new().len(bytes).map_anon().map_err(|e| OutOfMemory(format!("the host: {e}")))?;
        let first =
            NonNull::new(map.as_mut_ptr()).ok_or_else(|| OutOfMemory("the host: mapped at 0".into()))?;
        self.mapped.insert(Block(first), map);
        Ok(Block(first))
    }
}

fn layout(bytes: usize) -> Result<Layout, OutOfMemory> {
    Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|e| OutOfMemory(format!("{bytes} bytes: {e}")))
}

fn heap(bytes: usize) -> Result<Block, OutOfMemory> {
    // SAFETY: the layout's size is at least 1.
    let first = unsafe { alloc::alloc(layout(bytes)?) };
    NonNull::new(first).map(Block).ok_or_else(|| OutOfMemory(format!("the host's heap has no {bytes} bytes")))
}

impl Backend for HostBackend {
    fn allocate(&mut self, kind: BlockKind, bytes: usize) -> Result<Block, OutOfMemory> {
        let counted = if kind == BlockKind::Spill { 0 } else { bytes };
        if counted > self.options.capacity - self.reserved {
            return Err(OutOfMemory(format!(
                "{} of {} bytes are in use",
                self.reserved, self.options.capacity
            )));
        }
        let block = if bytes >= self.options.mapped_from { self.map(bytes)? } else { heap(bytes)? };
        self.reserved += counted;
        self.reserved_peak = self.reserved_peak.max(self.reserved);
        Ok(block)
    }

    fn free(&mut self, kind: BlockKind, block: Block, bytes: usize) {
        if kind != BlockKind::Spill {
            self.reserved -= bytes;
        }
        if self.mapped.remove(&block).is_some() {
            return;
        }
        let Ok(layout) = layout(bytes) else { return };
        // SAFETY: the allocator frees a block once and with the size it was allocated with; it is not one of those
        // mapped, so it came from `heap` with this very layout.
        unsafe { alloc::dealloc(block.0.as_ptr(), layout) };
    }

    fn trim(&mut self, _keep: usize) {
        // Mapped blocks are freed already; Miri has no heap to trim.
        if !cfg!(miri) {
            crate::device::process_memory::release_free_heap();
        }
    }

    fn copy_rows(&mut self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DeviceError> {
        // SAFETY: both blocks are in use and as long as the rows' spans, which the allocator has checked; their owner requested
        // the copy, and no run is active, because the caller is on the same thread.
        unsafe { rows.copy(from.0.as_ptr(), to.0.as_ptr()) };
        Ok(())
    }

    unsafe fn upload(&mut self, from: *const u8, to: Block, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller promises that both hold as many bytes; a block is memory of the pool only.
        unsafe { to.0.as_ptr().copy_from(from, bytes) };
        Ok(())
    }

    unsafe fn download(&mut self, from: Block, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as in `upload`.
        unsafe { from.0.as_ptr().copy_to(to, bytes) };
        Ok(())
    }

    fn held(&self) -> BackendStats {
        let Self { reserved, reserved_peak, .. } = *self;
        BackendStats { reserved, reserved_peak, ..BackendStats::default() }
    }

    fn reset_peak(&mut self) {
        self.reserved_peak = self.reserved;
    }

    fn mark_free(&mut self, block: Block, bytes: usize) {
        if self.options.is_checked {
            // SAFETY: the block is `bytes` long and was just returned, so nothing else accesses it.
            unsafe { block.0.as_ptr().write_bytes(FREE, bytes) };
        }
    }

    fn is_untouched(&self, block: Block, bytes: usize) -> bool {
        if !self.options.is_checked {
            return true;
        }
        // SAFETY: the block is `bytes` long, all of them were written by `mark_free`, and it waits in the free list.
        let content = unsafe { std::slice::from_raw_parts(block.0.as_ptr(), bytes) };
        content.iter().all(|byte| *byte == FREE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(capacity: usize) -> HostBackend {
        // Miri does not support mappings.
        let mapped_from = if cfg!(miri) { usize::MAX } else { MAPPED_FROM };
        HostBackend::new(HostOptions { capacity, mapped_from, is_checked: true })
    }

    #[test]
    fn blocks_of_the_heap_and_of_mappings_are_aligned_and_can_be_written_to_their_end() {
        let mut backend = backend(usize::MAX);
        for bytes in [1, 255, 256, 4096, MAPPED_FROM - 1, MAPPED_FROM, MAPPED_FROM + 1] {
            for kind in [BlockKind::Weights, BlockKind::Scratch, BlockKind::Spill] {
                let block = backend.allocate(kind, bytes).unwrap();
                assert!(block.0.as_ptr().addr().is_multiple_of(ALIGNMENT));
                backend.mark_free(block, bytes);
                assert!(backend.is_untouched(block, bytes));
                // SAFETY: the block is `bytes` long.
                let last = unsafe { block.0.add(bytes - 1) };
                // SAFETY: as above, and the block has no other owner.
                unsafe { last.write(1) };
                assert!(!backend.is_untouched(block, bytes));
                backend.free(kind, block, bytes);
            }
        }
        assert_eq!(
            backend.held(),
            BackendStats { reserved_peak: MAPPED_FROM + 1, ..BackendStats::default() }
        );
    }

    #[test]
    fn a_capacity_limits_blocks_but_not_spills() {
        let mut backend = backend(1000);
        let first = backend.allocate(BlockKind::Scratch, 900).unwrap();
        let error = backend.allocate(BlockKind::Weights, 101).unwrap_err();
        assert_eq!(error, OutOfMemory("900 of 1000 bytes are in use".into()));
        let spilled = backend.allocate(BlockKind::Spill, 5000).unwrap();
        backend.free(BlockKind::Spill, spilled, 5000);
        backend.free(BlockKind::Scratch, first, 900);
        let all = backend.allocate(BlockKind::Weights, 1000).unwrap();
        backend.free(BlockKind::Weights, all, 1000);
    }
}
