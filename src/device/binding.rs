//! A graph's inputs and outputs, bound once to memory that stays where it is.
//!
//! ```text
//! Binding ── slots: Region + OrtValue over it ──► read/write between runs, by Slot<T>
//!         └─ shared: Rc<Region>               ──► past and present of the key-value cache, the device's alone
//! ```
//!
//! A run is then one call (`RunWithBinding`), which neither allocates nor looks up names. ort's safe `bind_input`
//! cannot do this: on a borrowed tensor it clones through a hidden session and locks itself out, and on an owned one
//! the memory is ONNX Runtime's. Invariant: during a run every bound value's memory is owned, through a slot or `Rc`, by
//! the binding, and neither `Region`s nor blocks of a pool move; so what ONNX Runtime reads and writes then is there.
//! Memory that is updated in place may be let go of between runs and replaced: how a cache grows.

use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    fmt,
    marker::PhantomData,
    ptr::{self, NonNull},
};

use ort::{
    AsPointer,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions},
};

use super::{
    DeviceError, Element, Pool, Session, Shared,
    region::{Place, Region, elements},
};

/// A tensor of a [`Binding`] that the host may read and write between runs.
///
/// Only of use with the binding that made it.
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
    region: Region,
    dtype: ort::sys::ONNXTensorElementDataType,
    room: usize,
    elements: usize,
    shape: Vec<usize>,
}

/// Inputs and outputs of a session over fixed memory.
pub struct Binding {
    // Declared before the memory that it refers to: fields are dropped in order.
    inner: IoBinding,
    options: RunOptions<NoSelectedOutputs>,
    memory: MemoryInfo<'static>,
    slots: Vec<Bound>,
    /// What is updated in place, by the input's name; `None` while it is bound to memory that is no longer owned.
    in_place: HashMap<CString, Option<Shared>>,
    /// What the session allocates from; it lives as long as the binding, which keeps the session alive.
    pool: Option<Pool>,
    /// Whether what the host writes has to be taken to a GPU.
    is_on_gpu: bool,
}

impl fmt::Debug for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Binding {
    /// A binding with nothing bound yet.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when ONNX Runtime has no memory for it.
    pub fn new(session: &Session) -> Result<Self, DeviceError> {
        let create = || {
            let cpu = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
            Ok((session.inner().create_binding()?, RunOptions::new()?, cpu))
        };
        let (inner, options, memory) =
            create().map_err(DeviceError::runtime::<()>("a binding cannot be made"))?;
        let pool = session.pool().cloned();
        let is_on_gpu = pool.as_ref().is_some_and(|pool| pool.gpu_stream().is_some());
        Ok(Self { inner, options, memory, slots: Vec::new(), in_place: HashMap::new(), pool, is_on_gpu })
    }

