//! A graph's inputs and outputs, bound once to memory that stays where it is.
//!
//! ```text
//! Binding ── slots: HostBuffer + OrtValue over it ──► read/write between runs, by Slot<T>
//!         │         └─ Buffer in the pool: inputs are copied there before a run, outputs are copied back
//!         └─ in_place: DeviceTensor               ──► past and present of the key-value cache, only on the device
//! ```
//!
//! A run is then one call (`RunWithBinding`), which neither allocates nor looks up names. ort's safe `bind_input` cannot do this:
//! on a borrowed tensor it clones through a hidden session and deadlocks, and the memory of an owned tensor is ONNX Runtime's.
//! Invariant: during a run every bound value's memory is owned, through a slot or `Rc`, by the binding, and neither `HostBuffer`s
//! nor blocks of a pool move, so ONNX Runtime's pointers stay valid. Memory that is updated in place may be released between runs
//! and replaced: this is how a cache grows.
//!
//! With a pool, each slot also has a block of the pool, and the graph is bound to that block. If it were bound to host memory,
//! ONNX Runtime would copy each input into its own memory in every run, and wait for the copy. Written inputs are copied before
//! the run and outputs after it, on the stream of the run, and the host waits once, at the end. Values that the host needs for a
//! run on a GPU, such as a length, stay on the host; the session knows which inputs these are.
//!
//! On a GPU a run may be [captured](Binding::capture), because its addresses do not change.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt,
    marker::PhantomData,
    mem,
    ptr::{self, NonNull},
};

use ort::{
    AsPointer,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions},
};

use super::{
    DeviceError, DeviceTensor, Element, Pool, Session,
    cuda_graph::{CaptureState, RunMode},
    element::elements,
    host_buffer::{HostBuffer, MemorySpan},
    pool::{Buffer, Pinned, Recording},
};
use crate::units::Bytes;

/// A tensor of a [`Binding`] that the host may read and write between runs.
///
/// It belongs to the binding that created it.
pub struct Slot<T> {
    index: usize,
    element: PhantomData<fn() -> T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.index)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Input,
    Output,
}

struct Bound {
    name: CString,
    side: Side,
    /// Where the graph reads or writes it, if not in `region`.
    staged: Option<Buffer>,
    // Declared before the memory that it pins: fields are dropped in order.
    _pinned: Option<Pinned>,
    region: HostBuffer,
    /// Whether the host has written to `region` since the last run.
    is_written: bool,
    dtype: ort::sys::ONNXTensorElementDataType,
    element_bytes: usize,
    room: usize,
    elements: usize,
}

impl Bound {
    /// The value that the graph is bound to.
    fn place(&self) -> MemorySpan {
        match &self.staged {
            Some(buffer) => MemorySpan { first: buffer.address().as_ptr(), bytes: self.region.bytes() },
            None => self.region.place(),
        }
    }

    fn bytes(&self) -> usize {
        self.elements * self.element_bytes
    }
}

