//! `eka.json`, the manifest of a model directory.
//!
//! `export` writes it and everything else reads it. A reader rejects an unknown schema.
//!
//! A directory that onnxruntime-genai's builder wrote has no manifest: its `genai_config.json` is read, which has nearly the
//! same content.

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
        AdapterSummary, CalibrationRecord, Dims, Dtype, ExportOptions, FILE_NAME, FileRecord, GraphNames,
        Lengths, Manifest, OLDEST_SCHEMA, Override, Provenance, Quantization, SCHEMA,
    },
    validate::{MAX_DIMENSION, MAX_LAYERS},
};
