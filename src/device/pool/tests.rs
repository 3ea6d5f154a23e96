//! The allocator over a device that is made up, and over the host's heap.

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
struct Books {
    out: BTreeMap<usize, (BlockKind, usize)>,
    kept: usize,
    next: usize,
    copied: Vec<(Block, Block, StridedCopy)>,
    settled: u32,
    trims: u32,
}

impl Books {
    fn on_device(&self) -> usize {
        self.out.values().filter(|(kind, _)| *kind != BlockKind::Spill).map(|(_, bytes)| bytes).sum()
    }
}

/// A device with `capacity` bytes, which keeps freed memory until it is trimmed, as a memory pool of CUDA does.
#[derive(Clone)]
struct MadeUp {
    books: Arc<Mutex<Books>>,
    capacity: usize,
}

impl MadeUp {
    fn new(capacity: usize) -> Self {
        Self { books: Arc::default(), capacity }
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

impl Backend for MadeUp {
    fn allocate(&mut self, kind: BlockKind, bytes: usize) -> Result<Block, OutOfMemory> {
        let mut books = self.books();
        // Blocks of other sizes are of no use to it, as if it were fragmented throughout.
        if kind != BlockKind::Spill && books.on_device() + books.kept + bytes > self.capacity {
            return Err(OutOfMemory("full".into()));
        }
        books.next += ALIGNMENT;
        let address = books.next;
        books.next += bytes;
        books.out.insert(address, (kind, bytes));
        Ok(Block(NonNull::without_provenance(address.try_into().unwrap())))
    }

    fn free(&mut self, kind: BlockKind, block: Block, bytes: usize) {
        let mut books = self.books();
        let known = books.out.remove(&block.0.as_ptr().addr());
        assert_eq!(known, Some((kind, bytes)), "freed as what it is, once");
        books.kept += if kind == BlockKind::Spill { 0 } else { bytes };
    }

    fn copy_rows(&mut self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DeviceError> {
        self.books().copied.push((from, to, rows));
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
        let mut books = self.books();
        books.trims += 1;
        let scratch: usize =
            books.out.values().filter(|(kind, _)| *kind == BlockKind::Scratch).map(|(_, bytes)| bytes).sum();
        books.kept = books.kept.min(keep.saturating_sub(scratch));
    }

    fn held(&self) -> BackendStats {
        let books = self.books();
        BackendStats { reserved: books.on_device() + books.kept, ..BackendStats::default() }
    }

    fn reset_peak(&mut self) {}

    fn settle(&mut self) {
        self.books().settled += 1;
    }
}

fn pool(capacity: usize, limit: usize) -> (Allocator<MadeUp>, MadeUp) {
    let device = MadeUp::new(capacity);
    (Allocator::new(device.clone(), limit, usize::MAX), device)
}

fn weights(pool: &mut Allocator<impl Backend>, bytes: usize) -> Result<Block, NoRoom> {
    // Earlier spills belong to another request.
    pool.take_overrun();
    pool.load_begins();
    let reserved = pool.reserve(bytes);
    assert_eq!(pool.load_ends().is_ok(), reserved.is_ok(), "whoever loads is told");
    reserved
}

fn on_stream(pool: &mut Allocator<impl Backend>, bytes: usize) -> Block {
    pool.take(bytes, User::OwnStream).unwrap()
}

#[test]
fn a_freed_block_serves_the_next_request_of_its_size_and_the_device_is_not_asked() {
    let (mut pool, device) = pool(1 << 20, usize::MAX);
    let first = on_stream(&mut pool, 1000);
    pool.give(first);
    assert_eq!(on_stream(&mut pool, 900), first);
    assert_eq!(device.books().out.len(), 1);
    let figures = pool.figures();
    assert_eq!((figures.allocations, figures.reuses, figures.blocks), (2, 1, 1));
    assert_eq!((figures.asked, figures.scratch), (Bytes(900), Bytes(1024)));
    pool.give(first);
}

#[test]
fn under_a_limit_unused_blocks_make_room_and_only_as_many_as_it_takes() {
    let (mut pool, _) = pool(usize::MAX, 10 << 10);
    let blocks = [1 << 10, 2 << 10, 4 << 10].map(|bytes| on_stream(&mut pool, bytes));
    blocks.into_iter().for_each(|block| pool.give(block));
    let large = on_stream(&mut pool, 6 << 10);
    assert_eq!(pool.figures().cached, Bytes(4 << 10), "the two oldest went");
    assert_eq!(pool.take_overrun(), None);
    pool.give(large);
}

#[test]
fn what_does_not_fit_is_spilled_said_once_and_leaves_no_trace() {
    let (mut pool, device) = pool(usize::MAX, 4 << 10);
    let kept = on_stream(&mut pool, 3 << 10);
    let spilled = on_stream(&mut pool, 2 << 10);
    let figures = pool.figures();
    assert_eq!((figures.held, figures.spilled, figures.spills), (Bytes(3 << 10), Bytes(2 << 10), 1));
    let said = pool.take_overrun().unwrap().to_string();
    assert_eq!(
        said,
        "no room for 2.00 KiB: 3.00 KiB of 4.00 KiB in use; raise device.memory_limit_bytes, use a shorter prompt or \
         answer, a smaller engine.context_length or a smaller quantization"
    );
    assert_eq!(pool.take_overrun(), None);
    pool.give(spilled);
    assert_eq!(pool.figures().spilled, Bytes(0));
    assert_eq!(device.books().out.len(), 1, "it is not kept for the next request");
    pool.give(kept);
}

#[test]
fn a_device_without_room_is_drained_and_trimmed_before_anything_is_spilled() {
    let (mut pool, device) = pool(8 << 10, usize::MAX);
    let small: Vec<_> = (0..8).map(|_| on_stream(&mut pool, 1 << 10)).collect();
    small.into_iter().for_each(|block| pool.give(block));
    let large = on_stream(&mut pool, 8 << 10);
    assert_eq!(pool.take_overrun(), None);
    assert_eq!(device.books().trims, 1);
    let said = pool.take(1, User::OwnStream).map(|block| pool.give(block));
    assert!(said.is_ok());
    let said = pool.take_overrun().unwrap().to_string();
    assert!(said.contains("8.00 KiB in use, and the device has no more (full)"), "{said}");
    pool.give(large);
}

#[test]
fn weights_are_refused_and_never_spilled_or_kept() {
    let (mut pool, device) = pool(usize::MAX, 4 << 10);
    let first = weights(&mut pool, 4000).unwrap();
    assert_eq!(pool.figures().weights, Bytes(4000), "weights are not rounded");
    let refused = weights(&mut pool, 97).unwrap_err();
    assert_eq!((refused.held, refused.limit), (Bytes(4000), Some(Bytes(4 << 10))));
    assert_eq!((pool.take_overrun(), pool.figures().spills), (None, 0));
    pool.give(first);
    assert_eq!(device.books().out.len(), 0);
}

#[test]
fn what_is_reserved_in_a_run_is_scratch_and_serves_the_next_run() {
    let (mut pool, device) = pool(usize::MAX, 4 << 10);
    for _ in 0..3 {
        let workspace = pool.reserve(2000).unwrap();
        assert_eq!((pool.figures().weights, pool.figures().scratch), (Bytes(0), Bytes(2 << 10)));
        pool.give(workspace);
    }
    assert_eq!(device.books().out.len(), 1);
    let spilled = pool.reserve(5000).unwrap();
    assert!(pool.take_overrun().is_some());
    pool.give(spilled);
    pool.trim(0);
}

#[test]
fn a_load_that_spills_is_told_as_well() {
    let (mut pool, _) = pool(usize::MAX, 1 << 10);
    pool.load_begins();
    let spilled = on_stream(&mut pool, 2 << 10);
    assert!(pool.load_ends().is_err());
    assert_eq!(pool.take_overrun(), None, "and no run is blamed for it");
    pool.give(spilled);
}

#[test]
fn a_request_that_no_memory_can_hold_is_an_error_and_not_an_overflow() {
    let (mut pool, _) = pool(usize::MAX, usize::MAX);
    for asked in [usize::MAX, isize::MAX as usize] {
        assert!(pool.take(asked, User::OwnStream).is_err());
        assert!(pool.try_take(asked, User::OwnStream).is_err());
    }
    assert_eq!(pool.figures().in_use(), Bytes(0));
}

#[test]
fn blocks_for_anybody_are_at_rest_and_those_for_the_own_stream_never_wait() {
    let (mut pool, device) = pool(usize::MAX, usize::MAX);
    let blocks = [256, 512, 1024].map(|bytes| on_stream(&mut pool, bytes));
    blocks.into_iter().for_each(|block| pool.give(block));
    let own = on_stream(&mut pool, 1024);
    assert_eq!(device.books().settled, 0);
    // One wait settles all that was free then.
    let others = [256, 512].map(|bytes| pool.take(bytes, User::Anybody).unwrap());
    assert_eq!(device.books().settled, 1);
    pool.give(others[0]);
    let again = pool.take(256, User::Anybody).unwrap();
    assert_eq!(device.books().settled, 2, "freed since");
    [own, others[1], again].into_iter().for_each(|block| pool.give(block));
}

#[test]
fn a_trim_keeps_what_it_is_told_and_peaks_start_anew() {
    let (mut pool, device) = pool(usize::MAX, usize::MAX);
    let weights = weights(&mut pool, 1 << 10).unwrap();
    let blocks: Vec<_> = (0..4).map(|_| on_stream(&mut pool, 1 << 10)).collect();
    blocks.into_iter().for_each(|block| pool.give(block));
    pool.trim(3 << 10);
    let figures = pool.figures();
    assert_eq!((figures.held, figures.cached), (Bytes(3 << 10), Bytes(2 << 10)));
    assert_eq!(figures.reserved, figures.held, "the device has the rest");
    assert_eq!((figures.held_peak, figures.in_use_peak), (Bytes(5 << 10), Bytes(5 << 10)));
    pool.reset_peaks();
    let figures = pool.figures();
    assert_eq!((figures.held_peak, figures.in_use_peak), (Bytes(3 << 10), Bytes(1 << 10)));
    pool.trim(0);
    assert_eq!(pool.figures().held, Bytes(1 << 10), "what is in use stays");
    pool.give(weights);
    assert!(device.books().out.is_empty());
}

#[test]
fn a_block_that_is_not_out_is_left_alone() {
    let (mut pool, _) = pool(usize::MAX, usize::MAX);
    let block = on_stream(&mut pool, 100);
    pool.give(block);
    pool.give(block);
    assert_eq!(pool.figures().cached, Bytes(256), "freed once");
}

#[test]
fn more_than_may_be_cached_goes_back_at_once() {
    let device = MadeUp::new(usize::MAX);
    let mut pool = Allocator::new(device.clone(), usize::MAX, 1 << 10);
    let blocks: Vec<_> = (0..4).map(|_| on_stream(&mut pool, 512)).collect();
    blocks.into_iter().for_each(|block| pool.give(block));
    assert_eq!(pool.figures().cached, Bytes(1 << 10));
    assert_eq!(device.books().out.len(), 2);
    pool.trim(0);
}

#[test]
fn what_was_captured_ends_when_its_scratch_is_kept_or_given_back_and_not_before() {
    let (mut pool, _) = pool(usize::MAX, usize::MAX);
    // A run, and the same run again from its freed blocks.
    for _ in 0..2 {
        let scratch = [4 << 10, 1 << 10].map(|bytes| on_stream(&mut pool, bytes));
        scratch.into_iter().for_each(|block| pool.give(block));
    }
    let captured = pool.epoch();
    assert!(pool.has_to_trim(4 << 10) && !pool.has_to_trim(5 << 10));
    pool.trim(5 << 10);
    let again = on_stream(&mut pool, 1 << 10);
    pool.give(again);
    assert_eq!(pool.epoch(), captured, "the blocks are still scratch");

    let kept = pool.try_keep(1 << 10).unwrap();
    assert_ne!(pool.epoch(), captured, "one of them is a cache now");
    pool.give(kept);
    let captured = pool.epoch();
    let loaded = weights(&mut pool, 1 << 10).unwrap();
    assert_ne!(pool.epoch(), captured, "a kernel may keep what it is given at load");
    let captured = pool.epoch();
    pool.trim(0);
    assert_ne!(pool.epoch(), captured, "they are the device's");
    pool.load_begins();
    assert!(pool.load_ends().is_ok());
    let lasting = pool.try_keep_for_good(600).unwrap();
    assert_eq!(pool.figures().weights, Bytes((1 << 10) + 768), "weights, and what lasts as long");
    pool.give(lasting);
    pool.give(loaded);
}

#[test]
fn while_work_is_recorded_the_device_is_neither_asked_for_memory_nor_given_any() {
    let device = MadeUp::new(usize::MAX);
    // It keeps one block of 4 KiB and no more.
    let mut pool = Allocator::new(device.clone(), usize::MAX, 4 << 10);
    let rehearsed = on_stream(&mut pool, 4 << 10);
    let other = on_stream(&mut pool, 2 << 10);
    pool.give(rehearsed);
    pool.begin_capture().unwrap();
    assert_eq!(on_stream(&mut pool, 4 << 10), rehearsed);
    let missed = on_stream(&mut pool, 8 << 10);
    let refused = pool.take_overrun().unwrap().to_string();
    assert!(refused.contains("a step is being captured"), "{refused}");
    assert_eq!(device.books().on_device(), 6 << 10);
    for block in [rehearsed, other, missed] {
        pool.give(block);
    }
    assert_eq!(device.books().on_device(), 6 << 10, "more is kept than may be");
    assert_eq!(device.books().out.len(), 3, "to free what was spilled is to wait for the device");
    pool.end_capture().unwrap();
    assert_eq!(device.books().out.len(), 2);
    let next = on_stream(&mut pool, 256);
    pool.give(next);
    assert!(device.books().on_device() <= 4 << 10);
}

#[test]
fn a_write_after_free_is_noticed_when_the_block_is_used_again_and_when_it_is_freed_for_good() {
    let options = HostOptions { is_checked: true, mapped_from: usize::MAX, ..HostOptions::default() };
    let mut pool = Allocator::new(HostBackend::new(options), usize::MAX, usize::MAX);
    for use_again in [true, false] {
        let block = on_stream(&mut pool, 1000);
        pool.give(block);
        // SAFETY: the block is 1000 bytes long.
        let inside = unsafe { block.0.add(500) };
        // SAFETY: the pool still has the memory; the test checks that the write is detected.
        unsafe { inside.write(7) };
        if use_again {
            let again = on_stream(&mut pool, 1000);
            pool.give(again);
        } else {
            pool.trim(0);
        }
    }
    assert_eq!(pool.figures().writes_after_free, 2);
}

#[derive(Clone, Debug)]
enum Act {
    Take(usize),
    TryTake(usize),
    Reserve(usize),
    Give(usize),
    Trim(usize),
    ResetPeaks,
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![1usize..5000, 1usize..100_000];
    prop_oneof![
        6 => size.clone().prop_map(Act::Take),
        1 => size.clone().prop_map(Act::TryTake),
        1 => size.prop_map(Act::Reserve),
        6 => any::<prop::sample::Index>().prop_map(|i| Act::Give(i.index(1 << 20))),
        1 => (0usize..200_000).prop_map(Act::Trim),
        1 => Just(Act::ResetPeaks),
    ]
}

/// What should be out, known from outside: a list of requests and of the blocks they got.
struct Oracle {
    out: Vec<(Block, usize, BlockKind)>,
    limit: usize,
    in_use_peak: usize,
    held_peak: usize,
    spills: Cell<u64>,
}

impl Oracle {
    fn new(limit: usize) -> Self {
        Self { out: Vec::new(), limit, in_use_peak: 0, held_peak: 0, spills: Cell::new(0) }
    }

    /// Bytes of blocks on the device that are out, by the device's own books.
    fn on_device(&self, books: &Books) -> usize {
        let on_device = self.out.iter().filter(|(_, _, kind)| *kind != BlockKind::Spill);
        on_device.map(|(block, ..)| books.out[&block.0.as_ptr().addr()].1).sum()
    }

    /// Whether there is room for one more block, if everything unused makes place.
    fn has_room(&self, books: &Books, capacity: usize, size: usize) -> bool {
        self.on_device(books) + size <= self.limit.min(capacity)
    }

    fn check(&mut self, pool: &Allocator<MadeUp>, device: &MadeUp) -> Result<(), TestCaseError> {
        let (figures, books) = (pool.figures(), device.books());
        let spilled: usize =
            books.out.values().filter(|(kind, _)| *kind == BlockKind::Spill).map(|(_, bytes)| bytes).sum();
        let asked: usize = self.out.iter().map(|(_, asked, _)| asked).sum();
        self.in_use_peak = self.in_use_peak.max(self.on_device(&books) + spilled);
        self.held_peak = self.held_peak.max(books.on_device());
        prop_assert_eq!(figures.asked, Bytes::from(asked));
        prop_assert_eq!(figures.weights + figures.scratch, Bytes::from(self.on_device(&books)));
        prop_assert_eq!(figures.spilled, Bytes::from(spilled));
        prop_assert_eq!(figures.held, figures.weights + figures.scratch + figures.cached);
        prop_assert_eq!(figures.held, Bytes::from(books.on_device()), "what the device gave is counted");
        prop_assert_eq!(figures.in_use_peak, Bytes::from(self.in_use_peak));
        prop_assert_eq!(figures.held_peak, Bytes::from(self.held_peak));
        prop_assert_eq!(figures.blocks, self.out.len());
        prop_assert_eq!(figures.spills, self.spills.get());
        prop_assert!(books.on_device() <= self.limit && books.on_device() + books.kept <= device.capacity);
        Ok(())
    }

    fn act(&mut self, act: &Act, pool: &mut Allocator<MadeUp>, device: &MadeUp) -> Result<(), TestCaseError> {
        match *act {
            Act::Take(asked) => {
                let room = self.has_room(&device.books(), device.capacity, block_size(asked).unwrap());
                let block = on_stream(pool, asked);
                prop_assert_eq!(
                    pool.take_overrun().is_none(),
                    room,
                    "spilled if there is no room, and only then"
                );
                self.spills.set(self.spills.get() + u64::from(!room));
                self.out.push((block, asked, if room { BlockKind::Scratch } else { BlockKind::Spill }));
            }
            Act::TryTake(asked) => {
                let room = self.has_room(&device.books(), device.capacity, block_size(asked).unwrap());
                let taken = pool.try_take(asked, User::Anybody);
                prop_assert_eq!(taken.is_ok(), room);
                self.out.extend(taken.map(|block| (block, asked, BlockKind::Scratch)));
            }
            Act::Reserve(asked) => {
                let room = self.has_room(&device.books(), device.capacity, asked);
                let taken = weights(pool, asked);
                prop_assert_eq!(taken.is_ok(), room);
                self.out.extend(taken.map(|block| (block, asked, BlockKind::Weights)));
            }
            Act::Give(at) if !self.out.is_empty() => {
                pool.give(self.out.swap_remove(at % self.out.len()).0);
            }
            Act::Give(_) => {}
            Act::Trim(keep) => {
                pool.trim(keep);
                let held = usize::try_from(pool.figures().held.0).unwrap();
                prop_assert!(held <= keep.max(self.on_device(&device.books())));
            }
            Act::ResetPeaks => {
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
    fn whatever_is_asked_in_whatever_order_the_books_are_those_of_a_list_of_blocks(
        acts in prop::collection::vec(act(), 1..200),
        limit in prop_oneof![Just(usize::MAX), 50_000usize..400_000],
        capacity in prop_oneof![Just(usize::MAX), 50_000usize..400_000],
    ) {
        let (mut pool, device) = pool(capacity, limit);
        let mut oracle = Oracle::new(limit);
        for act in &acts {
            oracle.act(act, &mut pool, &device)?;
            oracle.check(&pool, &device)?;
        }
        for (block, ..) in oracle.out {
            pool.give(block);
        }
        prop_assert_eq!(pool.figures().in_use(), Bytes(0));
        pool.trim(0);
        prop_assert!(device.books().out.is_empty(), "everything went back");
        prop_assert_eq!(device.books().kept, 0);
    }

    #[test]
    fn blocks_of_the_host_never_overlap_and_keep_what_is_written(
        acts in prop::collection::vec(act(), 1..if cfg!(miri) { 20 } else { 100 }),
    ) {
        let mapped_from = if cfg!(miri) { usize::MAX } else { 32 << 10 };
        let options = HostOptions { capacity: 300_000, is_checked: true, mapped_from };
        let mut pool = Allocator::new(HostBackend::new(options), usize::MAX, 100_000);
        let mut out: Vec<(Block, usize, u8)> = Vec::new();
        for (mark, act) in (0..=u8::MAX).cycle().zip(&acts) {
            let taken = match *act {
                Act::Take(asked) => Some((on_stream(&mut pool, asked), asked)),
                Act::TryTake(asked) => pool.try_take(asked, User::Anybody).ok().map(|block| (block, asked)),
                Act::Reserve(asked) => weights(&mut pool, asked).ok().map(|block| (block, asked)),
                Act::Give(at) if !out.is_empty() => {
                    let (block, asked, mark) = out.swap_remove(at % out.len());
                    // SAFETY: the block is out, `asked` bytes long, and all were written.
                    let content = unsafe { std::slice::from_raw_parts(block.0.as_ptr(), asked) };
                    prop_assert!(content.iter().all(|byte| *byte == mark), "somebody else wrote to it");
                    pool.give(block);
                    None
                }
                Act::Trim(keep) => {
                    pool.trim(keep);
                    None
                }
                Act::Give(_) | Act::ResetPeaks => None,
            };
            if let Some((block, asked)) = taken {
                prop_assert!(block.0.as_ptr().addr().is_multiple_of(ALIGNMENT));
                // SAFETY: the block is out and at least `asked` bytes long.
                unsafe { block.0.as_ptr().write_bytes(mark, asked) };
                out.push((block, asked, mark));
            }
        }
        out.into_iter().for_each(|(block, ..)| pool.give(block));
        prop_assert_eq!(pool.figures().writes_after_free, 0);
        pool.trim(0);
        prop_assert_eq!(pool.figures().reserved, Bytes(0));
    }
}
