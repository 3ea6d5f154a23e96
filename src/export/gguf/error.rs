//! Why a GGUF file cannot be exported.

use std::{io, path::PathBuf};

/// Why a GGUF file cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It is missing or cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The tokenizer and the templates that it contains cannot be written to a temporary directory.
    #[error("{}: cannot write its tokenizer to a temporary directory: {source}; set TMPDIR to a directory with room", path.display())]
    Embedded {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It does not begin as a GGUF file does.
    #[error("{}: {found}; expected a GGUF file of version 2 or 3, little-endian; download it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What its first bytes are.
        found: String,
    },
    /// Its header contradicts itself or the file's length.
    #[error("{}: at byte {position}: {problem}; the file is damaged or incomplete, download it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        position: u64,
        /// What is wrong there.
        problem: String,
    },
    /// A value that is needed is not there, or has another type.
    #[error("{}: {key} is {found}, expected {expected}; convert the model again with llama.cpp's convert_hf_to_gguf.py", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value, or that it is missing.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The file asks for something that this version cannot do.
    #[error(
        "{}: {key} is {value}, which eka does not read from GGUF; supported: {supported}; or export the model's safetensors checkpoint",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The values supported.
        supported: String,
    },
    /// A part of a model that is split into several files.
    #[error("{}: it is part {part} of {parts}, and {} is not there; download all parts into one directory", path.display(), missing.display())]
    MissingPart {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        part: usize,
        /// How many there are.
        parts: usize,
        /// The part that is missing.
        missing: PathBuf,
    },
    /// A tensor that no part of the model uses.
    #[error("{}: tensor {tensor} has no place in a model of architecture {architecture}; a newer version of eka may read it", path.display())]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// The model's architecture.
        architecture: String,
    },
}
