//! A model directory, loaded as an ONNX Runtime session and checked at load.
//!
//! The graph's inputs and outputs are compared with the manifest before the first run. So a graph that belongs to another manifest,
//! or a file that was edited by hand, is an error at load that names the tensor.

mod adapters;
mod cache;
mod cache_shape;
mod error;
mod external_data;
mod float16_casts;
mod graph_facts;
mod graph_file;
mod graph_rewrite;
mod hidden_states;
mod host_cache;
mod integrity;
mod load;
mod moe_nodes;
mod packed_cache;
mod packed_matrices;
mod pass;
mod scaled_casts;
mod validate;

pub use self::{
    adapters::{AdapterLoadError, LoadedAdapter},
    cache::Cache,
    cache_shape::expected_cache_shape,
    error::{GraphError, IntegrityError, ModelError},
    host_cache::HostCache,
    integrity::{Scope, check_directory},
    load::{Model, weights_read},
    pass::Pass,
};
