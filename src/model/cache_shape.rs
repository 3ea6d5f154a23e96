//! The sizes and type of a model's key-value cache.

use std::path::Path;

use super::{Model, graph_facts, graph_file::GraphFile, graph_rewrite, validate::of_layer};
use crate::{
    device::operators::Format,
    device_spec::CacheChoice,
    manifest::{Dtype, Manifest},
    prompt_store::{CacheDtype, CacheShape},
};

/// The sizes of the key-value cache that the model in `dir` would have, without loading it. It is stored as `cache` where eka's
/// attention operator runs, and else as the graph declares it.
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

/// The cache has the `format` of eka's attention operator, or else the graph's type.
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
    /// The sizes of its key-value cache, without the positions.
    #[must_use]
    pub fn cache_shape(&self) -> CacheShape {
        shape_of(self.manifest(), self.cache_format())
    }
}
