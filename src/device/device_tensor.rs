//! A tensor that only the device reads and writes, such as the key-value cache.

use std::{fmt, rc::Rc};

#[cfg(target_os = "linux")]
use memmap2::UncheckedAdvice;

use super::{
    DeviceError, Pool,
    element::{Element, elements},
    host_buffer::{HostBuffer, MemorySpan},
    pool::{ALIGNMENT, Buffer, Described},
    strided_copy::StridedCopy,
};
use crate::units::Bytes;

/// Memory that only the device reads and writes, bound as input, output or both in any number of bindings.
///
/// It is not `Send`, so all its bindings stay on one thread, where only one of them runs at a time. It has no method that returns
/// a reference to its memory, so Rust code cannot observe the device writing.
#[derive(Clone)]
pub struct DeviceTensor {
    pub(super) memory: Rc<Memory>,
    /// Its start and length in `memory`, and the bytes that the pool counts for it.
    offset: usize,
    bytes: usize,
    held: Bytes,
    pub(super) shape: Vec<usize>,
    dtype: ort::sys::ONNXTensorElementDataType,
    element_bytes: usize,
}

/// The memory of a [`DeviceTensor`].
pub(super) enum Memory {
    Mapped(HostBuffer),
    Pooled(Buffer),
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTensor").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl DeviceTensor {
    /// Maps a zeroed tensor of `shape`.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] when the system rejects; [`DeviceError::Shape`] when its size cannot be counted.
    pub fn new<T: Element>(shape: &[usize]) -> Result<Self, DeviceError> {
        let elements = elements(shape, usize::MAX)?;
        let region = HostBuffer::new::<T>(elements)?;
        let bytes = region.bytes();
        let memory = Rc::new(Memory::Mapped(region));
        Ok(Self::part::<T>(memory, shape, (0, bytes), Bytes(0)))
    }

    /// Allocates `count` tensors of `shape` in `pool` as one block. Their content is undefined until it is written. The block is
    /// freed when the last of them is dropped.
    ///
    /// # Errors
    /// [`DeviceError::NoRoom`] when the pool is full; [`DeviceError::Shape`] when their size cannot be counted.
    pub fn in_pool<T: Element>(pool: &Pool, shape: &[usize], count: usize) -> Result<Vec<Self>, DeviceError> {
        let bytes = elements(shape, usize::MAX)?.max(1).saturating_mul(size_of::<T>());
        let stride = bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let buffer = pool.buffer(Bytes::from(stride.saturating_mul(count)))?;
        let (held, parts) = (buffer.held().0, count.max(1) as u64);
        let memory = Rc::new(Memory::Pooled(buffer));
        let part = |number: usize| {
            let rest = if number == 0 { held % parts } else { 0 };
            let place = (number * stride, bytes);
            Self::part::<T>(Rc::clone(&memory), shape, place, Bytes(held / parts + rest))
        };
        Ok((0..count).map(part).collect())
    }

    /// A new tensor in `pool` with the same element type and another shape.
    pub(super) fn alike_in(&self, pool: &Pool, shape: &[usize]) -> Result<Self, DeviceError> {
        let bytes = elements(shape, usize::MAX)?.max(1).saturating_mul(self.element_bytes);
        let buffer = pool.buffer(Bytes::from(bytes))?;
        let (held, memory) = (buffer.held(), Rc::new(Memory::Pooled(buffer)));
        Ok(Self { memory, offset: 0, bytes, held, shape: shape.to_vec(), ..*self })
    }

    fn part<T: Element>(
        memory: Rc<Memory>,
        shape: &[usize],
        (offset, bytes): (usize, usize),
        held: Bytes,
    ) -> Self {
        let (shape, dtype, element_bytes) = (shape.to_vec(), T::ONNX, size_of::<T>());
        Self { memory, offset, bytes, held, shape, dtype, element_bytes }
    }

