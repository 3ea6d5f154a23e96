//! Keys and values in the host's memory, wherever the model computes: what comes from a file and goes to one.

use std::path::Path;

use half::{bf16, f16};

use super::{Cache, Model, graph_facts, graph_file::GraphFile, graph_rewrite, validate::of_layer};
use crate::{
    device::{DeviceError, HostCopy, operators::Format},
    device_spec::CacheChoice,
    manifest::{Dtype, Manifest},
    prompt_store::{CacheDtype, CacheShape},
    units::Bytes,
};

/// The first positions of a key-value cache, in the host's memory and apart from every graph.
#[derive(Debug)]
pub struct HostCache {
    layers: Vec<[HostCopy; 2]>,
}

impl HostCache {
    /// What it takes.
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

/// The sizes of the key-value cache that the model in `dir` would have, without loading it: stored as `cache` says where
/// attention is ours, and as the graph declares it where none is to be, or its attention cannot be.
#[must_use]
pub fn expected_cache_shape(dir: &Path, manifest: &Manifest, cache: Option<CacheChoice>) -> CacheShape {
    let file = GraphFile::read(dir, &manifest.graph.file).ok();
    let format = cache.and_then(|cache| graph_rewrite::cache_format(file.as_ref()?, cache));
    let graph = file.as_ref().and_then(GraphFile::decode).and_then(|model| model.graph);
    let declared =
        graph.and_then(|graph| graph_facts::declared_dtype(&graph, &of_layer(&manifest.graph.past_key, 0)));
    let manifest = Manifest { dtype: declared.unwrap_or(manifest.dtype), ..manifest.clone() };
    shape_of(&manifest, format)
}

/// With attention of our own, the cache is in its format; else it has the graph's type.
fn shape_of(manifest: &Manifest, format: Option<Format>) -> CacheShape {
    let dims = &manifest.dims;
    let kind = match (format, manifest.dtype) {
        (Some(Format::Int8), _) => CacheDtype::Int8,
        (Some(Format::Float16), _) | (None, Dtype::Float16) => CacheDtype::Float16,
        (Some(Format::Float32), _) | (None, Dtype::Float32) => CacheDtype::Float32,
        (None, Dtype::Bfloat16) => CacheDtype::Bfloat16,
    };
    let row = format.map_or(dims.head_dim, |format| format.elements(dims.head_dim));
    CacheShape { layers: dims.layers, heads: dims.kv_heads, row, kind }
}

impl Model {
    /// The sizes of its key-value cache, but for its positions.
    #[must_use]
    pub fn cache_shape(&self) -> CacheShape {
        shape_of(self.manifest(), self.cache_format())
    }

    /// Room for so many positions.
    ///
    /// # Errors
    /// [`DeviceError::Memory`] when the system has none.
    pub fn host_cache(&self, positions: usize) -> Result<HostCache, DeviceError> {
        let layers = (0..self.cache_shape().layers)
            .map(|_| Ok([self.host_copy(positions)?, self.host_copy(positions)?]));
        Ok(HostCache { layers: layers.collect::<Result<_, DeviceError>>()? })
    }

    /// Hands out the first `positions` of each layer's keys and then its values, `[kv_heads, positions, row]`, one after the
    /// other: no more than one of them is there twice.
    ///
    /// # Errors
    /// [`DeviceError`] when the cache has fewer or the device fails, and what `each` says.
    pub fn copy_out<E: From<DeviceError>>(
        &self,
        cache: &Cache,
        positions: usize,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut copy = self.host_copy(positions)?;
        for tensor in cache.layers().iter().flatten() {
            tensor.copy_out(&mut copy)?;
            each(copy.bytes())?;
        }
        Ok(())
    }

    fn host_copy(&self, positions: usize) -> Result<HostCopy, DeviceError> {
        let CacheShape { heads, row, kind, .. } = self.cache_shape();
        let shape = [1, heads, positions, row];
        match kind {
            CacheDtype::Float32 => HostCopy::new::<f32>(&shape),
            CacheDtype::Float16 => HostCopy::new::<f16>(&shape),
            CacheDtype::Bfloat16 => HostCopy::new::<bf16>(&shape),
            CacheDtype::Int8 => HostCopy::new::<i8>(&shape),
        }
    }
}
