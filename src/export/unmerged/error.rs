//! Why an adapter cannot be exported beside a base.

use std::{io, path::PathBuf};

use crate::manifest::ManifestError;

/// Why an adapter cannot be exported beside a base.
#[derive(Debug, thiserror::Error)]
pub enum UnmergedError {
    /// The base's manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The base has no description of its layers.
    #[error(
        "{}: {source}; adapters need a model that this version of eka has exported: export the base again", path.display()
    )]
    Base {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The description of its layers cannot be read.
    #[error("{}: {source}; export the base again", path.display())]
    BaseFormat {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// The base was exported by a version that arranges its layers in another way.
    #[error("{}: another version of eka has exported this base; export the base again", path.display())]
    BaseVersion {
        /// The file.
        path: PathBuf,
    },
    /// The base's graph is not what its description says.
    #[error("{}: {message}; export the base again", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The base's weights cannot be read.
    #[error("{}: {source}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The adapter changes what is neither a linear layer nor a norm before one.
    #[error(
        "{}: it changes {}, and an adapter beside its base can only change linear layers, by low-rank matrices and biases, and norms \
         that only linear layers read; merge it instead, with `eka export --adapter`",
        adapter.display(), tensors.join(", ")
    )]
    NotLinear {
        /// The adapter.
        adapter: PathBuf,
        /// The tensors of the base that it changes.
        tensors: Vec<String>,
    },
    /// A number is infinite or not a number.
    #[error("{}: {tensor} has numbers that are not finite; look for an intact copy", adapter.display())]
    NotFinite {
        /// The adapter.
        adapter: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The name cannot be used.
    #[error(
        "{name:?} cannot be the name of an adapter; use up to 64 letters, digits, dots, underscores and hyphens, beginning with a \
         letter or digit, and not \"latest\", with --name"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The tensors cannot be encoded.
    #[error("the adapter's tensors cannot be written: {0}")]
    Encode(#[from] safetensors::SafeTensorError),
}
