//! Why a saved prompt cannot be written or used.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{CacheDtype, info::FORMAT};
use crate::units::{Bytes, Tokens};

/// Why a file of a saved prompt cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum PromptStoreError {
    /// No prompt is saved under this name.
    #[error("no prompt is saved under this name; GET /admin/cache lists the saved prompts")]
    Missing,
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its header is not a saved prompt's.
    #[error("not a saved prompt, or its header is damaged: {message}; save it again")]
    Header {
        /// The reason.
        message: String,
    },
    /// It was written by another version.
    #[error("unsupported format {found}, expected {}; save it again with this version of eka", FORMAT)]
    Format {
        /// The format that it names.
        found: String,
    },
    /// Its length differs from the header's.
    #[error("truncated or corrupt: {found} bytes, expected {expected} by its header; save it again")]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Those of header and tensors.
        expected: u64,
    },
    /// The checksum of its content does not match.
    #[error("corrupt: the SHA-256 of its content does not match its header; save it again")]
    ChecksumMismatch,
    /// It was computed by another model.
    #[error(
        "computed by another export of the model ({saved}), not by the one that is loaded as {model}; save it again"
    )]
    Model {
        /// What that model was called.
        saved: String,
        /// The model that it was to be used with.
        model: String,
    },
    /// The model's cache is of another type.
    #[error(
        "its keys and values are {found}, expected {expected}; save it again, or set engine.kv_cache to {found}"
    )]
    CacheDtype {
        /// The file's type.
        found: CacheDtype,
        /// The cache's type.
        expected: CacheDtype,
    },
    /// The model's cache has other sizes.
    #[error(
        "its layers, heads and elements per row are {found:?}, expected {expected:?} for this model; save it again"
    )]
    Sizes {
        /// The file's.
        found: [usize; 3],
        /// The model's.
        expected: [usize; 3],
    },
    /// It leaves no room for an answer.
    #[error(
        "it has {tokens}, which leaves no room in a context length of {capacity}; raise engine.context_length"
    )]
    Context {
        /// Its tokens.
        tokens: Tokens,
        /// Maximum number of positions.
        capacity: Tokens,
    },
    /// A token that the model does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary}; save it again")]
    Token {
        /// The id.
        id: u32,
        /// Ids run from 0 to one less than this.
        vocabulary: usize,
    },
    /// It takes more memory than is allowed.
    #[error(
        "it takes {needed} of memory, and engine.prefix_cache_bytes leaves {room} for restored prompts; raise it, or delete a \
         restored prompt"
    )]
    Room {
        /// Memory that it takes.
        needed: Bytes,
        /// Memory that is left.
        room: Bytes,
    },
}

impl PromptStoreError {
    /// Whether it is an I/O error, whose message may contain paths.
    #[must_use]
    pub const fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// Converts an I/O error at a path.
pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> PromptStoreError + '_ {
    |source| PromptStoreError::Io { path: path.into(), source }
}
