//! Memory of a GPU, by CUDA's stream-ordered pools.
//!
//! Has run on an H100 (`bench/results/2026-11-27-gpu-h100.md`); its logic above the driver is tested everywhere, with memory
//! of the host.
//!
//! There are two pools, because a pool returns memory in pieces of many blocks, and a single block of weights would keep its
//! whole piece. The scratch pool keeps freed memory until it is trimmed; the pool of weights keeps none. Spilled blocks are
//! pinned host memory, which a GPU reads over the bus at the same address.

use std::{collections::HashMap, ptr::NonNull, sync::Arc};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::backend::{Backend, BackendStats, Block, BlockKind, OutOfMemory, Recorded};
use crate::device::{DeviceError, strided_copy::StridedCopy};

/// Which GPU, and which streams use its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// The GPU's number, as the driver counts them.
    pub ordinal: u16,
    /// All work on the pool's blocks is submitted to the pool's stream: the session runs on
    /// [`gpu_stream`](super::Pool::gpu_stream), with one stream for the whole provider. Then the pool never waits for a block.
    /// Captures require this, because waiting ends a capture.
    pub is_sole_stream: bool,
}

/// Memory pools of one GPU, and the stream that orders them.
pub(super) struct CudaBackend {
    /// Work that was recorded on the stream, by number.
    graphs: HashMap<Recorded, Graph>,
    next_graph: u64,
    // Declared before the context that they belong to: fields are dropped in order.
    scratch: MemoryPool,
    weights: MemoryPool,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    is_sole_stream: bool,
}

impl CudaBackend {
    /// Opens the GPU and creates its pools.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the driver, the GPU or its support for memory pools is missing.
    pub(super) fn new(options: CudaOptions) -> Result<Self, DeviceError> {
        // SAFETY: it only tries to open the driver's library by its well-known names.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable("this machine has no NVIDIA driver"));
        }
        Self::open(options).map_err(|e| unavailable(&format!("GPU {}: {e}", options.ordinal)))
    }

    fn open(options: CudaOptions) -> Result<Self, DriverError> {
        let context = CudaContext::new(options.ordinal.into())?;
        if !context.has_async_alloc() {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_SUPPORTED));
        }
        // SAFETY: nothing here uses the slices that events would order; every block is ordered by the one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let ordinal = options.ordinal.into();
        let scratch = MemoryPool::new(ordinal, u64::MAX)?;
        let weights = MemoryPool::new(ordinal, 0)?;
        let (graphs, next_graph, is_sole_stream) = (HashMap::new(), 0, options.is_sole_stream);
        Ok(Self { graphs, next_graph, scratch, weights, stream, context, is_sole_stream })
    }

    fn allocate_in(&self, pool: &MemoryPool, bytes: usize) -> Result<Block, DriverError> {
        self.context.bind_to_thread()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the stream lives as long as `self`.
        if unsafe { result::stream::is_capturing(stream) }?
            != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
        {
            // An allocation would become part of the captured graph, and its address would be valid only there.
            return Err(DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
        }
        // SAFETY: pool and stream live as long as `self`; the memory is handed on as uninitialised.
        let address = unsafe { result::mem_pool::alloc_async(pool.handle, bytes, stream) }?;
        block(address)
    }

    fn weights(&self, bytes: usize) -> Result<Block, DriverError> {
        let block = self.allocate_in(&self.weights, bytes)?;
        // ONNX Runtime copies weights on a stream of its choice.
        self.stream.synchronize()?;
        Ok(block)
    }

    fn spill(&self, bytes: usize) -> Result<Block, DriverError> {
        self.context.bind_to_thread()?;
        let _relaxed = RelaxedCapture::new()?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the memory is handed on as uninitialised.
        let pinned = unsafe { result::malloc_host(bytes, flags) }?;
        NonNull::new(pinned.cast()).map(Block).ok_or(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY))
    }

    fn try_free(&self, kind: BlockKind, block: Block) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        if kind == BlockKind::Spill {
            // Unlike the pools' memory it is not ordered by the stream, which may still read it.
            self.stream.synchronize()?;
            // SAFETY: it comes from `spill`, is freed once, and all work that used it is done.
            return unsafe { result::free_host(block.0.as_ptr().cast()) };
        }
        // SAFETY: it comes from `allocate_in` and is freed once; work on the stream that was submitted before still has
        // it, and the allocator does not hand it out otherwise.
        unsafe { result::free_async(address(block), self.stream.cu_stream()) }
    }

    fn try_trim(&self, keep: usize) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // Only memory that is no longer in use can be returned.
        self.stream.synchronize()?;
        self.scratch.trim(keep)?;
        self.weights.trim(0)
    }

    fn try_copy(&self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        if rows.count == 1 {
            // SAFETY: as below; a plain copy, as fast as the memory is.
            return unsafe {
                result::memcpy_dtod_async(address(to), address(from), rows.bytes, self.stream.cu_stream())
            };
        }
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: address(from),
            srcArray: std::ptr::null_mut(),
            srcPitch: rows.from,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: address(to),
            dstArray: std::ptr::null_mut(),
            dstPitch: rows.to,
            WidthInBytes: rows.bytes,
            Height: rows.count,
        };
        // SAFETY: both blocks are in use and as long as the rows' spans, which the allocator has checked; the driver reads `copy`
        // before it returns. On the one stream, it comes after what writes the rows and before what reads them, and before all
        // work that uses a block that is freed later.
        unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, self.stream.cu_stream()) }.result()
    }

    fn try_begin_capture(&self) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // Relaxed: this thread's calls outside the stream, such as pinning memory, run at once.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(self.stream.cu_stream(), mode) }
    }

    fn try_end_capture(&mut self) -> Result<Recorded, DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the stream lives as long as `self`.
        let graph = unsafe { result::stream::end_capture(self.stream.cu_stream()) }?;
        if graph.is_null() {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
        }
        // SAFETY: the driver has just given the graph.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above; the executable graph does not need it any more.
        note("a captured graph was not freed", unsafe { result::graph::destroy(graph) });
        let recorded = Recorded(self.next_graph);
        self.next_graph += 1;
        self.graphs.insert(recorded, Graph { executable: executable? });
        Ok(recorded)
    }

    fn try_replay(&self, recorded: Recorded) -> Result<(), DriverError> {
        let unknown = DriverError(sys::CUresult::CUDA_ERROR_INVALID_HANDLE);
        let graph = self.graphs.get(&recorded).ok_or(unknown)?;
        self.context.bind_to_thread()?;
        // SAFETY: graph and stream live as long as `self`. The binding that recorded it drops the recording when the memory
        // whose addresses it contains is no longer valid.
        unsafe { result::graph::launch(graph.executable, self.stream.cu_stream()) }
    }

    /// # Safety
    /// As for [`Backend::upload`].
    unsafe fn try_upload(&self, from: *const u8, to: Block, bytes: usize) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the caller promises that both hold as many bytes and stay; on the one stream, it comes after what reads
        // the block and before all later work.
        unsafe {
            sys::cuMemcpyHtoDAsync_v2(address(to), from.cast(), bytes, self.stream.cu_stream()).result()
        }
    }

    /// # Safety
    /// As for [`Backend::download`].
    unsafe fn try_download(&self, from: Block, to: *mut u8, bytes: usize) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: as in `try_upload`.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.cast(), address(from), bytes, self.stream.cu_stream()).result()
        }
    }

    fn try_pin(&self, first: NonNull<u8>, bytes: usize) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: it only pins the pages; the driver rejects memory that is not mapped.
        unsafe { sys::cuMemHostRegister_v2(first.as_ptr().cast(), bytes, sys::CU_MEMHOSTREGISTER_PORTABLE) }
            .result()
    }

    fn try_held(&self) -> Result<BackendStats, DriverError> {
        use sys::CUmemPool_attribute::{
            CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as NOW, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH as HIGH,
        };
        let (device_free, device_total) = self.context.mem_get_info()?;
        let both = |figure| Ok(self.scratch.attribute(figure)? + self.weights.attribute(figure)?);
        // The peaks of the two need not have been at the same time: their sum is an upper bound.
        Ok(BackendStats { reserved: both(NOW)?, reserved_peak: both(HIGH)?, device_free, device_total })
    }
}

