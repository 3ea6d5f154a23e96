//! A directory under `models/` as an ONNX Runtime session, checked once at load.
//!
//! The manifest is compared with what the graph declares before anything runs. A graph and a manifest of two exports, or a
//! file edited by hand, are an error at load that names the tensor.

mod cache;
mod cache_shape;
mod error;
mod float16_casts;
mod graph_facts;
mod graph_file;
mod graph_rewrite;
mod host_cache;
mod integrity;
mod load;
mod pass;
mod validate;

pub use self::{
    cache::Cache,
    cache_shape::expected_cache_shape,
    error::{GraphError, IntegrityError, ModelError},
    host_cache::HostCache,
    integrity::{Scope, check_directory},
    load::Model,
    pass::Pass,
};
