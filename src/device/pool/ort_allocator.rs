//! The pool as ONNX Runtime sees it: a C structure of functions, and its registration.
//!
//! A panic in one of these functions ends the process, as the language guarantees for functions that C calls: it never
//! unwinds into ONNX Runtime. Nothing here should panic. A panic means that the pool's accounts are wrong, and then the
//! worker is better replaced.

use std::{
    alloc::{Layout, handle_alloc_error},
    ffi::{CString, c_void},
    ptr::{self, NonNull},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ort::{
    AsPointer,
    environment::Environment,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    sys::{OrtAllocator, OrtKeyValuePairs, OrtMemoryInfo, OrtStatusPtr, OrtSyncStream},
};

use super::{
    NoRoom, PoolStats,
    allocator::{Allocator, User},
    backend::{Backend, Block},
};
use crate::device::DeviceError;

/// An allocator over any backend.
pub(super) type AnyAllocator = Allocator<Box<dyn Backend>>;

/// The structure that ONNX Runtime holds a pointer to.
#[repr(C)]
pub(super) struct PoolAllocator {
    /// First, so that a pointer to the whole structure is also a pointer to this field.
    functions: OrtAllocator,
    info: MemoryInfo<'static>,
    allocator: Mutex<AnyAllocator>,
}

impl PoolAllocator {
    fn new(info: MemoryInfo<'static>, allocator: AnyAllocator) -> Self {
        // SAFETY: the structure of functions that are all absent; those that ONNX Runtime needs follow at once.
        let mut functions = unsafe { OrtAllocator::default() };
        functions.Alloc = Some(alloc);
        functions.AllocOnStream = Some(alloc_on_stream);
        functions.Reserve = Some(reserve);
        functions.Free = Some(free);
        functions.Info = Some(describe);
        functions.GetStats = Some(statistics);
        Self { functions, info, allocator: Mutex::new(allocator) }
    }

    /// ONNX Runtime's description of the device.
    pub(super) fn info(&self) -> &MemoryInfo<'static> {
        &self.info
    }

    /// The allocator behind the lock.
    pub(super) fn allocator(&self) -> MutexGuard<'_, AnyAllocator> {
        // A panic with the lock held has ended the process, or a test.
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, requested: usize, user: User) -> *mut c_void {
        if requested == 0 {
            return ptr::null_mut();
        }
        match self.allocator().allocate(requested, user) {
            Ok(block) => block.0.as_ptr().cast(),
            Err(refused) => nothing_left(requested, &refused),
        }
    }
}

/// Ends the process, as Rust does when its heap is exhausted: a null pointer would end it one kernel later, with a worse
/// message.
fn nothing_left(requested: usize, refused: &NoRoom) -> ! {
    tracing::error!("not even the host has memory left: {refused}");
    handle_alloc_error(Layout::from_size_align(requested, 1).unwrap_or(Layout::new::<u8>()))
}

/// The pool's allocator that `this` is the first field of.
///
/// # Safety
/// `this` must come from [`Registration::new`], and its registration must live.
unsafe fn pool_allocator<'a>(this: *const OrtAllocator) -> &'a PoolAllocator {
    // SAFETY: `this` points at the whole of a `PoolAllocator` (`repr(C)`, and registered as such), which lives as long as
    // its registration and is only ever borrowed shared.
    unsafe { &*this.cast::<PoolAllocator>() }
}

unsafe extern "system" fn alloc(this: *mut OrtAllocator, size: usize) -> *mut c_void {
    // SAFETY: ONNX Runtime passes the pointer that it was registered with, and stops before the registration ends.
    unsafe { pool_allocator(this) }.take(size, User::AnyStream)
}

unsafe extern "system" fn alloc_on_stream(
    this: *mut OrtAllocator,
    size: usize,
    stream: *mut OrtSyncStream,
) -> *mut c_void {
    // SAFETY: as in `alloc`.
    let allocator = unsafe { pool_allocator(this) };
    let handle = if stream.is_null() {
        ptr::null_mut()
    } else {
        // SAFETY: ONNX Runtime passes one of its live streams.
        unsafe { (ort::api().SyncStream_GetHandle)(stream) }
    };
    let own = allocator.allocator().backend().stream();
    let is_own = own.is_some() && own == NonNull::new(handle.cast());
    allocator.take(size, if is_own { User::PoolStream } else { User::AnyStream })
}

unsafe extern "system" fn reserve(this: *const OrtAllocator, size: usize) -> *mut c_void {
    if size == 0 {
        return ptr::null_mut();
    }
    // SAFETY: as in `alloc`.
    let reserved = unsafe { pool_allocator(this) }.allocator().reserve(size);
    // Null is allowed here: ONNX Runtime then fails to load the graph and reports it.
    reserved.map_or(ptr::null_mut(), |block| block.0.as_ptr().cast())
}

unsafe extern "system" fn free(this: *mut OrtAllocator, block: *mut c_void) {
    if let Some(first) = NonNull::new(block.cast()) {
        // SAFETY: as in `alloc`.
        unsafe { pool_allocator(this) }.allocator().free(Block(first));
    }
}

unsafe extern "system" fn describe(this: *const OrtAllocator) -> *const OrtMemoryInfo {
    // SAFETY: as in `alloc`.
    unsafe { pool_allocator(this) }.info.ptr()
}

