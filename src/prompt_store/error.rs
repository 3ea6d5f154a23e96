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
    /// There is none.
    #[error("there is none of this name; GET /admin/cache lists those that there are")]
    Missing,
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not begin as such a file does.
    #[error("its header is damaged, or it is no saved prompt: {message}; save it again")]
    Header {
        /// What is wrong with it.
        message: String,
    },
    /// It was written by another version.
    #[error("it has format {found}, and this version of eka reads format {}; save it again", FORMAT)]
    Format {
        /// The format that it names.
        found: String,
    },
    /// It is not as long as its header says.
    #[error(
        "it has {found} bytes and its header tells of {expected}, so it was cut or damaged; save it again"
    )]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Those of header and tensors.
        expected: u64,
    },
    /// What follows the header is not what was written.
    #[error("its content is not what was written, as its SHA-256 tells; save it again")]
    Sum,
    /// It was computed by another model.
    #[error("it was computed by another export ({saved}), not by what {model} is now; save it again")]
    Model {
        /// What that model was called.
        saved: String,
        /// The model that it was to be used with.
        model: String,
    },
    /// The model's cache is of another type.
    #[error(
        "its keys and values are {found}, and the cache is {expected} here; save it again, or set engine.kv_cache"
    )]
    CacheDtype {
        /// The file's type.
        found: CacheDtype,
        /// The cache's type.
        expected: CacheDtype,
    },
    /// The model's cache has other sizes.
    #[error(
        "it has {found:?} of layers, heads and elements a row, and the model {expected:?}; save it again"
    )]
    Sizes {
        /// The file's.
        found: [usize; 3],
        /// The model's.
        expected: [usize; 3],
    },
    /// It leaves no room for an answer.
    #[error("it has {tokens}, and the context length is {capacity} here; raise engine.context_length")]
    Context {
        /// Its tokens.
        tokens: Tokens,
        /// Most positions.
        capacity: Tokens,
    },
    /// A token that the model does not have.
    #[error(
        "it has the token id {id}, which is outside the model's vocabulary of {vocabulary}; save it again"
    )]
    Token {
        /// The id.
        id: u32,
        /// Ids run from 0 to one less than this.
        vocabulary: usize,
    },
    /// It takes more memory than there may be.
    #[error(
        "it takes {needed} of memory, and engine.prefix_cache_bytes has {room} left for restored prompts; raise it, or delete \
         one that is restored"
    )]
    Room {
        /// What it takes.
        needed: Bytes,
        /// What may be taken.
        room: Bytes,
    },
}

impl PromptStoreError {
    /// Whether the system is at fault, and not what was asked for or the file: its words may name places.
    #[must_use]
    pub const fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// For errors of the system at a path.
pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> PromptStoreError + '_ {
    |source| PromptStoreError::Io { path: path.into(), source }
}
