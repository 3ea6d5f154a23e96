//! The pool that sessions and bindings share, and the blocks that they hold.

use std::{
    fmt,
    ptr::NonNull,
    sync::{Arc, MutexGuard},
    time::Instant,
};

use ort::memory::AllocationDevice;

use super::{
    CudaOptions, NoRoom, PoolStats,
    allocator::Allocator,
    backend::{Backend, Block, Recorded},
    cuda, host,
    ort_allocator::{AnyAllocator, Claim, Registration},
};
use crate::{
    device::{DeviceError, Runtime, strided_copy::StridedCopy},
    units::Bytes,
};

/// How a pool behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Maximum device memory of the pool, in use or cached; `None` means all of it.
    pub limit: Option<Bytes>,
    /// Maximum freed memory that is cached for the next request.
    pub max_cached: Bytes,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { limit: None, max_cached: Bytes(u64::MAX) }
    }
}

/// A GPU and the stream that all work on a pool's blocks is submitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuStream {
    /// The GPU's number, as the driver counts them.
    pub ordinal: u16,
    /// The stream, as ONNX Runtime's CUDA provider takes it for `user_compute_stream`.
    pub stream: NonNull<()>,
}

fn size(bytes: Bytes) -> usize {
    usize::try_from(bytes.0).unwrap_or(usize::MAX)
}

/// A pool that is registered with ONNX Runtime; clones are the same pool.
///
/// One per device. It serves the sessions that were opened with it, and no others.
#[derive(Clone)]
pub struct Pool {
    registration: Arc<Registration>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl Pool {
    /// A pool of the host's memory, for sessions of the CPU provider.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when ONNX Runtime rejects it, or the device already has a pool.
    pub fn on_host(runtime: &Runtime, options: PoolOptions) -> Result<Self, DeviceError> {
        let claim = Claim::new(AllocationDevice::CPU, 0)?;
        let backend = host::HostBackend::new(host::HostOptions::default());
        Self::register(runtime, claim, Box::new(backend), options)
    }

    /// A pool of a GPU's memory, ordered by the stream that [`gpu_stream`](Self::gpu_stream) then names.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the GPU does not exist, its driver has no memory pools, ONNX Runtime rejects the pool,
    /// or the GPU has one already.
    pub fn on_cuda(runtime: &Runtime, gpu: CudaOptions, options: PoolOptions) -> Result<Self, DeviceError> {
        let claim = Claim::new(AllocationDevice::CUDA, gpu.ordinal)?;
        let backend = cuda::CudaBackend::new(gpu)?;
        Self::register(runtime, claim, Box::new(backend), options)
    }

    fn register(
        runtime: &Runtime,
        claim: Claim,
        backend: Box<dyn Backend>,
        options: PoolOptions,
    ) -> Result<Self, DeviceError> {
        let limit = options.limit.map_or(usize::MAX, size);
        let allocator = Allocator::new(backend, limit, size(options.max_cached));
        let registration = Registration::new(runtime.environment().clone(), claim, allocator)?;
        Ok(Self { registration: Arc::new(registration) })
    }

    /// Current statistics.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.allocator().stats()
    }

    /// Resets the peaks to the current values.
    pub fn reset_peaks(&self) {
        self.allocator().reset_peaks();
    }

    /// Gives unused memory back to the device until at most `keep` is held. Not while a graph runs: it waits for the
    /// device to finish.
    pub fn trim(&self, keep: Bytes) {
        self.allocator().trim(size(keep));
    }

    /// Whether [`trim`](Self::trim) to `keep` would return temporary memory of runs, and so invalidate captured
    /// CUDA graphs.
    #[must_use]
    pub fn needs_trim(&self, keep: Bytes) -> bool {
        self.allocator().needs_trim(size(keep))
    }

