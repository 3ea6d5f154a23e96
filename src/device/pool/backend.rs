//! The source of a pool's memory.

use std::ptr::NonNull;

use crate::device::{DeviceError, strided_copy::StridedCopy};

/// Alignment of every block: the largest that ONNX Runtime's kernels need.
pub(in crate::device) const ALIGNMENT: usize = 256;

/// The address of a block; on a GPU the host cannot read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Block(pub(super) NonNull<u8>);

// SAFETY: a block is an address, and having it gives no access. Only the backend that allocated it reads or writes through it;
// the allocator, behind its lock, decides who else may.
unsafe impl Send for Block {}

/// The purpose of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Lives as long as a session. In a separate pool, because such a block would keep the pages of its neighbours.
    Weights,
    /// Lives for a kernel or a request.
    Scratch,
    /// Host memory that the device can access, used when the device has no memory left. Slow, but never rejected.
    Spill,
}

/// A backend has no memory left, with its error message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutOfMemory(pub(super) String);

/// The number of a recording of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recorded(pub(super) u64);

/// The device's report about memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BackendStats {
    /// Device memory of the pools, in use or cached.
    pub(super) reserved: usize,
    /// Greatest `reserved` since [`Backend::reset_peak`].
    pub(super) reserved_peak: usize,
    /// Free on the device, for any program; 0 if unknown.
    pub(super) device_free: usize,
    /// Total memory of the device; 0 if unknown.
    pub(super) device_total: usize,
}

/// A source of memory. The allocator counts, so that a backend stays small.
///
/// One stream orders the use of blocks. A block that is freed and allocated again may still be read by earlier work. Work that is
/// submitted to the same stream later may use it immediately, other work only after [`settle`](Self::settle).
pub(super) trait Backend: Send {
    /// A block of `bytes` (at least 1), at a multiple of [`ALIGNMENT`].
    fn allocate(&mut self, kind: BlockKind, bytes: usize) -> Result<Block, OutOfMemory>;

    /// Frees a block of [`allocate`](Self::allocate), with the same kind and size.
    fn free(&mut self, kind: BlockKind, block: Block, bytes: usize);

    /// Returns freed scratch memory to the device, until it holds at most `keep` bytes of it.
    fn trim(&mut self, keep: usize);

    /// Copies rows from one block to another, after all work that was submitted before. Both must hold them: the
    /// allocator has checked.
    fn copy_rows(&mut self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DeviceError>;

    /// Copies `bytes` of the host's memory into a block, after all work that was submitted before.
    ///
    /// # Safety
    /// `from` must be valid for reads of `bytes`, which must not change until [`wait`](Self::wait) has returned; the block
    /// must have as many.
    unsafe fn upload(&mut self, from: *const u8, to: Block, bytes: usize) -> Result<(), DeviceError>;

    /// Copies `bytes` of a block into the host's memory, after all work that was submitted before.
    ///
    /// # Safety
    /// `to` must be valid for writes of `bytes`, which must not be accessed until [`wait`](Self::wait) has returned; the
    /// block must have as many.
    unsafe fn download(&mut self, from: Block, to: *mut u8, bytes: usize) -> Result<(), DeviceError>;

    /// Waits until all work that was submitted is done.
    fn wait(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Starts recording work instead of running it, until [`end_capture`](Self::end_capture).
    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        let message = "only a GPU's work can be".into();
        Err(DeviceError::Runtime { what: "work cannot be captured", message })
    }

    /// Ends [`begin_capture`](Self::begin_capture), and returns the number of the recording.
    fn end_capture(&mut self) -> Result<Recorded, DeviceError> {
        self.begin_capture().map(|()| Recorded(0))
    }

    /// Replays a recording, after all work that was submitted before.
    fn replay(&mut self, recorded: Recorded) -> Result<(), DeviceError> {
        let _ = recorded;
        self.begin_capture()
    }

    /// Releases a recording, which must not be running.
    fn forget(&mut self, recorded: Recorded) {
        let _ = recorded;
    }

    /// Pins memory of the host, so that copies of it are fast and asynchronous; `false` if that makes no difference or is
    /// not possible.
    fn pin(&mut self, first: NonNull<u8>, bytes: usize) -> bool {
        let _ = (first, bytes);
        false
    }

    /// Ends what [`pin`](Self::pin) began.
    fn unpin(&mut self, first: NonNull<u8>) {
        let _ = first;
    }

    /// The device's report about memory.
    fn held(&self) -> BackendStats;

    /// Starts a new peak of `reserved` at the present figure.
    fn reset_peak(&mut self);

    /// Waits until all work is done, so that free blocks may be used from any stream.
    fn settle(&mut self) {}

    /// The stream that orders its blocks, as the device's handle; `None` for a device without streams.
    fn stream(&self) -> Option<NonNull<()>> {
        None
    }

    /// Marks a block that must not be accessed any more, if it can be marked.
    fn mark_free(&mut self, block: Block, bytes: usize) {
        let _ = (block, bytes);
    }

    /// Whether a marked block is unchanged; `true` if unknown.
    fn is_untouched(&self, block: Block, bytes: usize) -> bool {
        let _ = (block, bytes);
        true
    }
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn allocate(&mut self, kind: BlockKind, bytes: usize) -> Result<Block, OutOfMemory> {
        (**self).allocate(kind, bytes)
    }

    fn free(&mut self, kind: BlockKind, block: Block, bytes: usize) {
        (**self).free(kind, block, bytes);
    }

    fn trim(&mut self, keep: usize) {
        (**self).trim(keep);
    }

    fn copy_rows(&mut self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DeviceError> {
        (**self).copy_rows(from, to, rows)
    }

    unsafe fn upload(&mut self, from: *const u8, to: Block, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller promises the same.
        unsafe { (**self).upload(from, to, bytes) }
    }

    unsafe fn download(&mut self, from: Block, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as in `upload`.
        unsafe { (**self).download(from, to, bytes) }
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        (**self).wait()
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        (**self).begin_capture()
    }

    fn end_capture(&mut self) -> Result<Recorded, DeviceError> {
        (**self).end_capture()
    }

    fn replay(&mut self, recorded: Recorded) -> Result<(), DeviceError> {
        (**self).replay(recorded)
    }

    fn forget(&mut self, recorded: Recorded) {
        (**self).forget(recorded);
    }

    fn pin(&mut self, first: NonNull<u8>, bytes: usize) -> bool {
        (**self).pin(first, bytes)
    }

    fn unpin(&mut self, first: NonNull<u8>) {
        (**self).unpin(first);
    }

    fn held(&self) -> BackendStats {
        (**self).held()
    }

    fn reset_peak(&mut self) {
        (**self).reset_peak();
    }

    fn settle(&mut self) {
        (**self).settle();
    }

    fn stream(&self) -> Option<NonNull<()>> {
        (**self).stream()
    }

    fn mark_free(&mut self, block: Block, bytes: usize) {
        (**self).mark_free(block, bytes);
    }

    fn is_untouched(&self, block: Block, bytes: usize) -> bool {
        (**self).is_untouched(block, bytes)
    }
}
