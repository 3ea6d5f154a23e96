//! Parts of the search for libraries, of ONNX Runtime and of CUDA.

use std::{fmt, path::PathBuf};

/// A path that was tried, and why it was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// A library file, or a directory without one.
    pub path: PathBuf,
    /// The problem with it.
    pub found: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.found)
    }
}

/// The numbers in a file's name: its version, which is compared as such.
pub(super) fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}