    /// The memory's bandwidth: bytes read and written per second by `copies` copies of `bytes`, after one that is not counted.
    ///
    /// # Errors
    /// [`DeviceError::NoRoom`] without room for two blocks of `bytes`; [`DeviceError::Runtime`] when the device fails.
    pub fn bandwidth(&self, bytes: Bytes, copies: u32) -> Result<f64, DeviceError> {
        let (from, to) = (self.buffer(bytes)?, self.buffer(bytes)?);
        let one = StridedCopy { count: 1, bytes: size(bytes), from: size(bytes), to: size(bytes) };
        to.copy_rows(0, &from, 0, one)?;
        self.wait()?;
        let began = Instant::now();
        for _ in 0..copies {
            to.copy_rows(0, &from, 0, one)?;
        }
        self.wait()?;
        #[expect(clippy::cast_precision_loss, reason = "sizes of memory are far below 2^52")]
        let moved = bytes.0 as f64 * 2.0 * f64::from(copies);
        Ok(moved / began.elapsed().as_secs_f64())
    }

    /// Memory that is not part of a session's graph, such as a key-value cache.
    ///
    /// # Errors
    /// [`DeviceError::NoRoom`] when the limit or the device does not allow it; nothing is spilled.
    pub fn buffer(&self, bytes: Bytes) -> Result<Buffer, DeviceError> {
        self.buffer_by(bytes, AnyAllocator::try_allocate_kept)
    }

    /// Memory that stays for as long as a model does, and is counted with its weights.
    ///
    /// # Errors
    /// As [`buffer`](Self::buffer).
    pub(in crate::device) fn lasting(&self, bytes: Bytes) -> Result<Buffer, DeviceError> {
        self.buffer_by(bytes, AnyAllocator::try_allocate_lasting)
    }

    fn buffer_by(
        &self,
        bytes: Bytes,
        allocate: impl FnOnce(&mut AnyAllocator, usize) -> Result<Block, NoRoom>,
    ) -> Result<Buffer, DeviceError> {
        let mut allocator = self.allocator();
        let block = allocate(&mut allocator, size(bytes))
            .map_err(|source| DeviceError::NoRoom { what: "a buffer", source })?;
        let held = allocator.size(block).into();
        Ok(Buffer { block, bytes, held, pool: self.clone() })
    }

    /// The pool's GPU, and the stream that orders its blocks; `None` for host memory.
    #[must_use]
    pub fn gpu_stream(&self) -> Option<GpuStream> {
        let stream = self.allocator().backend().stream()?;
        Some(GpuStream { ordinal: self.registration.ordinal(), stream })
    }

    /// Whether blocks were spilled since the last call. If so, the run or load in between needs more memory than there is, and must
    /// fail.
    pub(in crate::device) fn take_overrun(&self) -> Option<NoRoom> {
        self.allocator().take_overrun()
    }

    /// Changes when runs captured before can no longer be replayed, because their temporary memory has been reused.
    pub(in crate::device) fn epoch(&self) -> u64 {
        self.allocator().epoch()
    }

    /// Number of blocks in use.
    pub(in crate::device) fn blocks(&self) -> usize {
        self.allocator().blocks()
    }

    /// Notes that a captured run keeps its temporary memory.
    pub(in crate::device) fn note_kept(&self) {
        self.allocator().note_kept();
    }

    /// Waits until all work that was submitted is done.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the device fails, also in work that was submitted earlier.
    pub(in crate::device) fn wait(&self) -> Result<(), DeviceError> {
        self.allocator().backend_mut().wait()
    }

