//! The allocator over a fake device, and over the host's heap.

use std::{
    cell::Cell,
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::{
    NoRoom,
    allocator::{Allocator, User},
    backend::{ALIGNMENT, Backend, BackendStats, Block, BlockKind, OutOfMemory, Recorded},
    host::{HostBackend, HostOptions},
    sizes::block_size,
};
use crate::{
    device::{DeviceError, strided_copy::StridedCopy},
    units::Bytes,
};

/// The accounts of a fake device: sizes of its blocks by address, and the freed memory that it keeps.
#[derive(Debug, Default)]
struct Allocations {
    in_use: BTreeMap<usize, (BlockKind, usize)>,
    kept: usize,
    next: usize,
    copied: Vec<(Block, Block, StridedCopy)>,
    settled: u32,
    trims: u32,
}

impl Allocations {
    fn on_device(&self) -> usize {
        self.in_use.values().filter(|(kind, _)| *kind != BlockKind::Spill).map(|(_, bytes)| bytes).sum()
    }
}

/// A device with `capacity` bytes, which keeps freed memory until it is trimmed, as a memory pool of CUDA does.
#[derive(Clone)]
struct FakeDevice {
    allocations: Arc<Mutex<Allocations>>,
    capacity: usize,
}

impl FakeDevice {
    fn new(capacity: usize) -> Self {
        Self { allocations: Arc::default(), capacity }
    }

    fn allocations(&self) -> std::sync::MutexGuard<'_, Allocations> {
        self.allocations.lock().unwrap()
    }
}

impl Backend for FakeDevice {
    fn allocate(&mut self, kind: BlockKind, bytes: usize) -> Result<Block, OutOfMemory> {
        let mut allocations = self.allocations();
        // Blocks of other sizes are of no use to it, as if it were fragmented throughout.
        if kind != BlockKind::Spill && allocations.on_device() + allocations.kept + bytes > self.capacity {
            return Err(OutOfMemory("full".into()));
        }
        allocations.next += ALIGNMENT;
        let address = allocations.next;
        allocations.next += bytes;
        allocations.in_use.insert(address, (kind, bytes));
        Ok(Block(NonNull::without_provenance(address.try_into().unwrap())))
    }

    fn free(&mut self, kind: BlockKind, block: Block, bytes: usize) {
        let mut allocations = self.allocations();
        let known = allocations.in_use.remove(&block.0.as_ptr().addr());
        assert_eq!(known, Some((kind, bytes)), "freed once, with its kind and size");
        allocations.kept += if kind == BlockKind::Spill { 0 } else { bytes };
    }