/// Inputs and outputs of a session over fixed memory.
pub struct Binding {
    // Declared before the memory that they refer to: fields are dropped in order.
    inner: IoBinding,
    options: RunOptions<NoSelectedOutputs>,
    memory: MemoryInfo<'static>,
    slots: Vec<Bound>,
    /// Tensors updated in place, by the input's name; `None` while the binding refers to memory that is no longer owned.
    in_place: HashMap<CString, Option<DeviceTensor>>,
    /// The session's pool; it lives as long as the binding, which keeps the session alive.
    pool: Option<Pool>,
    /// Names of the inputs and outputs that must be in the pool's memory.
    staged: Vec<String>,
    capture: CaptureState,
    /// The captured run, which is replayed instead of running the graph.
    recording: Option<Recording>,
    next: RunMode,
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Binding {
    /// A binding without inputs and outputs.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when ONNX Runtime has not enough memory.
    pub fn new(session: &Session) -> Result<Self, DeviceError> {
        let pool = session.pool().cloned();
        let is_on_gpu = pool.as_ref().is_some_and(|pool| pool.gpu_stream().is_some());
        let create = || {
            let cpu = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
            let mut options = RunOptions::new()?;
            if is_on_gpu {
                // Waiting for the copy of the outputs includes waiting for the run.
                options.disable_device_sync()?;
            }
            Ok((session.inner().create_binding()?, options, cpu))
        };
        let (inner, options, memory) =
            create().map_err(DeviceError::runtime::<()>("a binding cannot be made"))?;
        let staged = if pool.is_some() { session.staged(is_on_gpu)? } else { Vec::new() };
        Ok(Self {
            inner,
            options,
            memory,
            slots: Vec::new(),
            in_place: HashMap::new(),
            pool,
            staged,
            capture: CaptureState::new(false),
            recording: None,
            next: RunMode::Eager,
        })
    }

    /// Allows that runs are captured as a CUDA graph, if the session was loaded for that. A replay is one submission instead of
    /// one per operator. For bindings whose runs repeat with the same shapes. [`plan_run`](Self::plan_run) decides which runs are
    /// captured.
    pub fn capture(&mut self, session: &Session) {
        if session.captures() && self.capture == CaptureState::Refused {
            self.capture = CaptureState::new(true);
        }
    }

    /// Decides the mode of the next run. Returns whether it is captured or replayed: then values that are read only on the
    /// host, such as a length, must be the same each time.
    pub fn plan_run(&mut self) -> bool {
        let epoch = self.pool.as_ref().map_or(0, Pool::epoch);
        self.next = self.capture.next(epoch);
        self.next != RunMode::Eager
    }

    /// Releases the captured run. Must be called before the pool's scratch memory is trimmed.
    pub fn release_captured(&mut self) {
        self.capture.end();
        self.recording = None;
    }

    /// Stops capturing runs.
    pub fn refuse_capture(&mut self) {
        self.capture.refuse();
        self.recording = None;
    }

    /// Maps zeroed memory for `shape` and binds it to the input `name`.
    ///
    /// # Errors
    /// [`DeviceError`] when the memory cannot be allocated or the session has no such input.
    pub fn input<T: Element>(&mut self, name: &str, shape: &[usize]) -> Result<Slot<T>, DeviceError> {
        self.slot(name, Side::Input, shape)
    }

    /// Maps zeroed memory for `shape` and binds it to the output `name`.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    pub fn output<T: Element>(&mut self, name: &str, shape: &[usize]) -> Result<Slot<T>, DeviceError> {
        self.slot(name, Side::Output, shape)
    }

    fn slot<T: Element>(&mut self, name: &str, side: Side, shape: &[usize]) -> Result<Slot<T>, DeviceError> {
        let room = elements(shape, usize::MAX)?;
        let region = HostBuffer::new::<T>(room)?;
        let pool = self.pool.as_ref().filter(|_| self.staged.iter().any(|staged| staged == name));
        let staged = pool.map(|pool| pool.lasting(Bytes::from(region.bytes()))).transpose()?;
        let pinned = pool.and_then(|pool| pool.pin(NonNull::new(region.pointer())?, region.bytes()));
        let bound = Bound {
            name: c_name(name)?,
            side,
            staged,
            _pinned: pinned,
            region,
            is_written: true,
            dtype: T::ONNX,
            element_bytes: size_of::<T>(),
            room,
            elements: room,
        };
        self.slots.push(bound);
        let slot = Slot { index: self.slots.len() - 1, element: PhantomData };
        self.reshape(slot, shape)?;
        Ok(slot)
    }

    /// Binds `memory` to the input `past` and to the output `present`, which the graph then updates in place. Replaces earlier
    /// bindings of the two.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the session has no such input or output; the binding cannot run then.
    pub fn in_place(&mut self, past: &str, present: &str, memory: &DeviceTensor) -> Result<(), DeviceError> {
        self.release_captured();
        let past = c_name(past)?;
        let bound =
            [(&past, Side::Input), (&c_name(present)?, Side::Output)].into_iter().try_for_each(|to| {
                let info = memory.described().unwrap_or(&self.memory);
                self.bind(to.0, to.1, info, memory.place(), memory.shape(), memory.dtype())
            });
        self.in_place.insert(past, bound.is_ok().then(|| memory.clone()));
        bound
    }