    /// Records the work that `submit` submits, in place of running it.
    ///
    /// # Errors
    /// The errors of `submit`; [`DeviceError::Runtime`] when the device cannot record it.
    pub(in crate::device) fn record(
        &self,
        submit: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<Recording, DeviceError> {
        self.allocator().begin_capture()?;
        let submitted = submit();
        // Also after an error: a stream that records cannot run work.
        let recorded = self.allocator().end_capture();
        let recording = recorded.map(|recorded| Recording { recorded, pool: self.clone() });
        submitted.and(recording)
    }

    /// Pins memory of the host, for fast copies, until the result is dropped.
    pub(in crate::device) fn pin(&self, first: NonNull<u8>, bytes: usize) -> Option<Pinned> {
        self.allocator().backend_mut().pin(first, bytes).then(|| Pinned { first, pool: self.clone() })
    }

    /// Loads a graph with `load`, whose memory is then counted as weights.
    ///
    /// # Errors
    /// [`DeviceError::NoRoom`] when it does not fit; else the errors of `load`.
    pub(in crate::device) fn loading<T>(
        &self,
        load: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        self.allocator().begin_load();
        let loaded = load();
        // ONNX Runtime reports the size that was rejected, but not the reason.
        let room = self.allocator().end_load();
        room.map_err(|source| DeviceError::NoRoom { what: "the graph cannot be loaded", source })?;
        loaded
    }

    /// ONNX Runtime's environment that it is registered with.
    pub(in crate::device) fn environment(&self) -> &ort::environment::Environment {
        self.registration.environment()
    }

    fn allocator(&self) -> MutexGuard<'_, AnyAllocator> {
        self.registration.pool_allocator().allocator()
    }
}

/// Work that was recorded, with the addresses of its memory in it.
pub(in crate::device) struct Recording {
    recorded: Recorded,
    pool: Pool,
}

impl Recording {
    /// Replays it, after all work that was submitted before. All memory that the work uses must still be valid.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the device fails.
    pub(in crate::device) fn replay(&self) -> Result<(), DeviceError> {
        self.pool.allocator().backend_mut().replay(self.recorded)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.pool.allocator().backend_mut().forget(self.recorded);
    }
}

/// Pinned host memory. It is unpinned when this is dropped, which must be before it is unmapped.
pub(in crate::device) struct Pinned {
    first: NonNull<u8>,
    pool: Pool,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pool.allocator().backend_mut().unpin(self.first);
    }
}

/// ONNX Runtime's description of a pool's memory.
pub(in crate::device) type Described<'a> = &'a ort::memory::MemoryInfo<'static>;

/// Memory allocated from a [`Pool`], freed when dropped.
pub struct Buffer {
    block: Block,
    bytes: Bytes,
    held: Bytes,
    pool: Pool,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.bytes).finish()
    }
}

impl Buffer {
    /// Its size, as requested.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// The size of its block, which may be more than was requested.
    #[must_use]
    pub fn held(&self) -> Bytes {
        self.held
    }

    /// The pool that it was allocated from.
    pub(in crate::device) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Copies rows of another buffer of the same pool, after all work that was submitted before: from offset `from_at` there
    /// to offset `at` here.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when the buffers do not hold them, or `from` is another pool's; [`DeviceError::Runtime`]
    /// when the device fails.
    pub(in crate::device) fn copy_rows(
        &self,
        at: usize,
        from: &Self,
        from_at: usize,
        rows: StridedCopy,
    ) -> Result<(), DeviceError> {
        self.pool.allocator().copy_rows((from.block, from_at), (self.block, at), rows)
    }

    /// Copies `bytes` of the host's memory into its start, after all work that was submitted before.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when it is smaller; [`DeviceError::Runtime`] when the device fails.
    ///
    /// # Safety
    /// `from` must be valid for reads of `bytes`, which must not change until [`Pool::wait`] has returned.
    pub(in crate::device) unsafe fn upload(&self, from: *const u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller promises the same.
        unsafe { self.pool.allocator().upload(from, self.block, bytes) }
    }

    /// Copies `bytes` from its start into the host's memory, after all work that was submitted before.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    ///
    /// # Safety
    /// `to` must be valid for writes of `bytes`, which must not be accessed until [`Pool::wait`] has returned.
    pub(in crate::device) unsafe fn download(&self, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller promises the same.
        unsafe { self.pool.allocator().download(self.block, to, bytes) }
    }

    /// ONNX Runtime's description of its memory.
    pub(in crate::device) fn described(&self) -> Described<'_> {
        self.pool.registration.pool_allocator().info()
    }

    /// Its address on the device.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        self.block.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.allocator().free(self.block);
    }
}
