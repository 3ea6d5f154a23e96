//! What a queue reports to those who run its jobs elsewhere.

use tokio::time::Instant;

use super::limits::Terms;
use crate::{
    job::{JobId, ModelId, TraceLink},
    units::Tokens,
};

/// A change of a remote queue.
#[derive(Clone, Debug)]
pub enum QueueChange {
    /// Jobs of one group wait now.
    Accepted(AcceptedGroup),
    /// A waiting job of this group was removed: its client has left, or its deadline has passed.
    Withdrawn(JobId),
}

/// Jobs that run together, without their prompts.
#[derive(Clone, Debug)]
pub struct AcceptedGroup {
    /// The id of the first job.
    pub group: JobId,
    /// Their model.
    pub model: ModelId,
    /// How they wait and run.
    pub terms: Terms,
    /// The length of their prompts together.
    pub prompt: Tokens,
    /// When they were accepted.
    pub accepted: Instant,
    /// Parent span, if the request is traced.
    pub trace: Option<TraceLink>,
}
