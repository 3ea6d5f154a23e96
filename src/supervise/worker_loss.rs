//! Why a worker can no longer be used.

use std::fmt;

use crate::wire::{FromWorker, WireError};

/// What kind of loss it was. Metrics show it as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossKind {
    /// The process could not be started.
    NotStarted,
    /// The worker reported that its device or ONNX Runtime cannot be used.
    StartFailed,
    /// The worker reported that its only model cannot be loaded.
    LoadFailed,
    /// The process ended by itself, or closed its pipe.
    Crashed,
    /// The worker reported that its device can no longer be used.
    Poisoned,
    /// It was silent longer than the watchdog allows.
    Hung,
    /// It sent something that the protocol does not allow.
    Protocol,
}

impl LossKind {
    /// The value of the label `reason` of `eka_worker_exits_total`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::StartFailed => "start_failed",
            Self::LoadFailed => "load_failed",
            Self::Crashed => "crashed",
            Self::Poisoned => "poisoned",
            Self::Hung => "hung",
            Self::Protocol => "protocol",
        }
    }

    /// Whether the process ends without being killed.
    pub(super) const fn ends_by_itself(self) -> bool {
        matches!(self, Self::Crashed | Self::StartFailed | Self::Poisoned)
    }
}

/// Why a worker can no longer be used.
#[derive(Debug)]
pub(super) struct WorkerLoss {
    pub(super) kind: LossKind,
    /// A sentence for clients and logs.
    pub(super) reason: String,
    /// Last line that the worker wrote to stderr; only for the log, because it may name files.
    last_stderr_line: Option<String>,
}

impl fmt::Display for WorkerLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        self.last_stderr_line.as_ref().map_or(Ok(()), |line| write!(f, "; last line on stderr: {line}"))
    }
}

impl WorkerLoss {
    pub(super) const fn new(kind: LossKind, reason: String) -> Self {
        Self { kind, reason, last_stderr_line: None }
    }

    pub(super) const fn hung(reason: String) -> Self {
        Self::new(LossKind::Hung, reason)
    }

    pub(super) const fn protocol(reason: String) -> Self {
        Self::new(LossKind::Protocol, reason)
    }

    /// Classifies a frame that the protocol does not allow now, or the end of the pipe.
    pub(super) fn from_frame(frame: Option<Result<FromWorker, WireError>>) -> Self {
        match frame {
            None => Self::new(LossKind::Crashed, "the worker closed its pipe".into()),
            Some(Err(e)) => Self::protocol(e.to_string()),
            Some(Ok(other)) => Self::protocol(format!("unexpected frame from the worker: {other:?}")),
        }
    }

    /// Adds how the process ended, and its last line on stderr.
    pub(super) fn with_exit(mut self, how: String, last_stderr_line: Option<String>) -> Self {
        self.last_stderr_line = last_stderr_line;
        if self.kind == LossKind::Crashed {
            self.reason = how;
        }
        self
    }
}
