//! Memory under tensors.
//!
//! ```text
//! HostBuffer: one anonymous mapping, zeroed, page-aligned, lazily committed
//!   ├── owned by a Binding's slot   host reads and writes it between runs (`Slot<T>`)
//!   └── DeviceTensor (Rc)           only the device touches it: no reference into it is ever handed out
//! Buffer: a block of a pool, on a GPU or on the host
//!   └── DeviceTensor (Rc)           as above, several of them in one block
//! ```
//!
//! Why a mapping and not the heap: its address is aligned for every kernel; pages that were never touched take no memory, so a
//! cache for 128 Ki positions can be mapped at load and takes memory as it fills; and dropping or discarding it returns the
//! memory to the system immediately.

use std::slice;

use memmap2::{MmapOptions, MmapRaw};

use super::{DeviceError, Element};
use crate::units::Bytes;

/// Start and length of a piece of memory on the host or a device.
#[derive(Clone, Copy)]
pub(super) struct MemorySpan {
    pub(super) first: *mut u8,
    pub(super) bytes: usize,
}

/// A zeroed, page-aligned mapping with a fixed address.
pub(super) struct HostBuffer {
    pub(super) map: MmapRaw,
}

impl HostBuffer {
    /// Maps room for `elements` of `T`.
    pub(super) fn new<T: Element>(elements: usize) -> Result<Self, DeviceError> {
        // The system rejects an empty mapping.
        let length = elements.max(1).saturating_mul(size_of::<T>());
        let map = MmapOptions::new()
            .len(length)
            .map_anon()
            .map_err(|source| DeviceError::Memory { bytes: Bytes::from(length), source })?;
        // Raw, as a reference to the memory must not be made: the device writes it through `pointer`.
        Ok(Self { map: map.into() })
    }

    pub(super) fn bytes(&self) -> usize {
        self.map.len()
    }

    pub(super) fn place(&self) -> MemorySpan {
        MemorySpan { first: self.pointer(), bytes: self.bytes() }
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        self.map.as_mut_ptr()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_buffer_is_zeroed_and_aligned_and_keeps_its_content() {
        let mut region = HostBuffer::new::<f32>(1000).unwrap();
        assert!(region.pointer().addr().is_multiple_of(4096));
        assert!(region.as_slice::<f32>(1000).iter().all(|x| *x == 0.0));
        region.as_mut_slice::<f32>(1000)[999] = 1.5;
        assert_eq!(region.as_slice::<f32>(1000)[999], 1.5);
    }
}
