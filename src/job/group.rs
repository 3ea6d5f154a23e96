//! Jobs that run together.

use tokio_util::sync::CancellationToken;

use super::request::Job;

/// One of the jobs that a slot runs together: the choices of one prompt, or several prompts of one request. They have the same
/// model and settings, and differ in id, prompt, answer and seed.
#[derive(Clone, Debug)]
pub struct GroupedJob {
    /// The job.
    pub job: Job,
    /// Cancelled when its client has left, or needs no more of its answer. The others go on.
    pub cancel: CancellationToken,
}
