//! Allocates and frees blocks.
//!
//! ```text
//!            ┌── fits ──► free list ──────────────────────────────► block
//! request ───┤                                                        ▲
//!            └── miss ──► under the limit? ──yes──► backend ──ok──────┤
//!                            │ no: free the oldest     │ none left:   │
//!                            ▼     until it is         ▼ drain, trim, retry
//!                         still not ───────────────► still not ──► spill (scratch) or reject (weights)
//! ```
//!
//! A request for scratch memory is never rejected: ONNX Runtime passes a registered allocator's pointer to a kernel without a
//! check, and a null pointer there is a segmentation fault or a lost device. So a request that does not fit is served from host
//! memory (a *spill*). After the run the caller checks [`take_overrun`](Allocator::take_overrun) and fails the run. A request for
//! weights can be rejected: ONNX Runtime checks those pointers.
//!
//! A *reserve* of ONNX Runtime is for weights only while a graph is loaded. Some kernels reserve their workspace in every
//! run (`MatMulNBits` does, a hundred times per token), and that is scratch like any other.

use std::{collections::HashMap, ptr::NonNull};

use super::{
    NoRoom, PoolStats,
    backend::{Backend, Block, BlockKind, OutOfMemory, Recorded},
    free_list::FreeList,
    sizes::block_size,
    stats::Counters,
};
use crate::device::{DeviceError, strided_copy::StridedCopy};

/// Which work will use a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// Work on the pool's stream, which runs after all work that was submitted before.
    PoolStream,
    /// Any work, immediately.
    AnyStream,
}

/// A block in use.
#[derive(Clone, Copy, Debug)]
struct Live {
    kind: BlockKind,
    size: usize,
    requested: usize,
}

/// The logic of a pool over any source of memory.
pub(super) struct Allocator<B> {
    backend: B,
    limit: usize,
    live: HashMap<Block, Live>,
    free: FreeList,
    counts: Counters,
    loads: usize,
    epoch: u64,
    is_capturing: bool,
    /// Blocks other than scratch that were returned during a capture: freeing them may wait for the device.
    deferred: Vec<(BlockKind, Block, usize)>,
    overrun: Option<NoRoom>,
    refusal: Option<NoRoom>,
}

impl<B: Backend> Allocator<B> {
    /// A pool of at most `limit` bytes of device memory, of which at most `max_cached` are unused.
    pub(super) fn new(backend: B, limit: usize, max_cached: usize) -> Self {
        Self {
            backend,
            limit,
            live: HashMap::new(),
            free: FreeList::new(max_cached),
            counts: Counters::default(),
            loads: 0,
            epoch: 0,
            is_capturing: false,
            deferred: Vec::new(),
            overrun: None,
            refusal: None,
        }
    }

    /// A scratch block for a kernel: from the device, or else spilled to host memory, which [`take_overrun`](Self::take_overrun)
    /// reports.
    ///
    /// # Errors
    /// [`NoRoom`] when not even the host has memory.
    pub(super) fn allocate(&mut self, requested: usize, user: User) -> Result<Block, NoRoom> {
        let refused = match self.try_allocate(requested, user) {
            Ok(block) => return Ok(block),
            Err(refused) => refused,
        };
        let size = block_size(requested).ok_or_else(|| refused.clone())?;
        let block = self.backend.allocate(BlockKind::Spill, size).map_err(|_| refused.clone())?;
        tracing::warn!("spilled to the host's memory: {refused}");
        self.overrun.get_or_insert(refused);
        Ok(self.track(block, Live { kind: BlockKind::Spill, size, requested }))
    }

    /// A scratch block without a spill.
    ///
    /// # Errors
    /// [`NoRoom`] when the limit or the device does not allow it.
    pub(super) fn try_allocate(&mut self, requested: usize, user: User) -> Result<Block, NoRoom> {
        let size = block_size(requested).ok_or_else(|| self.no_room(requested, None))?;
        let (block, size, is_settled) = match self.free.take(size) {
            Some(free) => {
                self.counts.reuses += 1;
                self.check_untouched(free.block, free.size);
                (free.block, free.size, free.is_settled)
            }
            None => (self.allocate_on_device(BlockKind::Scratch, size)?, size, false),
        };
        if user == User::AnyStream && !is_settled {
            self.backend.settle();
            self.free.settle();
        }
        Ok(self.track(block, Live { kind: BlockKind::Scratch, size, requested }))
    }

    /// A block that is kept from one run to the next, such as a key-value cache.
    ///
    /// # Errors
    /// As [`try_allocate`](Self::try_allocate).
    pub(super) fn try_allocate_kept(&mut self, requested: usize) -> Result<Block, NoRoom> {
        self.epoch += 1;
        self.try_allocate(requested, User::AnyStream)
    }

