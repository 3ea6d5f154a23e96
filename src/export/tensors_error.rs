//! Why a file of tensors cannot be used.

use std::{io, path::PathBuf};

use safetensors::tensor::TensorInfo;

/// Why a file of tensors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// It is missing or cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its first bytes are not the length of a header that could be in it.
    #[error(
        "{}: a header of {header_bytes} bytes cannot be in a file of {file_bytes}; this is not a complete safetensors \
         file, download it again",
        path.display()
    )]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// The header's length by its first eight bytes.
        header_bytes: u64,
        /// Its length.
        file_bytes: u64,
    },
    /// The header is not what the format asks for.
    #[error("{}: its header is not valid: {source}; download it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        source: serde_json::Error,
    },
    /// A tensor does not lie where the one before it ends, or is not as long as its shape makes it.
    #[error(
        "{}: {tensor} cannot lie at bytes {} to {}: the tensor before it ends at {before}, and {:?} of shape {:?} ends \
         elsewhere; the file is damaged, download it again",
        path.display(), info.data_offsets.0, info.data_offsets.1, info.dtype, info.shape
    )]
    Offsets {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Its entry in the header.
        info: Box<TensorInfo>,
        /// Where it should start.
        before: u64,
    },
    /// The tensors that the header describes do not end where the file does.
    #[error(
        "{}: the header describes {described} bytes, the file has {file_bytes}; it is truncated or was changed, \
         download it again",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Header and tensors together, as the header has it.
        described: u64,
        /// Its length.
        file_bytes: u64,
    },
    /// A file of PyTorch before version 1.6.
    #[error(
        "{}: it is a bare pickle, as PyTorch wrote before version 1.6, and only its zip format is read; in Python, \
         torch.save(torch.load(file, weights_only=True), file) writes that",
        path.display()
    )]
    LegacyPickle {
        /// The file.
        path: PathBuf,
    },
    /// A file of PyTorch that is not complete, or contradicts itself.
    #[error("{}: it is not a valid PyTorch file: {problem}; download it again", path.display())]
    TorchDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file of PyTorch that holds something other than tensors, which Python would build by running code.
    #[error(
        "{}: it has {found}, and only a dictionary of tensors is read, without running code; if you trust the file, load it in \
         Python and write the tensors with safetensors.torch.save_file",
        path.display()
    )]
    TorchRefused {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
    },
    /// A tensor of a type that weights do not have.
    #[error(
        "{}: {tensor} is {found}; supported: F32, F16, BF16; convert the checkpoint to one of them",
        path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A part of a packed weight is not there.
    #[error("{}: {tensor} has no {end} beside it; download the checkpoint again", path.display())]
    NoPart {
        /// The file.
        path: PathBuf,
        /// A part that is there.
        tensor: String,
        /// The end of the name of the part that is missing.
        end: &'static str,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error(
        "{}: {tensor} has the shape {found:?}, the configuration makes it {expected}; do the two belong together?",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape by the configuration.
        expected: String,
    },
}
