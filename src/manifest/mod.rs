//! `eka.json`: what a directory under `models/` says about itself.
//!
//! Written by `export`, read by everything else. A reader refuses a schema that it does not know instead of guessing.
//!
//! A directory without one that onnxruntime-genai's builder wrote is read by its `genai_config.json`, which says nearly as
//! much.

mod error;
mod genai;
mod identity;
pub mod layout;
mod read;
mod types;
mod validate;

pub use self::{
    error::ManifestError,
    identity::identity,
    read::{is_model, path},
    types::{
        AdapterSummary, Dims, Dtype, ExportOptions, FILE_NAME, FileRecord, GraphNames, Lengths, Manifest,
        OLDEST_SCHEMA, Override, Provenance, Quantization, SCHEMA,
    },
    validate::MOST_LAYERS,
};
