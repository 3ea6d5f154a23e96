//! The key-value cache, and how it grows.

use half::{bf16, f16};

use super::Model;
use crate::{
    device::{DeviceError, Element, Pool, Shared},
    manifest::Dtype,
    units::Bytes,
};

/// The key-value cache of one timeline, `[1, kv_heads, capacity, head_dim]` for each layer's keys and values.
///
/// The graph updates it in place; which of its positions count is said with each pass, so forgetting the last ones
/// costs nothing. The default one has room for nothing.
#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<[Shared; 2]>,
    capacity: usize,
}

impl Cache {
    /// Positions that it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What it takes of a pool; nothing where its memory is mapped.
    #[must_use]
    pub fn held(&self) -> Bytes {
        Bytes(self.layers.iter().flatten().map(|tensor| tensor.held().0).sum())
    }

    /// Forgets its content and gives mapped memory back; it can be used again at once, from position 0.
    pub fn discard(&self) {
        self.layers.iter().flatten().for_each(Shared::discard);
    }

    pub(super) fn layers(&self) -> &[[Shared; 2]] {
        &self.layers
    }
}

impl Model {
    /// A cache with room for `capacity` positions and the first `used` of `older`: from the model's pool, where it has
    /// one; else mapped, and then only positions that are used cost memory.
    ///
    /// Tensors grow one after the other, so that there is never more than one of them twice. That needs passes to have
    /// let go of `older` before; and when there is no room for a larger one, what was there is gone as well.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] or [`DeviceError::NoRoom`] when there is no room for it.
    pub fn cache(&self, capacity: usize, older: Cache, used: usize) -> Result<Cache, DeviceError> {
        let dims = &self.manifest().dims;
        let shape = [1, dims.kv_heads, capacity, dims.head_dim];
        let larger = |older: Option<Shared>| {
            let tensor = self.tensor(&shape)?;
            older.map_or(Ok(()), |older| tensor.take_over(&older, used))?;
            Ok(tensor)
        };
        // With nothing to copy, the old makes room first.
        let older = if used == 0 {
            drop(older);
            Vec::new()
        } else {
            older.layers
        };
        let older =
            older.into_iter().map(|layer| layer.map(Some)).chain(std::iter::repeat_with(|| [None, None]));
        let layers = older.take(dims.layers).map(|[key, value]| Ok([larger(key)?, larger(value)?]));
        let layers = layers.collect::<Result<_, DeviceError>>().map_err(unable_to_grow)?;
        Ok(Cache { layers, capacity })
    }

    fn tensor(&self, shape: &[usize]) -> Result<Shared, DeviceError> {
        let pool = self.session().pool();
        match self.manifest().dtype {
            Dtype::Float32 => of::<f32>(shape, pool),
            Dtype::Float16 => of::<f16>(shape, pool),
            Dtype::Bfloat16 => of::<bf16>(shape, pool),
        }
    }
}

fn of<T: Element>(shape: &[usize], pool: Option<&Pool>) -> Result<Shared, DeviceError> {
    match pool {
        Some(pool) => Shared::in_pool::<T>(pool, shape),
        None => Shared::new::<T>(shape),
    }
}

/// The pool's words, said of the cache.
fn unable_to_grow(e: DeviceError) -> DeviceError {
    match e {
        DeviceError::NoRoom { source, .. } => {
            DeviceError::NoRoom { what: "the key-value cache cannot grow", source }
        }
        other => other,
    }
}
