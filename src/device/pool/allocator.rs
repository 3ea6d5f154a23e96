//! Hands out blocks and takes them back.
//!
//! ```text
//!            ┌── fits ──► free list ──────────────────────────────► block
//! request ───┤                                                        ▲
//!            └── miss ──► under the limit? ──yes──► backend ──ok──────┤
//!                            │ no: free the oldest     │ none left:   │
//!                            ▼     until it is         ▼ drain, trim, retry
//!                         still not ───────────────► still not ──► spill (scratch) or refuse (weights)
//! ```
//!
//! Scratch is never refused: ONNX Runtime passes a registered allocator's pointer to a kernel without a check, and a null
//! pointer there is a segmentation fault or a lost device. So a request that does not fit is served from the host's memory
//! and noted, and after the run the caller checks [`take_overrun`](Allocator::take_overrun) and fails the request. Weights
//! are refused: ONNX Runtime checks those pointers.
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

/// From where a block will be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// By work on the backend's own stream, which comes after all work that was submitted before.
    OwnStream,
    /// By anybody, at once.
    Anybody,
}

/// A block that is out.
#[derive(Clone, Copy, Debug)]
struct Live {
    kind: BlockKind,
    size: usize,
    asked: usize,
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
    /// A pool that holds at most `limit` bytes of the device's, of which at most `most_cached` unused.
    pub(super) fn new(backend: B, limit: usize, most_cached: usize) -> Self {
        Self {
            backend,
            limit,
            live: HashMap::new(),
            free: FreeList::new(most_cached),
            counts: Counters::default(),
            loads: 0,
            epoch: 0,
            is_capturing: false,
            deferred: Vec::new(),
            overrun: None,
            refusal: None,
        }
    }

    /// A block for a kernel: from the device, or else spilled and noted.
    ///
    /// # Errors
    /// [`NoRoom`] when not even the host has memory.
    pub(super) fn take(&mut self, asked: usize, user: User) -> Result<Block, NoRoom> {
        let refused = match self.try_take(asked, user) {
            Ok(block) => return Ok(block),
            Err(refused) => refused,
        };
        let size = block_size(asked).ok_or_else(|| refused.clone())?;
        let block = self.backend.allocate(BlockKind::Spill, size).map_err(|_| refused.clone())?;
        tracing::warn!("spilled to the host's memory: {refused}");
        self.overrun.get_or_insert(refused);
        Ok(self.hand_out(block, Live { kind: BlockKind::Spill, size, asked }))
    }

    /// A block of scratch for a caller that can do without it.
    ///
    /// # Errors
    /// [`NoRoom`] when the limit or the device does not allow it.
    pub(super) fn try_take(&mut self, asked: usize, user: User) -> Result<Block, NoRoom> {
        let size = block_size(asked).ok_or_else(|| self.no_room(asked, None))?;
        let (block, size, is_settled) = match self.free.take(size) {
            Some(free) => {
                self.counts.reuses += 1;
                self.check_untouched(free.block, free.size);
                (free.block, free.size, free.is_settled)
            }
            None => (self.obtain(BlockKind::Scratch, size)?, size, false),
        };
        if user == User::Anybody && !is_settled {
            self.backend.settle();
            self.free.settle();
        }
        Ok(self.hand_out(block, Live { kind: BlockKind::Scratch, size, asked }))
    }