    /// Releases all memory that is updated in place. Until each tensor has been bound again, the binding does not run.
    pub fn let_go(&mut self) {
        self.release_captured();
        self.in_place.values_mut().for_each(|memory| *memory = None);
    }

    /// Changes the shape of a slot. Its memory stays the same.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when the memory is too small for it.
    ///
    /// # Panics
    /// When `slot` is another binding's and this one has no such slot.
    pub fn reshape<T: Element>(&mut self, slot: Slot<T>, shape: &[usize]) -> Result<(), DeviceError> {
        self.release_captured();
        let bound = &self.slots[slot.index];
        let count = elements(shape, bound.room)?;
        let info = bound.staged.as_ref().map_or(&self.memory, Buffer::described);
        self.bind(&bound.name, bound.side, info, bound.place(), shape, bound.dtype)?;
        let bound = &mut self.slots[slot.index];
        bound.elements = count;
        bound.is_written = true;
        Ok(())
    }

    fn bind(
        &self,
        name: &CString,
        side: Side,
        info: &MemoryInfo<'_>,
        place: MemorySpan,
        shape: &[usize],
        dtype: ort::sys::ONNXTensorElementDataType,
    ) -> Result<(), DeviceError> {
        let failed = DeviceError::runtime("a tensor cannot be bound");
        let value = Value::over(info, place, shape, dtype).map_err(&failed)?;
        let binding = self.inner.ptr().cast_mut();
        let bind = match side {
            Side::Input => ort::api().BindInput,
            Side::Output => ort::api().BindOutput,
        };
        // SAFETY: `binding` and `value` live, and the binding keeps its own reference to the value. Its memory is only
        // touched by a run, and during that it is owned by `self` (see the module's invariant).
        let status = unsafe { bind(binding, name.as_ptr(), value.0.as_ptr()) };
        // SAFETY: the status comes from the call above and is used once.
        unsafe { ort::Error::result_from_status(status) }.map_err(failed)
    }

    /// Copies the inputs that changed since the last run to the device.
    fn upload(&mut self) -> Result<(), DeviceError> {
        for bound in &mut self.slots {
            if let (Side::Input, true, Some(buffer)) = (bound.side, bound.is_written, &bound.staged) {
                // SAFETY: the region holds what its shape says, and is ours until the run has been waited for.
                unsafe { buffer.upload(bound.region.pointer(), bound.bytes()) }?;
                bound.is_written = false;
            }
        }
        Ok(())
    }

    /// Copies the outputs of a run to the host.
    fn download(&mut self) -> Result<(), DeviceError> {
        for bound in &self.slots {
            if let (Side::Output, Some(buffer)) = (bound.side, &bound.staged) {
                // SAFETY: the region holds what its shape says, and `&mut` keeps others away until the run has been
                // waited for.
                unsafe { buffer.download(bound.region.pointer(), bound.bytes()) }?;
            }
        }
        Ok(())
    }

    /// The content of a slot.
    ///
    /// # Panics
    /// When `slot` is another binding's and this one has no such slot or one of another type.
    #[must_use]
    pub fn read<T: Element>(&self, slot: Slot<T>) -> &[T] {
        let bound = &self.slots[slot.index];
        assert!(bound.dtype == T::ONNX, "a slot is only of use with the binding that made it");
        bound.region.as_slice(bound.elements)
    }

    /// The content of a slot, to be written before the next run or changed after it.
    ///
    /// # Panics
    /// As [`read`](Self::read).
    pub fn write<T: Element>(&mut self, slot: Slot<T>) -> &mut [T] {
        let bound = &mut self.slots[slot.index];
        assert!(bound.dtype == T::ONNX, "a slot is only of use with the binding that made it");
        bound.is_written = true;
        bound.region.as_mut_slice(bound.elements)
    }

