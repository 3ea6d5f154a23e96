//! Why a task could not be run.

/// Why a task could not be run. The content of the request is not the cause, so a retry may succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// Too many tasks are waiting, or too many slow ones are running.
    #[error("too many schemas or conversations are being prepared; retry later, or simplify this one")]
    Busy,
    /// A child cannot be started, or broke the protocol.
    #[error("the process that prepares schemas and conversations cannot be used: {reason}")]
    Unavailable {
        /// What failed.
        reason: String,
    },
}
