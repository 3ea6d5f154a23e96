//! `eka.json`, the manifest of a model directory.
//!
//! `export` writes it and everything else reads it. A reader rejects an unknown schema.
//!
//! A directory that onnxruntime-genai's builder wrote has no manifest: its `genai_config.json` is read, which has nearly the
//! same content.

mod adapter;
mod error;
mod genai;
mod identity;
mod json;
pub mod layout;
mod read;
mod types;
mod validate;

pub use self::{
    adapter::{
        ADAPTER_FILE, ADAPTER_SCHEMA, ADAPTER_TENSORS, ADAPTERS, AdapterManifest, AdapterManifestError,
        AdapterPair, AdapterProduct, adapter_dir, is_adapter_name,
    },
    error::ManifestError,
    identity::identity,
    read::{is_model, path},
    types::{
        AdapterSummary, CalibrationRecord, Dims, Dtype, ExportOptions, FILE_NAME, FileRecord, GraphNames,
        Lengths, Manifest, OLDEST_SCHEMA, Override, Provenance, Quantization, SCHEMA,
    },
    validate::{MAX_DIMENSION, MAX_LAYERS},
};
