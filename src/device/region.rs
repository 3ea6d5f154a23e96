//! Memory under tensors.
//!
//! ```text
//! Region: one anonymous mapping, zeroed, page-aligned, lazily committed
//!   ├── owned by a Binding's slot   host reads and writes it between runs (`Slot<T>`)
//!   └── Shared (Rc)                 only the device touches it: no reference into it is ever handed out
//! ```
//!
//! A mapping instead of the heap: the address is aligned for every kernel, pages that no request has touched cost
//! nothing (a cache for 128 Ki positions may be mapped at load and be paid for as it fills), and it goes back to the
//! system at once when dropped or discarded.

use std::{rc::Rc, slice};

#[cfg(target_os = "linux")]
use memmap2::{Advice, UncheckedAdvice};
use memmap2::{MmapMut, MmapOptions};

use super::DeviceError;
use crate::units::Bytes;

mod sealed {
    pub trait Sealed {}
}

/// An element type of tensors: plain data for which any bit pattern is a value.
pub trait Element: sealed::Sealed + bytemuck::Pod {
    /// What ONNX calls it.
    const ONNX: ort::sys::ONNXTensorElementDataType;
}

macro_rules! elements {
    ($($rust:ty => $onnx:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const ONNX: ort::sys::ONNXTensorElementDataType = ort::sys::ONNXTensorElementDataType::$onnx;
        }
    )*};
}

elements! {
    f32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    half::f16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
    half::bf16 => ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
    i32 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    i64 => ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
}

/// A zeroed, page-aligned mapping with a fixed address.
pub(super) struct Region {
    map: MmapMut,
}

impl Region {
    /// Maps room for `elements` of `T`.
    pub(super) fn new<T: Element>(elements: usize) -> Result<Self, DeviceError> {
        // A mapping of nothing is refused by the system; one element costs a page.
        let length = elements.max(1).saturating_mul(size_of::<T>());
        let map = MmapOptions::new()
            .len(length)
            .map_anon()
            .map_err(|source| DeviceError::Memory { bytes: Bytes::from(length), source })?;
        Ok(Self { map })
    }

    pub(super) fn bytes(&self) -> usize {
        self.map.len()
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.map.as_ptr().cast_mut()
    }

    /// The first `elements` as `T`.
    pub(super) fn as_slice<T: Element>(&self, elements: usize) -> &[T] {
        assert!(elements * size_of::<T>() <= self.bytes(), "a slot's shape was checked against its region");
        // SAFETY: the mapping is page-aligned and holds at least `elements` of `T` (asserted above), any bit pattern is
        // a `T` (`Element: Pod`), and `&self` keeps it mapped and, as a slot's only route, unwritten meanwhile.
        unsafe { slice::from_raw_parts(self.map.as_ptr().cast::<T>(), elements) }
    }

    /// As [`as_slice`](Self::as_slice), to write.
    pub(super) fn as_mut_slice<T: Element>(&mut self, elements: usize) -> &mut [T] {
        assert!(elements * size_of::<T>() <= self.bytes(), "a slot's shape was checked against its region");
        // SAFETY: as in `as_slice`; `&mut self` is the only route to the memory while the slice lives.
        unsafe { slice::from_raw_parts_mut(self.map.as_mut_ptr().cast::<T>(), elements) }
    }
}

/// Memory that only the device reads and writes, bound as input, output or both in any number of bindings.
///
/// It is not `Send`, so all bindings over it stay on one thread, where their runs exclude each other; and it hands out
/// no reference, so nothing in Rust can observe the device writing.
#[derive(Clone)]
pub struct Shared {
    region: Rc<Region>,
    shape: Vec<usize>,
    dtype: ort::sys::ONNXTensorElementDataType,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Shared {
    /// Maps a zeroed tensor of `shape`.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] when the system refuses; [`DeviceError::Shape`] when its size cannot be counted.
    pub fn new<T: Element>(shape: &[usize]) -> Result<Self, DeviceError> {
        let elements = elements(shape, usize::MAX)?;
        Ok(Self { region: Rc::new(Region::new::<T>(elements)?), shape: shape.to_vec(), dtype: T::ONNX })
    }

    /// Bytes mapped; those that were never written cost nothing.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from(self.region.bytes())
    }

    /// Forgets the content and gives its pages back; they read as zero, and cost nothing until written again.
    pub fn discard(&self) {
        #[cfg(target_os = "linux")]
        {
            // SAFETY: on a private anonymous mapping the pages become zeros, which are values of every `Element`; no
            // reference into the mapping exists, as none is ever handed out.
            let advised = unsafe { self.region.map.unchecked_advise(UncheckedAdvice::DontNeed) };
            if let Err(e) = advised {
                tracing::debug!("pages of an idle cache stay: {e}");
            }
        }
    }

    /// Asks for huge pages under it, where the system has them: fewer faults and misses on a cache of many mebibytes.
    pub fn prefer_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Err(e) = self.region.map.advise(Advice::HugePage) {
            tracing::debug!("no huge pages: {e}");
        }
    }

    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn dtype(&self) -> ort::sys::ONNXTensorElementDataType {
        self.dtype
    }
}

/// Elements of `shape`, if `room` holds them.
pub(super) fn elements(shape: &[usize], room: usize) -> Result<usize, DeviceError> {
    let counted = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match counted {
        // Signed sizes are what the runtime counts in.
        Some(n) if n <= room && isize::try_from(n).is_ok_and(|n| n < isize::MAX / 8) => Ok(n),
        _ => Err(DeviceError::Shape { shape: shape.to_vec(), needed: counted.unwrap_or(usize::MAX), room }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_aligned_and_keeps_what_is_written() {
        let mut region = Region::new::<f32>(1000).unwrap();
        assert!(region.pointer().addr().is_multiple_of(4096));
        assert!(region.as_slice::<f32>(1000).iter().all(|x| *x == 0.0));
        region.as_mut_slice::<f32>(1000)[999] = 1.5;
        assert_eq!(region.as_slice::<f32>(1000)[999], 1.5);
    }

    #[test]
    fn a_shape_that_overflows_is_an_error_and_not_a_small_mapping() {
        let refused = Shared::new::<f32>(&[usize::MAX, 2, usize::MAX]);
        assert!(matches!(refused, Err(DeviceError::Shape { .. })), "{refused:?}");
        let refused = Shared::new::<f32>(&[isize::MAX as usize / 2]);
        assert!(refused.is_err(), "{refused:?}");
    }

    #[test]
    fn an_empty_shape_is_a_scalar_and_an_empty_tensor_still_has_an_address() {
        assert_eq!(elements(&[], 1).unwrap(), 1);
        assert!(!Shared::new::<f32>(&[0, 4]).unwrap().region().pointer().is_null());
    }
}