impl Backend for CudaBackend {
    fn allocate(&mut self, kind: BlockKind, bytes: usize) -> Result<Block, OutOfMemory> {
        let allocated = match kind {
            BlockKind::Weights => self.weights(bytes),
            BlockKind::Scratch => self.allocate_in(&self.scratch, bytes),
            BlockKind::Spill => self.spill(bytes),
        };
        allocated.map_err(|e| OutOfMemory(e.to_string()))
    }

    fn free(&mut self, kind: BlockKind, block: Block, _bytes: usize) {
        note("memory is not freed", self.try_free(kind, block));
    }

    fn trim(&mut self, keep: usize) {
        note("memory is not given back", self.try_trim(keep));
    }

    fn copy_rows(&mut self, from: Block, to: Block, rows: StridedCopy) -> Result<(), DeviceError> {
        self.try_copy(from, to, rows).map_err(failed("memory cannot be copied on the device"))
    }

    unsafe fn upload(&mut self, from: *const u8, to: Block, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: the caller promises the same.
        unsafe { self.try_upload(from, to, bytes) }.map_err(failed("what the host wrote cannot be copied"))
    }

    unsafe fn download(&mut self, from: Block, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as in `upload`.
        unsafe { self.try_download(from, to, bytes) }
            .map_err(failed("what the device wrote cannot be copied"))
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(failed("the device did not finish"))
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        self.try_begin_capture().map_err(failed("work cannot be captured"))
    }

    fn end_capture(&mut self) -> Result<Recorded, DeviceError> {
        self.try_end_capture().map_err(failed("work was not captured"))
    }

    fn replay(&mut self, recorded: Recorded) -> Result<(), DeviceError> {
        self.try_replay(recorded).map_err(failed("what was captured does not run"))
    }

    fn forget(&mut self, recorded: Recorded) {
        note("a captured graph was not freed", self.context.bind_to_thread());
        drop(self.graphs.remove(&recorded));
    }