unsafe extern "system" fn statistics(
    this: *const OrtAllocator,
    out: *mut *mut OrtKeyValuePairs,
) -> OrtStatusPtr {
    // SAFETY: as in `alloc`.
    let allocator = unsafe { pool_allocator(this) };
    let (stats, limit) = {
        let allocator = allocator.allocator();
        (allocator.stats(), allocator.limit())
    };
    let mut pairs = ptr::null_mut();
    // SAFETY: the out-parameter is valid for the call.
    unsafe { (ort::api().CreateKeyValuePairs)(&raw mut pairs) };
    for (name, value) in named(&stats, limit) {
        let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value.to_string())) else { continue };
        // SAFETY: `pairs` was just made; both strings live through the call, which copies them.
        unsafe { (ort::api().AddKeyValuePair)(pairs, name.as_ptr(), value.as_ptr()) };
    }
    // SAFETY: ONNX Runtime passes a valid out-parameter, and releases the value.
    unsafe { out.write(pairs) };
    OrtStatusPtr::default()
}

/// The statistics, with the names of ONNX Runtime's arenas.
fn named(stats: &PoolStats, limit: usize) -> [(&'static str, u64); 6] {
    [
        ("Limit", limit as u64),
        ("InUse", stats.in_use().0),
        ("RequestedInUse", stats.requested.0),
        ("TotalAllocated", stats.held.0),
        ("MaxInUse", stats.in_use_peak.0),
        ("NumAllocs", stats.allocations),
    ]
}

/// The right to register a pool for a device. A process can have one pool per device.
///
/// In ONNX Runtime, a second allocator for a device silently replaces the first, and unregistering either one unregisters the
/// current one.
#[derive(Debug)]
pub(super) struct Claim {
    device: AllocationDevice<'static>,
    ordinal: u16,
}

static CLAIMED: Mutex<Vec<(AllocationDevice<'static>, u16)>> = Mutex::new(Vec::new());

fn claimed() -> MutexGuard<'static, Vec<(AllocationDevice<'static>, u16)>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claim {
    /// Claims a device.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the device already has a pool.
    pub(super) fn new(device: AllocationDevice<'static>, ordinal: u16) -> Result<Self, DeviceError> {
        let mut claimed = claimed();
        if claimed.contains(&(device.clone(), ordinal)) {
            let message = format!("device {ordinal} ({}) has one; share it", device.as_str());
            return Err(DeviceError::Runtime { what: "a memory pool cannot be registered", message });
        }
        claimed.push((device.clone(), ordinal));
        Ok(Self { device, ordinal })
    }

    /// What ONNX Runtime calls it.
    fn memory_info(&self) -> Result<MemoryInfo<'static>, DeviceError> {
        // Of type Device and not Arena, because ONNX Runtime rejects arenas of others.
        let (device, ordinal) = (self.device.clone(), i32::from(self.ordinal));
        MemoryInfo::new(device, ordinal, AllocatorType::Device, MemoryType::Default)
            .map_err(DeviceError::runtime("a memory pool's description"))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        claimed().retain(|(device, ordinal)| (device, *ordinal) != (&self.device, self.ordinal));
    }
}

/// The registration of a pool with ONNX Runtime. Dropping it unregisters the pool.
pub(super) struct Registration {
    pool_allocator: NonNull<PoolAllocator>,
    environment: Environment,
    claim: Claim,
}

// SAFETY: the allocator is only reached shared, its logic is behind a lock, its description is read-only, and its functions
// are made to be called from any thread, as ONNX Runtime does.
unsafe impl Send for Registration {}
// SAFETY: as for `Send`.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `allocator` for the device that was claimed.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] with ONNX Runtime's reason.
    pub(super) fn new(
        environment: Environment,
        claim: Claim,
        allocator: AnyAllocator,
    ) -> Result<Self, DeviceError> {
        let info = claim.memory_info()?;
        let pool_allocator = NonNull::from(Box::leak(Box::new(PoolAllocator::new(info, allocator))));
        // SAFETY: `pool_allocator` is a live `PoolAllocator`, which starts with an `OrtAllocator`; it stays until it is
        // unregistered.
        let status = unsafe {
            (ort::api().RegisterAllocator)(environment.ptr().cast_mut(), pool_allocator.as_ptr().cast())
        };
        // SAFETY: the status comes from the call above and is used once.
        if let Err(e) = unsafe { ort::Error::result_from_status(status) } {
            // SAFETY: it comes from a box just above, and ONNX Runtime did not take it.
            drop(unsafe { Box::from_raw(pool_allocator.as_ptr()) });
            return Err(DeviceError::runtime::<()>("a memory pool cannot be registered")(e));
        }
        Ok(Self { pool_allocator, environment, claim })
    }

    pub(super) fn pool_allocator(&self) -> &PoolAllocator {
        // SAFETY: it lives until `drop`, and is only ever borrowed shared.
        unsafe { self.pool_allocator.as_ref() }
    }

    /// The device's number.
    pub(super) fn ordinal(&self) -> u16 {
        self.claim.ordinal
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let info = self.pool_allocator().info.ptr();
        // SAFETY: environment and description live; the pool was registered once and is unregistered once.
        let status = unsafe { (ort::api().UnregisterAllocator)(self.environment.ptr().cast_mut(), info) };
        // SAFETY: the status comes from the call above and is used once.
        let unregistered = unsafe { ort::Error::result_from_status(status) };
        if unregistered.is_ok() && self.pool_allocator().allocator().is_idle() {
            // SAFETY: it comes from a box; ONNX Runtime no longer knows it; no block is in use, so there is no reason to call it:
            // every session and binding of it owned a share of this registration, and was dropped.
            drop(unsafe { Box::from_raw(self.pool_allocator.as_ptr()) });
        } else {
            // Owners of its blocks will still call `free`, so the pool is leaked.
            tracing::error!(
                "a memory pool is left behind, in use: {:?}",
                self.pool_allocator().allocator().stats()
            );
        }
    }
}