    /// Maps zeroed memory for `shape` and binds it to the input `name`.
    ///
    /// # Errors
    /// [`DeviceError`] when the memory cannot be had or the session has no such input.
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
        let region = Region::new::<T>(room)?;
        let bound = Bound {
            name: c_name(name)?,
            side,
            region,
            dtype: T::ONNX,
            room,
            elements: room,
            shape: Vec::new(),
        };
        self.slots.push(bound);
        let slot = Slot { index: self.slots.len() - 1, element: PhantomData };
        self.reshape(slot, shape)?;
        Ok(slot)
    }

    /// Binds `memory` to the input `past` and to the output `present`, which the graph then updates in place; in the place
    /// of what was bound to them before.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the session has no such input or output; the binding cannot run then.
    pub fn in_place(&mut self, past: &str, present: &str, memory: &Shared) -> Result<(), DeviceError> {
        let past = c_name(past)?;
        let bound =
            [(&past, Side::Input), (&c_name(present)?, Side::Output)].into_iter().try_for_each(|to| {
                let info = memory.described().unwrap_or(&self.memory);
                self.bind(to.0, to.1, info, memory.place(), memory.shape(), memory.dtype())
            });
        self.in_place.insert(past, bound.is_ok().then(|| memory.clone()));
        bound
    }

    /// Lets go of all memory that is updated in place. Until each has been bound again, the binding does not run.
    pub fn let_go(&mut self) {
        self.in_place.values_mut().for_each(|memory| *memory = None);
    }

    /// Lays another shape over a slot's memory, from its first element on.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when the memory is too small for it.
    ///
    /// # Panics
    /// When `slot` is another binding's and this one has no such slot.
    pub fn reshape<T: Element>(&mut self, slot: Slot<T>, shape: &[usize]) -> Result<(), DeviceError> {
        let bound = &self.slots[slot.index];
        let count = elements(shape, bound.room)?;
        self.bind(&bound.name, bound.side, &self.memory, bound.region.place(), shape, bound.dtype)?;
        let bound = &mut self.slots[slot.index];
        bound.elements = count;
        shape.clone_into(&mut bound.shape);
        Ok(())
    }

    fn bind(
        &self,
        name: &CString,
        side: Side,
        info: &MemoryInfo<'_>,
        place: Place,
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

    /// Binds what the host has written anew: ONNX Runtime copies an input to the GPU when it is bound, and not again.
    /// **Has not run on a GPU yet.**
    fn take_to_gpu(&self) -> Result<(), DeviceError> {
        self.slots.iter().filter(|bound| matches!(bound.side, Side::Input)).try_for_each(|bound| {
            let place = bound.region.place();
            self.bind(&bound.name, bound.side, &self.memory, place, &bound.shape, bound.dtype)
        })
    }

    /// What is in a slot.
    ///
    /// # Panics
    /// When `slot` is another binding's and this one has no such slot or one of another type.
    #[must_use]
    pub fn read<T: Element>(&self, slot: Slot<T>) -> &[T] {
        let bound = &self.slots[slot.index];
        assert!(bound.dtype == T::ONNX, "a slot is only of use with the binding that made it");
        bound.region.as_slice(bound.elements)
    }

    /// What is in a slot, to be written before the next run or changed after it.
    ///
    /// # Panics
    /// As [`read`](Self::read).
    pub fn write<T: Element>(&mut self, slot: Slot<T>) -> &mut [T] {
        let bound = &mut self.slots[slot.index];
        assert!(bound.dtype == T::ONNX, "a slot is only of use with the binding that made it");
        bound.region.as_mut_slice(bound.elements)
    }

    /// Runs the graph once over what is bound.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] with ONNX Runtime's reason, [`DeviceError::NoRoom`] when it took more memory than the
    /// session's pool has; the outputs then hold anything.
    pub fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        if self.in_place.values().any(Option::is_none) {
            let message = "the memory that it updates was given back".into();
            return Err(DeviceError::Runtime { what: "a run failed", message });
        }
        if self.is_on_gpu {
            self.take_to_gpu()?;
        }
        let session = session.inner_mut().ptr().cast_mut();
        // SAFETY: session, options and binding live, `&mut` on the first and the last excludes another run of either,
        // and every bound value's memory is owned and borrowed by nobody (slots: `&mut self`; in place: all there, as
        // looked at above, and never lent).
        let status = unsafe { (ort::api().RunWithBinding)(session, self.options.ptr(), self.inner.ptr()) };
        // SAFETY: the status comes from the call above and is used once.
        let ran = unsafe { ort::Error::result_from_status(status) };
        // Asked after a failure as well, so that the next run is not blamed for it.
        match self.pool.as_ref().and_then(Pool::take_overrun) {
            Some(source) => Err(DeviceError::NoRoom { what: "a run failed", source }),
            None => ran.map_err(DeviceError::runtime("a run failed")),
        }
    }
}

fn c_name(name: &str) -> Result<CString, DeviceError> {
    CString::new(name).map_err(|e| DeviceError::Runtime { what: "a tensor's name", message: e.to_string() })
}

/// An `OrtValue` over memory that somebody else owns.
struct Value(NonNull<ort::sys::OrtValue>);

impl Value {
    /// A tensor of `shape` over the start of `place`, which must hold it.
    fn over(
        info: &MemoryInfo<'_>,
        place: Place,
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
        // SAFETY: it is ours and released once; bindings hold references of their own.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}