    /// A block that lives as long as a model, and is counted with its weights. Among scratch blocks it would prevent that the
    /// memory around it is returned to the device.
    ///
    /// # Errors
    /// As [`try_allocate`](Self::try_allocate).
    pub(super) fn try_allocate_lasting(&mut self, requested: usize) -> Result<Block, NoRoom> {
        let size = block_size(requested).ok_or_else(|| self.no_room(requested, None))?;
        let block = self.allocate_on_device(BlockKind::Weights, size)?;
        Ok(self.track(block, Live { kind: BlockKind::Weights, size, requested }))
    }

    /// Changes when a block that was scratch memory of runs gets another purpose or is returned to the device. Runs that were
    /// captured before must not be replayed then, because they contain the addresses of their scratch memory.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Starts recording work instead of running it. Until the end, blocks come only from the free list.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the device cannot record.
    pub(super) fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.backend.begin_capture()?;
        self.is_capturing = true;
        Ok(())
    }

    /// Ends [`begin_capture`](Self::begin_capture), and returns the number of the recording.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the recording cannot be replayed.
    pub(super) fn end_capture(&mut self) -> Result<Recorded, DeviceError> {
        self.is_capturing = false;
        let recorded = self.backend.end_capture();
        for (kind, block, size) in std::mem::take(&mut self.deferred) {
            self.backend.free(kind, block, size);
        }
        recorded
    }

    /// Number of blocks in use.
    pub(super) fn blocks(&self) -> usize {
        self.live.len()
    }

    /// Notes that a run keeps some of its scratch blocks.
    pub(super) fn note_kept(&mut self) {
        self.epoch += 1;
    }

    /// A block that ONNX Runtime reserves: for weights while a graph is being loaded, for a kernel otherwise.
    ///
    /// # Errors
    /// [`NoRoom`] when weights do not fit; [`end_load`](Self::end_load) also reports it, as ONNX Runtime drops the reason.
    /// Or when even the host has no memory.
    pub(super) fn reserve(&mut self, requested: usize) -> Result<Block, NoRoom> {
        if self.loads == 0 {
            return self.allocate(requested, User::AnyStream);
        }
        let allocated = self.allocate_on_device(BlockKind::Weights, requested);
        if let Err(refused) = &allocated {
            self.refusal.get_or_insert_with(|| refused.clone());
        }
        Ok(self.track(allocated?, Live { kind: BlockKind::Weights, size: requested, requested }))
    }

    /// Must be called before a graph is loaded: what is reserved until [`end_load`](Self::end_load) is for weights.
    pub(super) fn begin_load(&mut self) {
        self.loads += 1;
        self.epoch += 1;
    }

    /// Must be called after a load, also a failed one.
    ///
    /// # Errors
    /// [`NoRoom`] when a request of the load was rejected or spilled.
    pub(super) fn end_load(&mut self) -> Result<(), NoRoom> {
        self.loads -= 1;
        let refused = self.refusal.take();
        refused.or(self.take_overrun()).map_or(Ok(()), Err)
    }

    /// The size of a block in use, which may be more than was requested.
    pub(super) fn size(&self, block: Block) -> usize {
        self.live.get(&block).map_or(0, |live| live.size)
    }

    /// Copies rows from one block in use to another, each from the given offset on, after all work that was submitted
    /// before.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when they do not fit into the blocks; [`DeviceError::Runtime`] when the device fails.
    pub(super) fn copy_rows(
        &mut self,
        from: (Block, usize),
        to: (Block, usize),
        rows: StridedCopy,
    ) -> Result<(), DeviceError> {
        let (min, max) = rows.spans().unwrap_or((usize::MAX, usize::MAX));
        self.check_room(from.0, min.saturating_add(from.1))?;
        self.check_room(to.0, max.saturating_add(to.1))?;
        // Within the blocks, so far from null.
        let place = |(Block(first), at): (Block, usize)| {
            NonNull::new(first.as_ptr().wrapping_add(at)).map_or(Block(first), Block)
        };
        self.backend.copy_rows(place(from), place(to), rows)
    }

    /// Copies `bytes` of the host's memory into a block in use, after all work that was submitted before.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when the block is smaller; [`DeviceError::Runtime`] when the device fails.
    ///
    /// # Safety
    /// As for [`Backend::upload`], but for the block's size.
    pub(super) unsafe fn upload(
        &mut self,
        from: *const u8,
        to: Block,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.check_room(to, bytes)?;
        // SAFETY: the block holds them (checked above), the rest is the caller's promise.
        unsafe { self.backend.upload(from, to, bytes) }
    }

    /// Copies `bytes` of a block in use into the host's memory, after all work that was submitted before.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    ///
    /// # Safety
    /// As for [`Backend::download`], but for the block's size.
    pub(super) unsafe fn download(
        &mut self,
        from: Block,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.check_room(from, bytes)?;
        // SAFETY: the block holds them (checked above), the rest is the caller's promise.
        unsafe { self.backend.download(from, to, bytes) }
    }

    fn check_room(&self, block: Block, needed: usize) -> Result<(), DeviceError> {
        let room = self.size(block);
        if needed > room {
            return Err(DeviceError::Shape { shape: vec![needed], needed, room });
        }
        Ok(())
    }

    /// Frees a block. A block that is not in use is only logged, because a double free would be worse.
    pub(super) fn free(&mut self, block: Block) {
        let Some(Live { kind, size, requested }) = self.live.remove(&block) else {
            tracing::error!("{block:?} was freed but is not in use");
            return;
        };
        self.counts.note_free(kind, size, requested);
        if kind != BlockKind::Scratch {
            if self.is_capturing {
                self.deferred.push((kind, block, size));
            } else {
                self.backend.free(kind, block, size);
            }
            return;
        }
        self.backend.mark_free(block, size);
        self.free.put(block, size);
        // A free during a capture would be repeated at each replay.
        while !self.is_capturing
            && let Some(free) = self.free.surplus()
        {
            self.release(free.block, free.size);
        }
    }

    /// Returns unused memory to the device until the pool holds at most `keep` bytes. Must not be called while a graph runs, because
    /// it may wait for the device.
    pub(super) fn trim(&mut self, keep: usize) {
        self.drain_to(keep.saturating_sub(self.counts.on_device()));
        self.backend.trim(keep.saturating_sub(self.counts.weights()));
    }

    /// Why a block was spilled since the last call; `None` if none was.
    pub(super) fn take_overrun(&mut self) -> Option<NoRoom> {
        self.overrun.take()
    }

    pub(super) fn stats(&self) -> PoolStats {
        self.counts.stats(self.free.bytes(), self.live.len(), &self.backend)
    }

    pub(super) fn reset_peaks(&mut self) {
        self.counts.reset_peaks(self.free.bytes());
        self.backend.reset_peak();
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    pub(super) fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Whether [`trim`](Self::trim) to `keep` would return blocks that runs use as scratch memory.
    pub(super) fn needs_trim(&self, keep: usize) -> bool {
        self.free.bytes() > keep.saturating_sub(self.counts.on_device())
    }

    /// Maximum device memory of the pool, in bytes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether no block is in use.
    pub(super) fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Allocates a new block on the device, and frees unused blocks if necessary.
    fn allocate_on_device(&mut self, kind: BlockKind, size: usize) -> Result<Block, NoRoom> {
        if self.is_capturing {
            let reason = "a step is being captured, which needs its memory to be allocated before";
            return Err(self.no_room(size, Some(OutOfMemory(reason.into()))));
        }
        let room = self.limit.saturating_sub(self.counts.on_device());
        if size > room {
            return Err(self.no_room(size, None));
        }
        self.drain_to(room - size);
        if let Ok(block) = self.backend.allocate(kind, size) {
            return Ok(block);
        }
        self.drain_to(0);
        self.backend.trim(0);
        self.backend.allocate(kind, size).map_err(|reason| self.no_room(size, Some(reason)))
    }

    fn no_room(&self, requested: usize, reason: Option<OutOfMemory>) -> NoRoom {
        let limit = (self.limit != usize::MAX).then_some(self.limit);
        NoRoom {
            requested: requested.into(),
            held: self.counts.on_device().into(),
            limit: limit.map(Into::into),
            reason: reason.map(|OutOfMemory(reason)| reason),
        }
    }

    fn track(&mut self, block: Block, live: Live) -> Block {
        self.counts.note_allocation(live.kind, live.size, live.requested);
        self.counts.note_held(self.free.bytes());
        let before = self.live.insert(block, live);
        debug_assert!(before.is_none(), "the backend allocated {block:?} twice");
        block
    }

    /// Frees the oldest unused blocks until at most `max` bytes of them are left.
    fn drain_to(&mut self, max: usize) {
        while self.free.bytes() > max
            && let Some(free) = self.free.oldest()
        {
            self.release(free.block, free.size);
        }
    }

    fn release(&mut self, block: Block, size: usize) {
        self.epoch += 1;
        self.check_untouched(block, size);
        self.backend.free(BlockKind::Scratch, block, size);
    }

    fn check_untouched(&mut self, block: Block, size: usize) {
        if !self.backend.is_untouched(block, size) {
            tracing::error!("a block of {size} bytes was written to after it was freed");
            self.counts.writes_after_free += 1;
        }
    }
}

impl<B> Drop for Allocator<B> {
    fn drop(&mut self) {
        debug_assert!(
            self.live.is_empty() || std::thread::panicking(),
            "blocks are still in use: {:?}",
            self.live
        );
    }
}
