//! Limits on the sizes and paths of a manifest.
//!
//! A manifest may have been written or edited by any program. Readers multiply its sizes and open the files that it names
//! without further checks, so both are checked here.

use std::path::{Component, Path};

use super::{Dims, Manifest, ManifestError, Quantization};

/// More layers than any published decoder has: each has names and tensors, so millions would exhaust memory.
pub const MAX_LAYERS: usize = 1024;

/// Largest dimension of a model. Products of two of them fit 64 bits.
pub const MAX_DIMENSION: usize = 1 << 24;

impl Manifest {
    /// Checks sizes and paths; `path` is the manifest's.
    pub(super) fn validate(&self, path: &Path) -> Result<(), ManifestError> {
        if Path::new(&self.graph.file).file_name().is_none_or(|name| name != self.graph.file.as_str()) {
            return Err(ManifestError::GraphFile { path: path.into(), file: self.graph.file.clone() });
        }
        if let Some(record) = self.files.iter().find(|record| !is_within(&record.path)) {
            return Err(ManifestError::RecordedFile { path: path.into(), file: record.path.clone() });
        }
        if let Some((field, value, expected)) = self.impossible() {
            return Err(ManifestError::Value { path: path.into(), field, value, expected });
        }
        let vocab = self.dims.vocab;
        match self.end_tokens.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(ManifestError::EndToken { path: path.into(), id, vocab }),
            None => Ok(()),
        }
    }

    /// The first size that is out of range, and its range. Readers multiply sizes without checking them again.
    fn impossible(&self) -> Option<(&'static str, usize, &'static str)> {
        let Dims { layers, hidden, heads, kv_heads, head_dim, vocab, .. } = self.dims;
        let sizes = [
            ("layers", layers),
            ("hidden", hidden),
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
            ("vocab", vocab),
            ("context_length", self.context_length),
        ];
        if let Some((field, value)) =
            sizes.into_iter().find(|(_, value)| !(1..=MAX_DIMENSION).contains(value))
        {
            return Some((field, value, "expected 1 to 16777216"));
        }
        if layers > MAX_LAYERS {
            return Some(("layers", layers, "expected at most 1024"));
        }
        if heads * head_dim > MAX_DIMENSION {
            return Some(("head_dim", head_dim, "expected heads that are together at most 16777216 wide"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Some(("kv_heads", kv_heads, "expected a divisor of heads"));
        }
        let Quantization { bits, block_size, .. } = self.quantization?;
        if !matches!(bits, 4 | 8) {
            return Some(("bits", bits.into(), "expected 4 or 8"));
        }
        (!matches!(block_size, 32 | 64 | 128)).then_some(("block_size", block_size, "expected 32, 64 or 128"))
    }
}

/// Whether a relative path stays within its directory.
fn is_within(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}
