//! Why a manifest cannot be used.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{OLDEST_SCHEMA, SCHEMA};

/// Why a model directory's manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is missing or cannot be read.
    #[error("{}: {source}; expected a model directory written by `eka export`", path.display())]
    Read {
        /// The manifest's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is not JSON of this layout.
    #[error("{}: {source}; export the model again with this version of eka", path.display())]
    Parse {
        /// The manifest's path.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// It is not what onnxruntime-genai's builder writes for a decoder.
    #[error("{}: {source}; expected a decoder as onnxruntime-genai's model builder writes it", path.display())]
    Genai {
        /// The file's path.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// The graph would be outside of the directory.
    #[error("{}: graph.file is {file:?}, expected a plain name without directories; correct graph.file", path.display())]
    GraphFile {
        /// The file's path.
        path: PathBuf,
        /// The path in the manifest.
        file: String,
    },
    /// It was written by another version.
    #[error("{}: the manifest has schema version {found}, but this version of eka reads {OLDEST_SCHEMA} to {SCHEMA}; export the model again", path.display())]
    Schema {
        /// The manifest's path.
        path: PathBuf,
        /// The schema that it names.
        found: u32,
    },
    /// A recorded file would be outside of the directory.
    #[error("{}: a file is recorded as {file:?}, expected a path within the directory; export the model again", path.display())]
    RecordedFile {
        /// The manifest's path.
        path: PathBuf,
        /// The path in the manifest.
        file: String,
    },
    /// An end token that the model cannot generate.
    #[error("{}: end_tokens contains {id}, but the vocabulary has only {vocab} tokens; correct end_tokens", path.display())]
    EndToken {
        /// The manifest's path.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Number of token ids.
        vocab: usize,
    },
    /// A size or option is out of range.
    #[error("{}: {field} is {value}, {expected}; export the model again", path.display())]
    Value {
        /// The manifest's path.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// The value found.
        value: usize,
        /// The end of the message, beginning with `expected`.
        expected: &'static str,
    },
}

impl ManifestError {
    /// The manifest's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. }
            | Self::Parse { path, .. }
            | Self::Genai { path, .. }
            | Self::GraphFile { path, .. }
            | Self::Schema { path, .. }
            | Self::RecordedFile { path, .. }
            | Self::EndToken { path, .. }
            | Self::Value { path, .. } => path,
        }
    }
}