    /// Runs the graph once.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] with ONNX Runtime's reason, [`DeviceError::NoRoom`] when the run needs more memory than the
    /// session's pool has; the outputs are then undefined. If the run was to be [captured](Self::plan_run), the capture may have
    /// failed; the next run is not captured.
    pub fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let mode = mem::replace(&mut self.next, RunMode::Eager);
        if self.in_place.values().any(Option::is_none) {
            let message = "the memory that it updates was given back".into();
            return Err(DeviceError::Runtime { what: "a run failed", message });
        }
        let Some(pool) = self.pool.clone() else { return self.run_once(session) };
        if mode != RunMode::Captured {
            // Its scratch memory has been reused.
            self.recording = None;
        }
        let (epoch, blocks) = (pool.epoch(), pool.blocks());
        let ran = self.upload().and_then(|()| match mode {
            RunMode::Eager | RunMode::Rehearsal => self.run_once(session),
            RunMode::Captured => self.run_captured(session, &pool),
        });
        let ran = ran.and_then(|()| self.download());
        // Also after an error: submitted work reads and writes our memory until it is done.
        let done = pool.wait();
        if pool.blocks() > blocks {
            pool.note_kept();
        }
        // Also after a failure, so that the next run does not report this one's spill.
        let ran = match pool.take_overrun() {
            Some(source) => Err(DeviceError::NoRoom { what: "a run failed", source }),
            None => ran.and(done),
        };
        if mode == RunMode::Captured {
            match &ran {
                Ok(()) => self.capture.ran(epoch),
                // The warm-up run before the capture succeeded, so the capture itself fails and would fail again.
                Err(_) => self.refuse_capture(),
            }
        }
        ran
    }

    fn run_once(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let session = session.inner_mut().ptr().cast_mut();
        // SAFETY: session, options and binding live, `&mut` on the first and the last excludes another run of either,
        // and every bound value's memory is owned and not borrowed (slots: `&mut self`; in place: the caller has checked
        // that all are bound, and they are never lent).
        let status = unsafe { (ort::api().RunWithBinding)(session, self.options.ptr(), self.inner.ptr()) };
        // SAFETY: the status comes from the call above and is used once.
        unsafe { ort::Error::result_from_status(status) }.map_err(DeviceError::runtime("a run failed"))
    }

    /// Replays the captured run, after capturing it if there is none.
    fn run_captured(&mut self, session: &mut Session, pool: &Pool) -> Result<(), DeviceError> {
        if self.recording.is_none() {
            self.recording = Some(pool.record(|| self.run_once(session))?);
        }
        self.recording.as_ref().map_or(Ok(()), Recording::replay)
    }
}

fn c_name(name: &str) -> Result<CString, DeviceError> {
    CString::new(name).map_err(|e| DeviceError::Runtime { what: "a tensor's name", message: e.to_string() })
}

/// An `OrtValue` over memory that it does not own.
struct Value(NonNull<ort::sys::OrtValue>);

impl Value {
    /// A tensor of `shape` over the start of `place`, which must hold it.
    fn over(
        info: &MemoryInfo<'_>,
        place: MemorySpan,
        shape: &[usize],
        dtype: ort::sys::ONNXTensorElementDataType,
    ) -> ort::Result<Self> {
        let dims: Vec<i64> = shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
        let mut value = ptr::null_mut();
        // SAFETY: `info` lives; the place is `bytes` long, which ONNX Runtime checks against shape and type; it only
        // stores the pointer.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                info.ptr(),
                place.first.cast::<c_void>(),
                place.bytes,
                dims.as_ptr(),
                dims.len(),
                dtype,
                &raw mut value,
            )
        };
        // SAFETY: the status comes from the call above and is used once.
        unsafe { ort::Error::result_from_status(status) }?;
        NonNull::new(value).map(Self).ok_or_else(|| ort::Error::new("ONNX Runtime returned no value"))
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: it is ours and released once; bindings hold separate references.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}