    fn copy_rows(&mut self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DeviceError> {
        self.allocations().copied.push((from, to, rows));
        Ok(())
    }

    unsafe fn upload(&mut self, _: *const u8, _: Block, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    unsafe fn download(&mut self, _: Block, _: *mut u8, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Recorded, DeviceError> {
        Ok(Recorded(0))
    }

    fn trim(&mut self, keep: usize) {
        let mut allocations = self.allocations();
        allocations.trims += 1;
        let scratch: usize = allocations
            .in_use
            .values()
            .filter(|(kind, _)| *kind == BlockKind::Scratch)
            .map(|(_, bytes)| bytes)
            .sum();
        allocations.kept = allocations.kept.min(keep.saturating_sub(scratch));
    }

    fn held(&self) -> BackendStats {
        let allocations = self.allocations();
        BackendStats { reserved: allocations.on_device() + allocations.kept, ..BackendStats::default() }
    }

    fn reset_peak(&mut self) {}

    fn settle(&mut self) {
        self.allocations().settled += 1;
    }
}

fn pool(capacity: usize, limit: usize) -> (Allocator<FakeDevice>, FakeDevice) {
    let device = FakeDevice::new(capacity);
    (Allocator::new(device.clone(), limit, usize::MAX), device)
}

fn weights(pool: &mut Allocator<impl Backend>, bytes: usize) -> Result<Block, NoRoom> {
    // Earlier spills belong to another request.
    pool.take_overrun();
    pool.begin_load();
    let reserved = pool.reserve(bytes);
    assert_eq!(pool.end_load().is_ok(), reserved.is_ok(), "the load reports the refusal");
    reserved
}

fn on_stream(pool: &mut Allocator<impl Backend>, bytes: usize) -> Block {
    pool.allocate(bytes, User::PoolStream).unwrap()
}

#[test]
fn a_freed_block_serves_the_next_request_of_its_size_and_the_device_is_not_asked() {
    let (mut pool, device) = pool(1 << 20, usize::MAX);
    let first = on_stream(&mut pool, 1000);
    pool.free(first);
    assert_eq!(on_stream(&mut pool, 900), first);
    assert_eq!(device.allocations().in_use.len(), 1);
    let stats = pool.stats();
    assert_eq!((stats.allocations, stats.reuses, stats.blocks), (2, 1, 1));
    assert_eq!((stats.requested, stats.scratch), (Bytes(900), Bytes(1024)));
    pool.free(first);
}

#[test]
fn under_a_limit_unused_blocks_make_room_and_only_as_many_as_it_takes() {
    let (mut pool, _) = pool(usize::MAX, 10 << 10);
    let blocks = [1 << 10, 2 << 10, 4 << 10].map(|bytes| on_stream(&mut pool, bytes));
    blocks.into_iter().for_each(|block| pool.free(block));
    let large = on_stream(&mut pool, 6 << 10);
    assert_eq!(pool.stats().cached, Bytes(4 << 10), "the two oldest went");
    assert_eq!(pool.take_overrun(), None);
    pool.free(large);
}

#[test]
fn a_block_that_does_not_fit_is_spilled_and_reported_once() {
    let (mut pool, device) = pool(usize::MAX, 4 << 10);
    let kept = on_stream(&mut pool, 3 << 10);
    let spilled = on_stream(&mut pool, 2 << 10);
    let stats = pool.stats();
    assert_eq!((stats.held, stats.spilled, stats.spills), (Bytes(3 << 10), Bytes(2 << 10), 1));
    let message = pool.take_overrun().unwrap().to_string();
    assert_eq!(
        message,
        "no room for 2.00 KiB: 3.00 KiB of 4.00 KiB in use; raise device.memory_limit_bytes, use a shorter prompt or \
         answer, a smaller engine.context_length or a smaller quantization"
    );
    assert_eq!(pool.take_overrun(), None);
    pool.free(spilled);
    assert_eq!(pool.stats().spilled, Bytes(0));
    assert_eq!(device.allocations().in_use.len(), 1, "it is not kept for the next request");
    pool.free(kept);
}

#[test]
fn a_device_without_room_is_drained_and_trimmed_before_anything_is_spilled() {
    let (mut pool, device) = pool(8 << 10, usize::MAX);
    let small: Vec<_> = (0..8).map(|_| on_stream(&mut pool, 1 << 10)).collect();
    small.into_iter().for_each(|block| pool.free(block));
    let large = on_stream(&mut pool, 8 << 10);
    assert_eq!(pool.take_overrun(), None);
    assert_eq!(device.allocations().trims, 1);
    let allocated = pool.allocate(1, User::PoolStream).map(|block| pool.free(block));
    assert!(allocated.is_ok());
    let message = pool.take_overrun().unwrap().to_string();
    assert!(message.contains("8.00 KiB in use, and the device has no more (full)"), "{message}");
    pool.free(large);
}

#[test]
fn weights_are_refused_and_never_spilled_or_kept() {
    let (mut pool, device) = pool(usize::MAX, 4 << 10);
    let first = weights(&mut pool, 4000).unwrap();
    assert_eq!(pool.stats().weights, Bytes(4000), "weights are not rounded");
    let refused = weights(&mut pool, 97).unwrap_err();
    assert_eq!((refused.held, refused.limit), (Bytes(4000), Some(Bytes(4 << 10))));
    assert_eq!((pool.take_overrun(), pool.stats().spills), (None, 0));
    pool.free(first);
    assert_eq!(device.allocations().in_use.len(), 0);
}

#[test]
fn a_reserve_in_a_run_is_scratch_and_is_reused_by_the_next_run() {
    let (mut pool, device) = pool(usize::MAX, 4 << 10);
    for _ in 0..3 {
        let workspace = pool.reserve(2000).unwrap();
        assert_eq!((pool.stats().weights, pool.stats().scratch), (Bytes(0), Bytes(2 << 10)));
        pool.free(workspace);
    }
    assert_eq!(device.allocations().in_use.len(), 1);
    let spilled = pool.reserve(5000).unwrap();
    assert!(pool.take_overrun().is_some());
    pool.free(spilled);
    pool.trim(0);
}

#[test]
fn a_load_that_spills_is_reported() {
    let (mut pool, _) = pool(usize::MAX, 1 << 10);
    pool.begin_load();
    let spilled = on_stream(&mut pool, 2 << 10);
    assert!(pool.end_load().is_err());
    assert_eq!(pool.take_overrun(), None, "and no run is blamed for it");
    pool.free(spilled);
}

#[test]
fn a_request_that_no_memory_can_hold_is_an_error_and_not_an_overflow() {
    let (mut pool, _) = pool(usize::MAX, usize::MAX);
    for requested in [usize::MAX, isize::MAX as usize] {
        assert!(pool.allocate(requested, User::PoolStream).is_err());
        assert!(pool.try_allocate(requested, User::PoolStream).is_err());
    }
    assert_eq!(pool.stats().in_use(), Bytes(0));
}

#[test]
fn blocks_for_anybody_are_at_rest_and_those_for_the_own_stream_never_wait() {
    let (mut pool, device) = pool(usize::MAX, usize::MAX);
    let blocks = [256, 512, 1024].map(|bytes| on_stream(&mut pool, bytes));
    blocks.into_iter().for_each(|block| pool.free(block));
    let own = on_stream(&mut pool, 1024);
    assert_eq!(device.allocations().settled, 0);
    // One wait settles all that was free then.
    let others = [256, 512].map(|bytes| pool.allocate(bytes, User::AnyStream).unwrap());
    assert_eq!(device.allocations().settled, 1);
    pool.free(others[0]);
    let again = pool.allocate(256, User::AnyStream).unwrap();
    assert_eq!(device.allocations().settled, 2, "freed since");
    [own, others[1], again].into_iter().for_each(|block| pool.free(block));
}

#[test]
fn a_trim_keeps_the_requested_size_and_resets_peaks() {
    let (mut pool, device) = pool(usize::MAX, usize::MAX);
    let weights = weights(&mut pool, 1 << 10).unwrap();
    let blocks: Vec<_> = (0..4).map(|_| on_stream(&mut pool, 1 << 10)).collect();
    blocks.into_iter().for_each(|block| pool.free(block));
    pool.trim(3 << 10);
    let stats = pool.stats();
    assert_eq!((stats.held, stats.cached), (Bytes(3 << 10), Bytes(2 << 10)));
    assert_eq!(stats.reserved, stats.held, "the device has the rest");
    assert_eq!((stats.held_peak, stats.in_use_peak), (Bytes(5 << 10), Bytes(5 << 10)));
    pool.reset_peaks();
    let stats = pool.stats();
    assert_eq!((stats.held_peak, stats.in_use_peak), (Bytes(3 << 10), Bytes(1 << 10)));
    pool.trim(0);
    assert_eq!(pool.stats().held, Bytes(1 << 10), "what is in use stays");
    pool.free(weights);
    assert!(device.allocations().in_use.is_empty());
}

#[test]
fn freeing_a_block_that_is_not_out_changes_nothing() {
    let (mut pool, _) = pool(usize::MAX, usize::MAX);
    let block = on_stream(&mut pool, 100);
    pool.free(block);
    pool.free(block);
    assert_eq!(pool.stats().cached, Bytes(256), "freed once");
}

#[test]
fn more_than_may_be_cached_goes_back_at_once() {
    let device = FakeDevice::new(usize::MAX);
    let mut pool = Allocator::new(device.clone(), usize::MAX, 1 << 10);
    let blocks: Vec<_> = (0..4).map(|_| on_stream(&mut pool, 512)).collect();
    blocks.into_iter().for_each(|block| pool.free(block));
    assert_eq!(pool.stats().cached, Bytes(1 << 10));
    assert_eq!(device.allocations().in_use.len(), 2);
    pool.trim(0);
}

#[test]
fn a_capture_ends_only_when_its_scratch_is_kept_or_returned() {
    let (mut pool, _) = pool(usize::MAX, usize::MAX);
    // A run, and the same run again from its freed blocks.
    for _ in 0..2 {
        let scratch = [4 << 10, 1 << 10].map(|bytes| on_stream(&mut pool, bytes));
        scratch.into_iter().for_each(|block| pool.free(block));
    }
    let captured = pool.epoch();
    assert!(pool.needs_trim(4 << 10) && !pool.needs_trim(5 << 10));
    pool.trim(5 << 10);
    let again = on_stream(&mut pool, 1 << 10);
    pool.free(again);
    assert_eq!(pool.epoch(), captured, "the blocks are still scratch");

    let kept = pool.try_allocate_kept(1 << 10).unwrap();
    assert_ne!(pool.epoch(), captured, "one of them is a cache now");
    pool.free(kept);
    let captured = pool.epoch();
    let loaded = weights(&mut pool, 1 << 10).unwrap();
    assert_ne!(pool.epoch(), captured, "a kernel may keep what it is given at load");
    let captured = pool.epoch();
    pool.trim(0);
    assert_ne!(pool.epoch(), captured, "they are the device's");
    pool.begin_load();
    assert!(pool.end_load().is_ok());
    let lasting = pool.try_allocate_lasting(600).unwrap();
    assert_eq!(pool.stats().weights, Bytes((1 << 10) + 768), "weights, and what lasts as long");
    pool.free(lasting);
    pool.free(loaded);
}

#[test]
fn while_work_is_recorded_the_device_is_neither_asked_for_memory_nor_given_any() {
    let device = FakeDevice::new(usize::MAX);
    // It keeps one block of 4 KiB and no more.
    let mut pool = Allocator::new(device.clone(), usize::MAX, 4 << 10);
    let rehearsed = on_stream(&mut pool, 4 << 10);
    let other = on_stream(&mut pool, 2 << 10);
    pool.free(rehearsed);
    pool.begin_capture().unwrap();
    assert_eq!(on_stream(&mut pool, 4 << 10), rehearsed);
    let missed = on_stream(&mut pool, 8 << 10);
    let refused = pool.take_overrun().unwrap().to_string();
    assert!(refused.contains("a step is being captured"), "{refused}");
    assert_eq!(device.allocations().on_device(), 6 << 10);
    for block in [rehearsed, other, missed] {
        pool.free(block);
    }
    assert_eq!(device.allocations().on_device(), 6 << 10, "more is kept than may be");
    assert_eq!(device.allocations().in_use.len(), 3, "to free what was spilled is to wait for the device");
    pool.end_capture().unwrap();
    assert_eq!(device.allocations().in_use.len(), 2);
    let next = on_stream(&mut pool, 256);
    pool.free(next);
    assert!(device.allocations().on_device() <= 4 << 10);
}

#[test]
fn a_write_after_free_is_noticed_when_the_block_is_used_again_and_when_it_is_freed_for_good() {
    let options = HostOptions { is_checked: true, mapped_from: usize::MAX, ..HostOptions::default() };
    let mut pool = Allocator::new(HostBackend::new(options), usize::MAX, usize::MAX);
    for use_again in [true, false] {
        let block = on_stream(&mut pool, 1000);
        pool.free(block);
        // SAFETY: the block is 1000 bytes long.
        let inside = unsafe { block.0.add(500) };
        // SAFETY: the pool still has the memory; the test checks that the write is detected.
        unsafe { inside.write(7) };
        if use_again {
            let again = on_stream(&mut pool, 1000);
            pool.free(again);
        } else {
            pool.trim(0);
        }
    }
    assert_eq!(pool.stats().writes_after_free, 2);
}

#[derive(Clone, Debug)]
enum Operation {
    Allocate(usize),
    TryAllocate(usize),
    Reserve(usize),
    Free(usize),
    Trim(usize),
    ResetPeaks,
}

fn operation() -> impl Strategy<Value = Operation> {
    let size = prop_oneof![1usize..5000, 1usize..100_000];
    prop_oneof![
        6 => size.clone().prop_map(Operation::Allocate),
        1 => size.clone().prop_map(Operation::TryAllocate),
        1 => size.prop_map(Operation::Reserve),
        6 => any::<prop::sample::Index>().prop_map(|i| Operation::Free(i.index(1 << 20))),
        1 => (0usize..200_000).prop_map(Operation::Trim),
        1 => Just(Operation::ResetPeaks),
    ]
}

/// A model of the pool: the blocks in use, with the requested sizes.
struct Oracle {
    in_use: Vec<(Block, usize, BlockKind)>,
    limit: usize,
    in_use_peak: usize,
    held_peak: usize,
    spills: Cell<u64>,
}

impl Oracle {
    fn new(limit: usize) -> Self {
        Self { in_use: Vec::new(), limit, in_use_peak: 0, held_peak: 0, spills: Cell::new(0) }
    }

    /// Bytes of the blocks in use on the device, as the fake device counted them.
    fn on_device(&self, allocations: &Allocations) -> usize {
        let on_device = self.in_use.iter().filter(|(_, _, kind)| *kind != BlockKind::Spill);
        on_device.map(|(block, ..)| allocations.in_use[&block.0.as_ptr().addr()].1).sum()
    }

    /// Whether another block fits if all unused blocks are freed.
    fn has_room(&self, allocations: &Allocations, capacity: usize, size: usize) -> bool {
        self.on_device(allocations) + size <= self.limit.min(capacity)
    }

    fn check(&mut self, pool: &Allocator<FakeDevice>, device: &FakeDevice) -> Result<(), TestCaseError> {
        let (stats, allocations) = (pool.stats(), device.allocations());
        let spilled: usize = allocations
            .in_use
            .values()
            .filter(|(kind, _)| *kind == BlockKind::Spill)
            .map(|(_, bytes)| bytes)
            .sum();
        let requested: usize = self.in_use.iter().map(|(_, requested, _)| requested).sum();
        self.in_use_peak = self.in_use_peak.max(self.on_device(&allocations) + spilled);
        self.held_peak = self.held_peak.max(allocations.on_device());
        prop_assert_eq!(stats.requested, Bytes::from(requested));
        prop_assert_eq!(stats.weights + stats.scratch, Bytes::from(self.on_device(&allocations)));
        prop_assert_eq!(stats.spilled, Bytes::from(spilled));
        prop_assert_eq!(stats.held, stats.weights + stats.scratch + stats.cached);
        prop_assert_eq!(stats.held, Bytes::from(allocations.on_device()), "what the device gave is counted");
        prop_assert_eq!(stats.in_use_peak, Bytes::from(self.in_use_peak));
        prop_assert_eq!(stats.held_peak, Bytes::from(self.held_peak));
        prop_assert_eq!(stats.blocks, self.in_use.len());
        prop_assert_eq!(stats.spills, self.spills.get());
        prop_assert!(
            allocations.on_device() <= self.limit
                && allocations.on_device() + allocations.kept <= device.capacity
        );
        Ok(())
    }

    fn apply(
        &mut self,
        operation: &Operation,
        pool: &mut Allocator<FakeDevice>,
        device: &FakeDevice,
    ) -> Result<(), TestCaseError> {
        match *operation {
            Operation::Allocate(requested) => {
                let room =
                    self.has_room(&device.allocations(), device.capacity, block_size(requested).unwrap());
                let block = on_stream(pool, requested);
                prop_assert_eq!(
                    pool.take_overrun().is_none(),
                    room,
                    "spilled if there is no room, and only then"
                );
                self.spills.set(self.spills.get() + u64::from(!room));
                self.in_use.push((
                    block,
                    requested,
                    if room { BlockKind::Scratch } else { BlockKind::Spill },
                ));
            }
            Operation::TryAllocate(requested) => {
                let room =
                    self.has_room(&device.allocations(), device.capacity, block_size(requested).unwrap());
                let taken = pool.try_allocate(requested, User::AnyStream);
                prop_assert_eq!(taken.is_ok(), room);
                self.in_use.extend(taken.map(|block| (block, requested, BlockKind::Scratch)));
            }
            Operation::Reserve(requested) => {
                let room = self.has_room(&device.allocations(), device.capacity, requested);
                let taken = weights(pool, requested);
                prop_assert_eq!(taken.is_ok(), room);
                self.in_use.extend(taken.map(|block| (block, requested, BlockKind::Weights)));
            }
            Operation::Free(at) if !self.in_use.is_empty() => {
                pool.free(self.in_use.swap_remove(at % self.in_use.len()).0);
            }
            Operation::Free(_) => {}
            Operation::Trim(keep) => {
                pool.trim(keep);
                let held = usize::try_from(pool.stats().held.0).unwrap();
                prop_assert!(held <= keep.max(self.on_device(&device.allocations())));
            }
            Operation::ResetPeaks => {
                pool.reset_peaks();
                (self.in_use_peak, self.held_peak) = (0, 0);
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes hours")]
    fn statistics_match_a_list_of_blocks_after_any_operations(
        operations in prop::collection::vec(operation(), 1..200),
        limit in prop_oneof![Just(usize::MAX), 50_000usize..400_000],
        capacity in prop_oneof![Just(usize::MAX), 50_000usize..400_000],
    ) {
        let (mut pool, device) = pool(capacity, limit);
        let mut oracle = Oracle::new(limit);
        for operation in &operations {
            oracle.apply(operation, &mut pool, &device)?;
            oracle.check(&pool, &device)?;
        }
        for (block, ..) in oracle.in_use {
            pool.free(block);
        }
        prop_assert_eq!(pool.stats().in_use(), Bytes(0));
        pool.trim(0);
        prop_assert!(device.allocations().in_use.is_empty(), "every block is freed");
        prop_assert_eq!(device.allocations().kept, 0);
    }

    #[test]
    fn host_blocks_never_overlap_and_keep_their_content(
        operations in prop::collection::vec(operation(), 1..if cfg!(miri) { 20 } else { 100 }),
    ) {
        let mapped_from = if cfg!(miri) { usize::MAX } else { 32 << 10 };
        let options = HostOptions { capacity: 300_000, is_checked: true, mapped_from };
        let mut pool = Allocator::new(HostBackend::new(options), usize::MAX, 100_000);
        let mut in_use: Vec<(Block, usize, u8)> = Vec::new();
        for (mark, operation) in (0..=u8::MAX).cycle().zip(&operations) {
            let taken = match *operation {
                Operation::Allocate(requested) => Some((on_stream(&mut pool, requested), requested)),
                Operation::TryAllocate(requested) => pool.try_allocate(requested, User::AnyStream).ok().map(|block| (block, requested)),
                Operation::Reserve(requested) => weights(&mut pool, requested).ok().map(|block| (block, requested)),
                Operation::Free(at) if !in_use.is_empty() => {
                    let (block, requested, mark) = in_use.swap_remove(at % in_use.len());
                    // SAFETY: the block is in use, `requested` bytes long, and all were written.
                    let content = unsafe { std::slice::from_raw_parts(block.0.as_ptr(), requested) };
                    prop_assert!(content.iter().all(|byte| *byte == mark), "another block overlaps");
                    pool.free(block);
                    None
                }
                Operation::Trim(keep) => {
                    pool.trim(keep);
                    None
                }
                Operation::Free(_) | Operation::ResetPeaks => None,
            };
            if let Some((block, requested)) = taken {
                prop_assert!(block.0.as_ptr().addr().is_multiple_of(ALIGNMENT));
                // SAFETY: the block is in use and at least `requested` bytes long.
                unsafe { block.0.as_ptr().write_bytes(mark, requested) };
                in_use.push((block, requested, mark));
            }
        }
        in_use.into_iter().for_each(|(block, ..)| pool.free(block));
        prop_assert_eq!(pool.stats().writes_after_free, 0);
        pool.trim(0);
        prop_assert_eq!(pool.stats().reserved, Bytes(0));
    }
}