    /// A block of scratch that is kept from one run to the next.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub(super) fn try_keep(&mut self, asked: usize) -> Result<Block, NoRoom> {
        self.epoch += 1;
        self.try_take(asked, User::Anybody)
    }

    /// A block that lives as long as a model, and is counted with its weights: among scratch it would keep its neighbours'
    /// memory from going back.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub(super) fn try_keep_for_good(&mut self, asked: usize) -> Result<Block, NoRoom> {
        let size = block_size(asked).ok_or_else(|| self.no_room(asked, None))?;
        let block = self.obtain(BlockKind::Weights, size)?;
        Ok(self.hand_out(block, Live { kind: BlockKind::Weights, size, asked }))
    }

    /// Changes when a block that runs used as scratch was handed out for keeping, or returned to the device. Runs captured
    /// before must not be replayed then, as they contain the addresses of their scratch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Starts recording work in place of running it. Until the end, blocks come only from the free list.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the device does not.
    pub(super) fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.backend.begin_capture()?;
        self.is_capturing = true;
        Ok(())
    }

    /// Ends [`begin_capture`](Self::begin_capture), and returns the number of the recording.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when it cannot be run again.
    pub(super) fn end_capture(&mut self) -> Result<Recorded, DeviceError> {
        self.is_capturing = false;
        let recorded = self.backend.end_capture();
        for (kind, block, size) in std::mem::take(&mut self.deferred) {
            self.backend.free(kind, block, size);
        }
        recorded
    }

    /// How many blocks are out.
    pub(super) fn blocks(&self) -> usize {
        self.live.len()
    }

    /// Notes that blocks that were scratch are kept.
    pub(super) fn note_kept(&mut self) {
        self.epoch += 1;
    }

    /// A block that ONNX Runtime reserves: for weights while a graph is loaded, for a kernel otherwise.
    ///
    /// # Errors
    /// [`NoRoom`] when weights do not fit; [`load_ends`](Self::load_ends) also reports it, as ONNX Runtime drops the reason.
    /// Or when even the host has no memory.
    pub(super) fn reserve(&mut self, asked: usize) -> Result<Block, NoRoom> {
        if self.loads == 0 {
            return self.take(asked, User::Anybody);
        }
        let obtained = self.obtain(BlockKind::Weights, asked);
        if let Err(refused) = &obtained {
            self.refusal.get_or_insert_with(|| refused.clone());
        }
        Ok(self.hand_out(obtained?, Live { kind: BlockKind::Weights, size: asked, asked }))
    }

    /// A graph is about to be loaded: reserves until [`load_ends`](Self::load_ends) are for weights.
    pub(super) fn load_begins(&mut self) {
        self.loads += 1;
        self.epoch += 1;
    }

    /// A load has ended, well or not.
    ///
    /// # Errors
    /// [`NoRoom`] when something that it asked for was refused or spilled.
    pub(super) fn load_ends(&mut self) -> Result<(), NoRoom> {
        self.loads -= 1;
        let refused = self.refusal.take();
        refused.or(self.take_overrun()).map_or(Ok(()), Err)
    }

    /// The size of a block that is out, which may be more than was asked for.
    pub(super) fn size(&self, block: Block) -> usize {
        self.live.get(&block).map_or(0, |live| live.size)
    }

    /// Copies rows from one block that is out to another, each from the given offset on, after all work that was submitted
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

    /// Copies `bytes` of the host's memory into a block that is out, after all work that was submitted before.
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
        // SAFETY: the block holds them (looked at above), the rest is the caller's promise.
        unsafe { self.backend.upload(from, to, bytes) }
    }

    /// Copies `bytes` of a block that is out into the host's memory, after all work that was submitted before.
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
        // SAFETY: the block holds them (looked at above), the rest is the caller's promise.
        unsafe { self.backend.download(from, to, bytes) }
    }

    fn check_room(&self, block: Block, needed: usize) -> Result<(), DeviceError> {
        let room = self.size(block);
        if needed > room {
            return Err(DeviceError::Shape { shape: vec![needed], needed, room });
        }
        Ok(())
    }

    /// Takes a block back. A block that is not out is only logged, as a double free would be worse.
    pub(super) fn give(&mut self, block: Block) {
        let Some(Live { kind, size, asked }) = self.live.remove(&block) else {
            tracing::error!("{block:?} was freed but is not out");
            return;
        };
        self.counts.take_back(kind, size, asked);
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

    /// Gives unused memory back to the device until at most `keep` bytes are held. Not while a graph runs: it may wait
    /// for the device.
    pub(super) fn trim(&mut self, keep: usize) {
        self.drain_to(keep.saturating_sub(self.counts.on_device()));
        self.backend.trim(keep.saturating_sub(self.counts.weights()));
    }

    /// Whether a block was spilled since the last time this was asked, and why.
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

    /// Whether [`trim`](Self::trim) to `keep` would give blocks back that runs use as scratch.
    pub(super) fn has_to_trim(&self, keep: usize) -> bool {
        self.free.bytes() > keep.saturating_sub(self.counts.on_device())
    }

    /// The most that may be held.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether no block is out.
    pub(super) fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Takes a new block from the device, and frees unused blocks if necessary.
    fn obtain(&mut self, kind: BlockKind, size: usize) -> Result<Block, NoRoom> {
        if self.is_capturing {
            let reason = "a step is being captured, whose memory must be there already";
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

    fn no_room(&self, asked: usize, reason: Option<OutOfMemory>) -> NoRoom {
        let limit = (self.limit != usize::MAX).then_some(self.limit);
        NoRoom {
            asked: asked.into(),
            held: self.counts.on_device().into(),
            limit: limit.map(Into::into),
            reason: reason.map(|OutOfMemory(reason)| reason),
        }
    }

    fn hand_out(&mut self, block: Block, live: Live) -> Block {
        self.counts.hand_out(live.kind, live.size, live.asked);
        self.counts.note_held(self.free.bytes());
        let before = self.live.insert(block, live);
        debug_assert!(before.is_none(), "the backend gave out {block:?} twice");
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
        debug_assert!(self.live.is_empty() || std::thread::panicking(), "blocks are out: {:?}", self.live);
    }
}
