//! What tests share: servers, programs, models, and checks. Tests borrow from here only.

pub(crate) mod adapters;
pub(crate) mod cluster;
pub(crate) mod decoding;
pub(crate) mod export_sources;
pub(crate) mod faulty_worker;
pub(crate) mod files;
pub(crate) mod http2;
pub(crate) mod json_schema;
pub(crate) mod model_folder;
pub(crate) mod models;
pub(crate) mod pages;
pub(crate) mod processes;
pub(crate) mod program;
pub(crate) mod requests;
pub(crate) mod server;
pub(crate) mod tensors;
pub(crate) mod worker;
