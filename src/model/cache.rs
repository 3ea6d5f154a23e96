//! The key-value cache, and how it grows.

use half::{bf16, f16};

use super::{HostCache, Model, host_cache::host_copy};
use crate::{
    device::{DeviceError, DeviceTensor, Element, Pool},
    prompt_store::{CacheDtype, CacheShape},
    units::Bytes,
};

/// The key-value cache of one timeline, `[1, kv_heads, capacity, head_dim]` for each layer's keys and values, or rows of
/// another [`Format`](crate::device::operators::Format) in place of `head_dim` numbers.
///
/// The graph updates it in place. Each pass states how many positions are valid, so dropping the last ones is free. The
/// default has no capacity.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<[DeviceTensor; 2]>,
    capacity: usize,
    heads: usize,
}

/// Maximum number of pool blocks of a cache. A block for each tensor would take a hundred allocations before the first token after a
/// trim; a single block would exist twice while it grows.
const BLOCKS: usize = 8;

/// Page size of mapped memory, in bytes.
const PAGE: u64 = 4096;

impl Cache {
    /// Positions that it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Memory that it takes from a pool; zero if its memory is mapped.
    #[must_use]
    pub fn held(&self) -> Bytes {
        Bytes(self.layers.iter().flatten().map(|tensor| tensor.held().0).sum())
    }

    /// Memory that it takes with its first `positions` written: all of its pool memory, and the written pages of mapped
    /// memory.
    #[must_use]
    pub fn spent(&self, positions: usize) -> Bytes {
        let of = |tensor: &DeviceTensor| match tensor.held() {
            Bytes(0) => {
                let rows = (self.capacity * self.heads).max(1) as u64;
                let written = (tensor.bytes().0 / rows * positions as u64).next_multiple_of(PAGE);
                // Each head's rows begin somewhere within a page.
                let pages = if positions == 0 { 0 } else { (written + PAGE) * self.heads as u64 };
                pages.min(tensor.bytes().0.next_multiple_of(PAGE))
            }
            Bytes(held) => held,
        };
        Bytes(self.layers.iter().flatten().map(of).sum())
    }

    /// Whether it comes from a pool.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.held() > Bytes(0)
    }

    /// Maximum number of positions whose [copy](Model::copy) takes no more than `max`.
    #[must_use]
    pub fn capacity_within(&self, max: Bytes) -> usize {
        let tensors = self.layers.len() as u64 * 2;
        let whole: u64 = self.layers.iter().flatten().map(|tensor| tensor.bytes().0).sum();
        let position = whole / self.capacity.max(1) as u64;
        let room = max.0.saturating_sub(tensors * PAGE).checked_div(position).unwrap_or(0);
        usize::try_from(room).unwrap_or(usize::MAX).min(self.capacity)
    }

    /// Overwrites the first `positions` with those of `other`.
    ///
    /// # Errors
    /// [`DeviceError`] when one of the two has fewer, or they belong to different models or devices.
    pub fn take_over(&self, other: &Self, positions: usize) -> Result<(), DeviceError> {
        let pairs = self.layers.iter().flatten().zip(other.layers.iter().flatten());
        pairs.into_iter().try_for_each(|(to, from)| to.take_over(from, positions))
    }

    /// Discards the content and returns mapped memory to the system. It can be used again at once, from position 0.
    pub fn discard(&self) {
        self.layers.iter().flatten().for_each(DeviceTensor::discard);
    }

    /// Overwrites the first `positions` with those of `from`.
    ///
    /// # Errors
    /// As [`take_over`](Self::take_over).
    pub fn fill(&self, from: &HostCache, positions: usize) -> Result<(), DeviceError> {
        let pairs = self.layers.iter().zip(from.layers());
        pairs.into_iter().try_for_each(|([key, value], [from_key, from_value])| {
            key.copy_in(from_key, positions)?;
            value.copy_in(from_value, positions)
        })
    }

    pub(super) fn layers(&self) -> &[[DeviceTensor; 2]] {
        &self.layers
    }
}

