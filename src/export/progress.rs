//! Progress reports of an export.

use crate::units::Bytes;

/// A part of the work that takes long enough to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The sources are read once to be identified by their SHA-256.
    Sources,
    /// Weights are merged, quantized and written.
    Weights,
    /// The files that were written are read once for their SHA-256.
    Checksums,
}

/// Receives the progress of an export, from several threads, and may cancel it. `()` ignores it.
pub trait Progress: Sync {
    /// `stage` begins; it is over when `total` has been advanced by, page padding aside.
    fn begin(&self, stage: Stage, total: Bytes);

    /// `by` more of the stage is done.
    fn advance(&self, by: Bytes);

    /// Whether the export should stop and remove what it has written. Asked between pieces of the work.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {
    fn begin(&self, _: Stage, _: Bytes) {}

    fn advance(&self, _: Bytes) {}
}
