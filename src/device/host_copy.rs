//! A copy of a tensor's first positions in host memory that no graph is bound to. Files are written from it and read into it.
//!
//! ```text
//! DeviceTensor, mapped    ──rows──────────────────────────────► HostCopy ──bytes──► a file
//! DeviceTensor, in a pool ──rows──► a contiguous tensor ──whole──►
//! ```
//!
//! On a GPU the device first copies the rows into a contiguous tensor, which is then copied to the host at once. Each of the two
//! steps has run on a GPU, as part of growing caches and of inputs and outputs; both together have not.

use std::rc::Rc;

use super::{
    DeviceError, DeviceTensor, Element, device_tensor::Memory, host_buffer::HostBuffer, pool::Buffer,
};

/// A tensor `[.., positions, last]` in memory that no graph is bound to and that has no other owner.
#[derive(Debug)]
pub struct HostCopy(DeviceTensor);

impl HostCopy {
    /// Maps a zeroed tensor of `shape`.
    ///
    /// # Errors
    /// As [`DeviceTensor::new`].
    pub fn new<T: Element>(shape: &[usize]) -> Result<Self, DeviceError> {
        DeviceTensor::new::<T>(shape).map(Self)
    }

    /// Its content, in the order of the shape.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &*self.0.memory {
            Memory::Mapped(region) => bytemuck::cast_slice(region.as_slice::<i8>(region.bytes())),
            // It is mapped when it is made.
            Memory::Pooled(_) => &[],
        }
    }

    /// As [`bytes`](Self::bytes), to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match Rc::get_mut(&mut self.0.memory) {
            Some(Memory::Mapped(region)) => {
                let length = region.bytes();
                bytemuck::cast_slice_mut(region.as_mut_slice::<i8>(length))
            }
            // As above; the reference count is one, because no method shares the memory.
            Some(Memory::Pooled(_)) | None => &mut [],
        }
    }
}

impl DeviceTensor {
    /// Copies the first positions of this tensor into `copy`, as many as it has.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when it has fewer or the shapes do not match; [`DeviceError::NoRoom`] when its pool has no room for
    /// a copy of the rows; [`DeviceError::Runtime`] when the device fails.
    pub fn copy_out(&self, copy: &mut HostCopy) -> Result<(), DeviceError> {
        let positions = copy.positions();
        match (&*self.memory, &*copy.0.memory) {
            (Memory::Pooled(buffer), Memory::Mapped(region)) => {
                let tight = self.alike_in(buffer.pool(), &copy.0.shape)?;
                tight.take_over(self, positions)?;
                // SAFETY: the buffer is as long, belongs only to this copy, and is not accessed before `across` has
                // returned.
                across(&tight, region, |buffer, host, bytes| unsafe { buffer.download(host, bytes) })
            }
            _ => copy.0.take_over(self, positions),
        }
    }

    /// Copies the first `positions` of `copy` into the first ones of this tensor.
    ///
    /// # Errors
    /// Those of [`copy_out`](Self::copy_out), and when one of the two has fewer positions.
    pub fn copy_in(&self, copy: &HostCopy, positions: usize) -> Result<(), DeviceError> {
        match (&*self.memory, &*copy.0.memory) {
            (Memory::Pooled(buffer), Memory::Mapped(region)) => {
                let tight = self.alike_in(buffer.pool(), &copy.0.shape)?;
                // SAFETY: the buffer is as long, and nothing writes it while `copy` is borrowed, which is until `across` has
                // returned.
                across(&tight, region, |buffer, host, bytes| unsafe { buffer.upload(host, bytes) })?;
                self.take_over(&tight, positions)
            }
            _ => self.take_over(&copy.0, positions),
        }
    }
}

impl HostCopy {
    fn positions(&self) -> usize {
        match *self.0.shape {
            [.., positions, _] => positions,
            _ => 0,
        }
    }
}

/// Copies all of `tight` from or to the host's memory with `copy`, and waits for the copy.
fn across(
    tight: &DeviceTensor,
    region: &HostBuffer,
    copy: impl FnOnce(&Buffer, *mut u8, usize) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    let Memory::Pooled(buffer) = &*tight.memory else { return Ok(()) };
    let bytes = region.bytes();
    if tight.bytes().0 != bytes as u64 {
        return Err(DeviceError::Shape { shape: tight.shape.clone(), needed: bytes, room: bytes });
    }
    let copied = copy(buffer, region.pointer(), bytes);
    // Also after an error, because submitted work still has the buffer's address.
    let waited = buffer.pool().wait();
    copied.and(waited)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 4] = [1, 2, 5, 3];

    /// Content stays the same through copy_in and copy_out, although its rows have another stride in the tensor.
    fn there_and_back(tensor: &DeviceTensor) {
        let mut copy = HostCopy::new::<i8>(&[1, 2, 4, 3]).unwrap();
        assert_eq!(copy.bytes(), [0; 24]);
        copy.bytes_mut().iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
        tensor.copy_in(&copy, 4).unwrap();
        let mut first = HostCopy::new::<i8>(&[1, 2, 2, 3]).unwrap();
        tensor.copy_out(&mut first).unwrap();
        assert_eq!(first.bytes(), [1, 2, 3, 4, 5, 6, 13, 14, 15, 16, 17, 18]);
        // Fewer than there are.
        copy.bytes_mut().fill(9);
        tensor.copy_in(&copy, 1).unwrap();
        tensor.copy_out(&mut first).unwrap();
        assert_eq!(first.bytes(), [9, 9, 9, 4, 5, 6, 9, 9, 9, 16, 17, 18]);
    }

    #[test]
    fn rows_come_back_as_they_went() {
        there_and_back(&DeviceTensor::new::<i8>(&SHAPE).unwrap());
    }

    #[test]
    fn tensors_that_do_not_match_are_refused() {
        let tensor = DeviceTensor::new::<i8>(&SHAPE).unwrap();
        for shape in [[1, 2, 6, 3], [1, 3, 4, 3], [1, 2, 4, 2]] {
            let mut copy = HostCopy::new::<i8>(&shape).unwrap();
            assert!(tensor.copy_out(&mut copy).is_err(), "{shape:?}");
        }
        let mut floats = HostCopy::new::<f32>(&[1, 2, 4, 3]).unwrap();
        assert!(tensor.copy_out(&mut floats).is_err());
        assert!(tensor.copy_in(&HostCopy::new::<i8>(&[1, 2, 4, 3]).unwrap(), 5).is_err());
    }
}
