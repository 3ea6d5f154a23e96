//! Why a task could not be run.

/// Why a task could not be run. The content of the request is not the cause, so a retry may succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// Too many tasks are waiting, or too many slow ones are running.
    #[error("too many JSON schemas are being compiled or chat templates rendered; retry later")]
    Busy,
    /// A child cannot be started, or broke the protocol.
    #[error(
        "the sandbox process, which compiles JSON schemas and renders chat templates, cannot be used: {reason}; retry later"
    )]
    Unavailable {
        /// What failed.
        reason: String,
    },
}