    fn pin(&mut self, first: NonNull<u8>, bytes: usize) -> bool {
        self.try_pin(first, bytes)
            .inspect_err(|e| tracing::debug!("memory of the host is not pinned: {e}"))
            .is_ok()
    }

    fn unpin(&mut self, first: NonNull<u8>) {
        let unpinned = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: it was pinned by `pin`, and is still mapped: its owner unpins it first.
            unsafe { sys::cuMemHostUnregister(first.as_ptr().cast()) }.result()
        });
        note("memory of the host stays pinned", unpinned);
    }

    fn held(&self) -> BackendStats {
        self.try_held().unwrap_or_else(|e| {
            note("the driver gives no stats", Err(e));
            BackendStats::default()
        })
    }

    fn reset_peak(&mut self) {
        note("the pools' peaks stay", self.scratch.reset_peak().and(self.weights.reset_peak()));
    }

    fn settle(&mut self) {
        if !self.is_sole_stream {
            note("the device is not at rest", self.stream.synchronize());
        }
    }

    fn stream(&self) -> Option<NonNull<()>> {
        NonNull::new(self.stream.cu_stream().cast())
    }
}

/// Logs an error where no caller can receive it: a lost device also fails the next run, which reports it.
fn note(what: &str, result: Result<(), DriverError>) {
    if let Err(e) = result {
        tracing::warn!("{what}: {e}");
    }
}

fn failed(what: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |e| DeviceError::Runtime { what, message: e.to_string() }
}

fn unavailable(message: &str) -> DeviceError {
    DeviceError::Runtime { what: "a pool of GPU memory", message: message.into() }
}

fn address(block: Block) -> sys::CUdeviceptr {
    block.0.as_ptr().expose_provenance() as sys::CUdeviceptr
}

fn block(address: sys::CUdeviceptr) -> Result<Block, DriverError> {
    let address = usize::try_from(address).unwrap_or(0);
    NonNull::new(std::ptr::with_exposed_provenance_mut(address))
        .map(Block)
        .ok_or(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY))
}

/// An owned `CUgraphExec`.
struct Graph {
    executable: sys::CUgraphExec,
}

// SAFETY: the driver's functions on it may be called from any thread, one at a time, which the pool's lock sees to.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: it is ours and destroyed once; the driver waits with that until it does not run.
        note("a captured graph was not freed", unsafe { result::graph::exec_destroy(self.executable) });
    }
}

/// An owned `CUmemoryPool`.
struct MemoryPool {
    handle: sys::CUmemoryPool,
}

// SAFETY: the driver's functions on a pool may be called from any thread.
unsafe impl Send for MemoryPool {}

impl MemoryPool {
    /// A pool that keeps up to `release_threshold` bytes of freed memory when the stream comes to rest.
    fn new(ordinal: i32, release_threshold: u64) -> Result<Self, DriverError> {
        // SAFETY: a plain C structure for which all zeros is valid: no handle type, no cap, no attributes.
        let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.handleTypes = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        properties.location.id = ordinal;
        // SAFETY: `properties` lives through the call.
        let pool = Self { handle: unsafe { result::mem_pool::create(&raw const properties) }? };
        pool.set(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, release_threshold)?;
        Ok(pool)
    }

    fn set(&self, attribute: sys::CUmemPool_attribute, mut value: u64) -> Result<(), DriverError> {
        // SAFETY: the pool lives; the attributes used here are 64 bits wide, as is `value`.
        unsafe { result::mem_pool::set_attribute(self.handle, attribute, (&raw mut value).cast()) }
    }

    fn attribute(&self, attribute: sys::CUmemPool_attribute) -> Result<usize, DriverError> {
        let mut value = 0u64;
        // SAFETY: as in `set`.
        unsafe { result::mem_pool::get_attribute(self.handle, attribute, (&raw mut value).cast()) }?;
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// The only value that the driver takes for a peak is 0: the present figure.
    fn reset_peak(&self) -> Result<(), DriverError> {
        self.set(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, 0)
    }

    fn trim(&self, keep: usize) -> Result<(), DriverError> {
        // SAFETY: the pool lives.
        unsafe { result::mem_pool::trim_to(self.handle, keep) }
    }
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        // SAFETY: it is ours and destroyed once; the driver keeps its memory until blocks in use are freed.
        note("a pool stays", unsafe { result::mem_pool::destroy(self.handle) });
    }
}

/// Lets this thread allocate while another thread captures a graph, until dropped.
struct RelaxedCapture {
    before: sys::CUstreamCaptureMode,
}

impl RelaxedCapture {
    fn new() -> Result<Self, DriverError> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the driver swaps the calling thread's mode with `mode`, which lives through the call.
        unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) }.result()?;
        Ok(Self { before: mode })
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        note(
            "the capture mode stays",
            unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut self.before) }.result(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_answer_is_an_error_and_no_panic() {
        let made = CudaBackend::new(CudaOptions { ordinal: 0, is_sole_stream: true });
        if let Err(e) = made {
            assert!(e.to_string().starts_with("a pool of GPU memory: "), "{e}");
        }
    }
}
