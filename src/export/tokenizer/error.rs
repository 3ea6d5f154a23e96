//! Why a tokenizer cannot be converted.

use std::{io, path::PathBuf};

use crate::{export::json_config::JsonConfigError, text::TextError};

/// Why a tokenizer that is not in `tokenizer.json` cannot be converted to it.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A settings file cannot be used.
    #[error(transparent)]
    JsonConfig(#[from] JsonConfigError),
    /// A file contradicts its format, or the others.
    #[error("{}: it is not a valid tokenizer: {problem}; download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tokenizer of a kind that is not converted.
    #[error(
        "{}: {found} is not converted to tokenizer.json; supported: {supported}; in Python, \
         AutoTokenizer.from_pretrained(dir).save_pretrained(dir) writes that file",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What is supported.
        supported: &'static str,
    },
    /// The converted tokenizer cannot be used by a server.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The converted tokenizer cannot be written.
    #[error(
        "cannot write the converted tokenizer to a temporary directory: {source}; set TMPDIR to a directory with room"
    )]
    Write {
        /// The system's error.
        source: io::Error,
    },
}