    /// Its size. Pages of mapped memory that were never written take no memory.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from(self.bytes)
    }

    /// Pool memory that it takes; zero for mapped memory, which can be discarded.
    #[must_use]
    pub fn held(&self) -> Bytes {
        self.held
    }

    /// Copies the first `kept` of the next-to-last dimension out of `older`, whose other dimensions are the same: rows
    /// `[.., kept, last]` to their new stride. On a GPU the copy is queued on the stream, without waiting.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when the shapes do not match; [`DeviceError::Runtime`] when the device fails.
    pub fn take_over(&self, older: &Self, kept: usize) -> Result<(), DeviceError> {
        if Rc::ptr_eq(&self.memory, &older.memory) && self.offset == older.offset {
            return Ok(());
        }
        let refused = || DeviceError::Shape { shape: older.shape.clone(), needed: kept, room: 0 };
        let rows = self.rows(older, kept).ok_or_else(refused)?;
        match (&*older.memory, &*self.memory) {
            (Memory::Mapped(from), Memory::Mapped(to)) => {
                let (min, max) = rows.spans().ok_or_else(refused)?;
                if min > from.bytes() || max > to.bytes() {
                    return Err(refused());
                }
                // SAFETY: the mappings are as long as the spans (checked above). No reference to either exists, because no method
                // returns one, and no run writes at the same time, because their bindings stay on this thread.
                unsafe { rows.copy(from.pointer(), to.pointer()) };
                Ok(())
            }
            (Memory::Pooled(from), Memory::Pooled(to)) => to.copy_rows(self.offset, from, older.offset, rows),
            _ => Err(refused()),
        }
    }

    /// The rows to copy; `None` if the shapes do not match.
    fn rows(&self, older: &Self, kept: usize) -> Option<StridedCopy> {
        let ([outer @ .., to, last], [older_outer @ .., from, older_last]) = (&*self.shape, &*older.shape)
        else {
            return None;
        };
        let is_alike = (outer, last, self.dtype) == (older_outer, older_last, older.dtype);
        let count = elements(outer, usize::MAX).ok()?;
        let row = self.element_bytes.checked_mul(*last)?;
        (is_alike && kept <= *from.min(to)).then_some(StridedCopy {
            count,
            bytes: row.checked_mul(kept)?,
            from: row.checked_mul(*from)?,
            to: row.checked_mul(*to)?,
        })
    }

    /// Discards the content and returns its pages to the system: they read as zero and take no memory until they are written
    /// again. Memory of a pool is not returned.
    pub fn discard(&self) {
        #[cfg(target_os = "linux")]
        if let Memory::Mapped(region) = &*self.memory {
            // SAFETY: on a private anonymous mapping the pages become zeros, which are values of every `Element`; no reference to
            // the mapping exists, because no method returns one.
            let advised = unsafe { region.map.unchecked_advise(UncheckedAdvice::DontNeed) };
            if let Err(e) = advised {
                tracing::debug!("pages of an idle cache stay: {e}");
            }
        }
    }

    /// Its start and length.
    pub(super) fn place(&self) -> MemorySpan {
        match &*self.memory {
            Memory::Mapped(region) => region.place(),
            Memory::Pooled(buffer) => {
                MemorySpan { first: buffer.address().as_ptr().wrapping_add(self.offset), bytes: self.bytes }
            }
        }
    }

    /// ONNX Runtime's description of the memory, unless it is plain host memory.
    pub(super) fn described(&self) -> Option<Described<'_>> {
        match &*self.memory {
            Memory::Mapped(_) => None,
            Memory::Pooled(buffer) => Some(buffer.described()),
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn dtype(&self) -> ort::sys::ONNXTensorElementDataType {
        self.dtype
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    #[test]
    fn a_shape_that_overflows_is_an_error_and_not_a_small_mapping() {
        let refused = DeviceTensor::new::<f32>(&[usize::MAX, 2, usize::MAX]);
        assert!(matches!(refused, Err(DeviceError::Shape { .. })), "{refused:?}");
        let refused = DeviceTensor::new::<f32>(&[isize::MAX as usize / 2]);
        assert!(refused.is_err(), "{refused:?}");
    }

    /// A tensor that holds 0, 1, 2 and so on.
    fn counting(shape: &[usize]) -> DeviceTensor {
        let shared = DeviceTensor::new::<i32>(shape).unwrap();
        for n in 0..elements(shape, usize::MAX).unwrap() {
            let element = shared.place().first.cast::<i32>().wrapping_add(n);
            // SAFETY: the mapping holds as many elements, and no other pointer to it exists.
            unsafe { element.write(i32::try_from(n).unwrap()) };
        }
        shared
    }

    fn content(shared: &DeviceTensor) -> Vec<i32> {
        let room = elements(shared.shape(), usize::MAX).unwrap();
        // SAFETY: the mapping holds as many elements, and nothing writes to it.
        unsafe { slice::from_raw_parts(shared.place().first.cast::<i32>(), room) }.to_vec()
    }

    #[test]
    fn a_larger_tensor_takes_over_the_content_of_a_smaller_one() {
        let (older, larger) = (counting(&[1, 2, 3, 2]), DeviceTensor::new::<i32>(&[1, 2, 5, 2]).unwrap());
        larger.take_over(&older, 2).unwrap();
        assert_eq!(
            content(&larger),
            [[0, 1, 2, 3, 0, 0, 0, 0, 0, 0], [6, 7, 8, 9, 0, 0, 0, 0, 0, 0]].concat()
        );
        let smaller = DeviceTensor::new::<i32>(&[1, 2, 1, 2]).unwrap();
        smaller.take_over(&older, 1).unwrap();
        assert_eq!(content(&smaller), [0, 1, 6, 7]);
    }

    #[test]
    fn tensors_that_do_not_go_together_are_refused() {
        let older = counting(&[1, 2, 3, 2]);
        let refused = |shape: &[usize], kept| {
            let e = DeviceTensor::new::<i32>(shape).unwrap().take_over(&older, kept).unwrap_err();
            assert!(matches!(e, DeviceError::Shape { .. }), "{e}");
        };
        refused(&[1, 2, 5, 2], 4);
        refused(&[1, 2, 2, 2], 3);
        refused(&[1, 3, 5, 2], 1);
        refused(&[1, 2, 5, 3], 1);
        refused(&[12], 1);
        let halves = DeviceTensor::new::<half::f16>(&[1, 2, 5, 2]).unwrap();
        assert!(halves.take_over(&older, 1).is_err());
    }

    #[test]
    fn an_empty_shape_is_a_scalar_and_an_empty_tensor_still_has_an_address() {
        assert_eq!(elements(&[], 1).unwrap(), 1);
        assert!(!DeviceTensor::new::<f32>(&[0, 4]).unwrap().place().first.is_null());
    }
}
