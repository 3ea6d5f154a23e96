//! Why an adapter cannot be merged.

use std::path::PathBuf;

use crate::export::{GgufError, json_config::JsonConfigError, tensors_error::TensorsError};

/// The file with an adapter's configuration.
pub(in crate::export) const CONFIG: &str = "adapter_config.json";

/// Why an adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Its settings cannot be used.
    #[error(transparent)]
    JsonConfig(#[from] JsonConfigError),
    /// Its tensors cannot be used.
    #[error(transparent)]
    Tensors(#[from] TensorsError),
    /// Its GGUF file cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// One of its patterns is not a valid regular expression.
    #[error("{}: {field} has the pattern {pattern:?}: {source}; fix the pattern in that file", path.display())]
    Pattern {
        /// The settings file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// The syntax error.
        source: Box<fancy_regex::Error>,
    },
    /// Its directory has adapters in several subfolders.
    #[error(
        "{}: there is no {CONFIG}, and {} of its subfolders have one: {}; name one of them",
        dir.display(), found.len(), found.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    SeveralInDir {
        /// The directory.
        dir: PathBuf,
        /// The subfolders.
        found: Vec<PathBuf>,
    },
    /// It holds no tensors.
    #[error("{}: it holds no tensors; nothing would be merged", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Tensors that nothing in the base has a use for.
    #[error("{}: nothing in the base uses {}; is this the adapter's base?", path.display(), tensors.join(", "))]
    Unused {
        /// The file.
        path: PathBuf,
        /// Their names.
        tensors: Vec<String>,
    },
    /// Two tensors are the same part of the same module, and differ.
    #[error("{}: {first} and {second} are the same matrix and differ; keep one", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// A part of a module is there without another.
    #[error("{}: {module} has {present} but no {absent}; download the adapter again", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// The module.
        module: String,
        /// The part that is present.
        present: &'static str,
        /// The part that is missing.
        absent: &'static str,
    },
    /// A tensor that exists although the settings exclude it from training.
    #[error("{}: {tensor} contradicts {}, where {reason}; PEFT would leave it out: take both files of one training", path.display(), CONFIG)]
    Contradiction {
        /// The tensors' file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The setting that excludes it.
        reason: &'static str,
    },
    /// The settings name modules that have no tensors.
    #[error(
        "{}: {field} names {name:?}, but there are no tensors for it; download the adapter again",
        path.display()
    )]
    NoTensors {
        /// The tensors' file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// The module that it names.
        name: String,
    },
    /// Two adapters do to one tensor what cannot be added up.
    #[error(
        "adapters {} and {} both change {tensor}, and {what} cannot be combined; pass only one of them",
        first.display(), second.display()
    )]
    Conflict {
        /// One adapter.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// The base's tensor.
        tensor: String,
        /// What one of them does.
        what: &'static str,
    },
    /// The embedding and the head would have different numbers of rows.
    #[error(
        "{}: with this adapter {embedding} has {embedding_rows} rows and {head} has {head_rows}; an adapter that was \
         trained with new tokens must hold both (modules_to_save, or save_embedding_layers=True)",
        path.display()
    )]
    VocabularyDiffers {
        /// The adapter's tensors.
        path: PathBuf,
        /// The embedding's name.
        embedding: String,
        /// Rows of the embedding.
        embedding_rows: usize,
        /// The head's name.
        head: String,
        /// Rows of the head.
        head_rows: usize,
    },
    /// Token ids that are replaced lie outside of the vocabulary.
    #[error("{}: {tensor} is for token {token}, and the vocabulary has {vocab}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The token.
        token: usize,
        /// Tokens that there are.
        vocab: usize,
    },
}
