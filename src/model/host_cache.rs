//! Keys and values in host memory, to read them from a file or write them to one, for models on any device.

use half::{bf16, f16};

use crate::{
    device::{DeviceError, HostCopy},
    prompt_store::{CacheDtype, CacheShape},
    units::Bytes,
};

/// The first positions of a key-value cache, in host memory that no graph uses.
#[derive(Debug)]
pub struct HostCache {
    layers: Vec<[HostCopy; 2]>,
}

impl HostCache {
    /// Allocates room for `positions` of a cache of `shape`.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] when the system has not enough memory.
    pub(super) fn new(shape: CacheShape, positions: usize) -> Result<Self, DeviceError> {
        let layers =
            (0..shape.layers).map(|_| Ok([host_copy(shape, positions)?, host_copy(shape, positions)?]));
        Ok(Self { layers: layers.collect::<Result<_, DeviceError>>()? })
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from(self.layers.iter().flatten().map(|tensor| tensor.bytes().len()).sum::<usize>())
    }

    /// Each layer's keys and then its values, `[kv_heads, positions, row]`, to be written.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.layers.iter_mut().flatten().map(HostCopy::bytes_mut)
    }

    pub(super) fn layers(&self) -> &[[HostCopy; 2]] {
        &self.layers
    }
}

/// Room for `positions` of one tensor of a cache of `shape`.
pub(super) fn host_copy(shape: CacheShape, positions: usize) -> Result<HostCopy, DeviceError> {
    let CacheShape { heads, row, kind, .. } = shape;
    let shape = [1, heads, positions, row];
    match kind {
        CacheDtype::Float32 => HostCopy::new::<f32>(&shape),
        CacheDtype::Float16 => HostCopy::new::<f16>(&shape),
        CacheDtype::Bfloat16 => HostCopy::new::<bf16>(&shape),
        CacheDtype::Int8 => HostCopy::new::<i8>(&shape),
    }
}
