//! The manifest of an adapter that is served beside its base.
//!
//! Its directory is `adapters/NAME` in the model directory of the base:
//!
//! | file | content |
//! |---|---|
//! | `adapter.json` | this manifest |
//! | `adapter.safetensors` | `NODE.a` `[rank, depth]`, `NODE.b.I` `[columns, rank]` of pair `I`, and vectors `[columns]`: `NODE.scaled_bias`, `NODE.bias`, `NODE.magnitude`, `NODE.base`, `NODE.cross`, `NODE.added` |

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FileRecord, json::to_json};
use crate::files;

/// The folder with the adapters of a model directory.
pub const ADAPTERS: &str = "adapters";

/// The manifest's file name in the directory of an adapter.
pub const ADAPTER_FILE: &str = "adapter.json";

/// The file with its tensors.
pub const ADAPTER_TENSORS: &str = "adapter.safetensors";

/// The schema that this version writes and reads.
pub const ADAPTER_SCHEMA: u32 = 1;

/// The longest name of an adapter.
const MAX_NAME: usize = 64;

/// The manifest of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterManifest {
    /// [`ADAPTER_SCHEMA`].
    pub schema: u32,
    /// `eka` and its version.
    pub exporter: String,
    /// [Identity](super::identity) of the base that it was exported for.
    pub base: String,
    /// Rank `r`, unless a pattern overrides it.
    pub rank: usize,
    /// `lora_alpha`, unless a pattern overrides it.
    pub alpha: f32,
    /// Names of the modules that it changes, without their layers.
    pub targets: Vec<String>,
    /// Why it cannot be mixed with other adapters; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<String>,
    /// The nodes of the graph that it changes.
    pub products: Vec<AdapterProduct>,
    /// The files that it was exported from.
    pub sources: Vec<FileRecord>,
    /// The file with its tensors.
    pub files: Vec<FileRecord>,
}

/// Why the manifest of an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterManifestError {
    /// It is missing or cannot be read.
    #[error("{}: {source}; expected an adapter written by `eka export-adapter`; check the path and its permissions, or export the adapter again", path.display())]
    Read {
        /// The manifest's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is not JSON of this layout.
    #[error("{}: {source}; export the adapter again with this version of eka", path.display())]
    Parse {
        /// The manifest's path.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("{}: the manifest has schema {found}, but this version of eka reads {ADAPTER_SCHEMA}; run `eka export-adapter` again", path.display())]
    Schema {
        /// The manifest's path.
        path: PathBuf,
        /// The schema that it names.
        found: u32,
    },
}

/// Changes to one matrix product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterProduct {
    /// Name of the node.
    pub node: String,
    /// The layers of the node that have a pair of matrices.
    pub pairs: Vec<AdapterPair>,
    /// Whether it scales, and maybe shifts, the node's input: a tuned norm.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changes_input: bool,
}

/// LoRA's matrices A and B of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterPair {
    /// First output column of the layer in the node.
    pub first_column: usize,
    /// Output columns of the layer.
    pub columns: usize,
    /// The rank.
    pub rank: usize,
    /// Factor of the product.
    pub scale: f32,
}

impl AdapterManifest {
    /// Reads the manifest in `dir`; also returns the SHA-256 of its content, which identifies the adapter.
    ///
    /// # Errors
    /// [`AdapterManifestError`] when the file is missing or not of this schema.
    pub fn read(dir: &Path) -> Result<(Self, [u8; 32]), AdapterManifestError> {
        let path = dir.join(ADAPTER_FILE);
        let json = files::read(&path, files::MAX_JSON)
            .map_err(|source| AdapterManifestError::Read { path: path.clone(), source })?;
        let failed = |source| AdapterManifestError::Parse { path: path.clone(), source };
        let Schema { schema } = serde_json::from_slice(&json).map_err(failed)?;
        if schema != ADAPTER_SCHEMA {
            return Err(AdapterManifestError::Schema { path, found: schema });
        }
        let manifest = serde_json::from_slice(&json).map_err(failed)?;
        Ok((manifest, Sha256::digest(&json).into()))
    }

    /// The content of the file.
    #[must_use]
    pub fn to_json(&self) -> String {
        to_json(self)
    }
}

#[derive(Deserialize)]
struct Schema {
    schema: u32,
}

/// The directory of the adapter `name` of the model in `model_dir`.
#[must_use]
pub fn adapter_dir(model_dir: &Path, name: &str) -> PathBuf {
    model_dir.join(ADAPTERS).join(name)
}

/// Whether `name` can be the name of an adapter: 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or digit. So it is safe in
/// a path, in `model:adapter`, and as a label of metrics. `model:latest` means the model itself to Ollama's clients.
#[must_use]
pub fn is_adapter_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric();
    (1..=MAX_NAME).contains(&name.len())
        && name != "latest"
        && name.bytes().all(|byte| is_word(byte) || b"._-".contains(&byte))
        && name.bytes().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_in_model_names() {
        for name in ["a", "7", "fr-CA_v1.2"] {
            assert!(is_adapter_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "-a", "ä", "a b", "latest", &"x".repeat(65)] {
            assert!(!is_adapter_name(name), "{name}");
        }
    }

    #[test]
    fn a_manifest_is_read_back_and_another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pair = AdapterPair { first_column: 0, columns: 8, rank: 2, scale: 0.5 };
        let manifest = AdapterManifest {
            schema: ADAPTER_SCHEMA,
            exporter: "eka".into(),
            base: "ab".into(),
            rank: 2,
            alpha: 4.0,
            targets: vec!["q_proj".into()],
            exclusive: None,
            products: vec![AdapterProduct { node: "head".into(), pairs: vec![pair], changes_input: true }],
            sources: Vec::new(),
            files: Vec::new(),
        };
        std::fs::write(dir.path().join(ADAPTER_FILE), manifest.to_json()).unwrap();
        let (read, hash) = AdapterManifest::read(dir.path()).unwrap();
        assert_eq!((read, hash.len()), (manifest.clone(), 32));
        let newer = AdapterManifest { schema: 2, ..manifest };
        std::fs::write(dir.path().join(ADAPTER_FILE), newer.to_json()).unwrap();
        let error = AdapterManifest::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("schema 2") && error.contains("eka export-adapter"), "{error}");
    }
}
