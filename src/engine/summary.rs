//! How a generation ended.

use crate::job::{EndReason, Timings, Usage};

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationSummary {
    /// Why the generation ended.
    pub reason: EndReason,
    /// Token counts.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
}