impl Model {
    /// A cache with room for `capacity` positions and the first `used` of `older`: from the model's pool, where it has
    /// one; else mapped, and then only positions that are used cost memory.
    ///
    /// A cache consists of a few blocks that grow one after the other, so that only one block exists twice at a time. Passes
    /// must have detached from `older` before. If there is no room for the larger cache, the content of `older` is lost.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] or [`DeviceError::NoRoom`] when memory is short.
    pub fn cache(&self, capacity: usize, older: Cache, used: usize) -> Result<Cache, DeviceError> {
        let CacheShape { layers: count_of_layers, heads, row, .. } = self.cache_shape();
        let shape = [1, heads, capacity, row];
        // With nothing to copy, the old cache is freed first.
        let older = if used == 0 {
            drop(older);
            Vec::new()
        } else {
            older.layers
        };
        let mut older = older.into_iter();
        let mut layers = Vec::with_capacity(count_of_layers);
        while layers.len() < count_of_layers {
            let count = count_of_layers.div_ceil(BLOCKS).min(count_of_layers - layers.len());
            let tensors = self.tensors(&shape, count * 2).map_err(unable_to_grow)?;
            for layer in tensors.as_chunks::<2>().0 {
                for (larger, older) in layer.iter().zip(older.next().into_iter().flatten()) {
                    larger.take_over(&older, used)?;
                }
                layers.push(layer.clone());
            }
        }
        Ok(Cache { layers, capacity, heads })
    }

    /// A cache of the first `positions` of another, with room for no more.
    ///
    /// # Errors
    /// As [`cache`](Self::cache).
    pub fn copy(&self, cache: &Cache, positions: usize) -> Result<Cache, DeviceError> {
        let copy = self.cache(positions, Cache::default(), 0)?;
        copy.take_over(cache, positions).map(|()| copy)
    }

    /// Room in the host's memory for `positions` of a cache.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] when the system has none.
    pub fn host_cache(&self, positions: usize) -> Result<HostCache, DeviceError> {
        HostCache::new(self.cache_shape(), positions)
    }

    /// Copies the first `positions` of `cache` to the host and gives them to `each`: for each layer its keys and then its
    /// values, `[kv_heads, positions, row]`. Only one tensor at a time exists twice.
    ///
    /// # Errors
    /// [`DeviceError`] when the cache has fewer positions or the device fails, and the errors of `each`.
    pub fn copy_out<E: From<DeviceError>>(
        &self,
        cache: &Cache,
        positions: usize,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut copy = host_copy(self.cache_shape(), positions)?;
        for tensor in cache.layers().iter().flatten() {
            tensor.copy_out(&mut copy)?;
            each(copy.bytes())?;
        }
        Ok(())
    }

    /// Memory of one position of its cache.
    #[must_use]
    pub fn position(&self) -> Bytes {
        self.cache_shape().bytes(1)
    }

    fn tensors(&self, shape: &[usize], count: usize) -> Result<Vec<DeviceTensor>, DeviceError> {
        let pool = self.session().pool();
        match self.cache_shape().kind {
            CacheDtype::Int8 => of::<i8>(shape, count, pool),
            CacheDtype::Float16 => of::<f16>(shape, count, pool),
            CacheDtype::Float32 => of::<f32>(shape, count, pool),
            CacheDtype::Bfloat16 => of::<bf16>(shape, count, pool),
        }
    }
}

fn of<T: Element>(
    shape: &[usize],
    count: usize,
    pool: Option<&Pool>,
) -> Result<Vec<DeviceTensor>, DeviceError> {
    match pool {
        Some(pool) => DeviceTensor::in_pool::<T>(pool, shape, count),
        None => (0..count).map(|_| DeviceTensor::new::<T>(shape)).collect(),
    }
}

/// Says in the pool's error that the cache cannot grow.
fn unable_to_grow(e: DeviceError) -> DeviceError {
    match e {
        DeviceError::NoRoom { source, .. } => {
            DeviceError::NoRoom { what: "the key-value cache cannot grow", source }
        }
        other => other,
    }
}
