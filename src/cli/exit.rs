//! Exit codes, the same for every command.

use std::{error::Error, fmt, io, process::ExitCode};

use crate::{
    auth::KeysError,
    config::ConfigError,
    device::{OpenError, RuntimeError},
    export::{ExportError, StagingError, WriteWeightsError},
    http::TlsError,
    job::Failure,
    manifest::ManifestError,
    metrics::Metrics,
    model::ModelError,
    text::TextError,
};

/// Why the process exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Success.
    Done = 0,
    /// Any other failure, or a comparison that found a difference.
    Failed = 1,
    /// Invalid command line or settings.
    Usage = 2,
    /// The machine lacks something.
    Machine = 3,
    /// Something is wrong with a model or its sources.
    Model = 4,
    /// Ctrl-C: 128 plus the number of SIGINT, as in shells.
    Interrupted = 130,
}

impl Exit {
    /// All exit codes, in order.
    pub(super) const ALL: [Self; 6] =
        [Self::Done, Self::Failed, Self::Usage, Self::Machine, Self::Model, Self::Interrupted];

    /// The number.
    pub(super) const fn code(self) -> u8 {
        self as u8
    }

    /// The name in JSON errors.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Machine => "machine",
            Self::Model => "model",
            Self::Interrupted => "interrupted",
        }
    }

    /// Description for help and man pages.
    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "success",
            Self::Failed => "the command failed, or a comparison found a difference",
            Self::Usage => "a flag, a prompt or a setting is invalid",
            Self::Machine => {
                "this machine lacks something: ONNX Runtime, a GPU, a free port, a worker that starts"
            }
            Self::Model => "the model or its source is missing, damaged or not supported",
            Self::Interrupted => "interrupted by Ctrl-C",
        }
    }

    /// The exit code of an error.
    pub(super) fn of(error: &anyhow::Error) -> Self {
        // A full disk is not the fault of a flag or model, whichever operation fails.
        let is_full = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded));
        if is_full {
            return Self::Failed;
        }
        error.chain().find_map(Self::of_cause).unwrap_or(Self::Failed)
    }

    fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(explicit) = cause.downcast_ref::<ErrorWithExit>() {
            return Some(explicit.exit);
        }
        if let Some(error) = cause.downcast_ref::<ExportError>() {
            return Some(Self::of_export(error));
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Self::of_failure(failure);
        }
        let usage = cause.is::<ConfigError>() || cause.is::<KeysError>() || cause.is::<TlsError>();
        let machine = cause.is::<OpenError>() || cause.is::<RuntimeError>();
        let model = cause.is::<ModelError>() || cause.is::<ManifestError>() || cause.is::<TextError>();
        [(usage, Self::Usage), (machine, Self::Machine), (model, Self::Model)]
            .into_iter()
            .find_map(|(is, exit)| is.then_some(exit))
    }

    fn of_export(error: &ExportError) -> Self {
        match error {
            ExportError::Cancelled => Self::Interrupted,
            ExportError::Context { .. }
            | ExportError::NoSuchModule(_)
            | ExportError::WriteWeights(WriteWeightsError::TooGreat { .. }) => Self::Usage,
            ExportError::Staging(
                StagingError::Full { .. } | StagingError::TooLarge { .. } | StagingError::Write { .. },
            )
            | ExportError::WriteWeights(WriteWeightsError::Write { .. }) => Self::Failed,
            ExportError::Staging(_) => Self::Usage,
            _ => Self::Model,
        }
    }

    const fn of_failure(failure: &Failure) -> Option<Self> {
        match failure {
            Failure::Context { .. } => Some(Self::Usage),
            Failure::Model { .. } | Failure::Adapter { .. } | Failure::NanLogits { .. } => Some(Self::Model),
            Failure::NoWorker { .. } => Some(Self::Machine),
            _ => None,
        }
    }

    /// The exit code when no worker starts: the machine's fault, unless a worker started and could not load the model.
    pub(super) fn without_worker(metrics: &Metrics) -> Self {
        if metrics.exits("load_failed") > 0 { Self::Model } else { Self::Machine }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// The table of exit codes at the end of `eka help`.
pub(super) fn epilogue() -> String {
    let line = |exit: Exit| format!("  {:>3}  {}", exit.code(), exit.meaning());
    format!("Exit codes:\n{}", Exit::ALL.map(line).join("\n"))
}

/// An error with an explicit exit code.
#[derive(Debug)]
pub(super) struct ErrorWithExit {
    exit: Exit,
    error: anyhow::Error,
}

impl ErrorWithExit {
    /// Attaches `exit` to an error.
    pub(super) fn of(error: anyhow::Error, exit: Exit) -> anyhow::Error {
        Self { exit, error }.into()
    }
}

impl fmt::Display for ErrorWithExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for ErrorWithExit {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// Attaches an exit code to the error of a result.
pub(super) trait WithExit<T> {
    /// Overrides the exit code that the error's causes would give.
    ///
    /// # Errors
    /// The original error.
    fn with_exit(self, exit: Exit) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn with_exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|error| ErrorWithExit::of(error.into(), exit))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn an_explicit_exit_code_overrides_the_causes() {
        let failure = || Failure::Model { model: "a".into(), message: "b".into() };
        let error = Err::<(), _>(failure()).with_exit(Exit::Usage).context("c").unwrap_err();
        assert_eq!((Exit::of(&error), error.chain().count()), (Exit::Usage, 2));
        assert_eq!(Exit::of(&anyhow!(failure()).context("c")), Exit::Model);
        assert_eq!(Exit::of(&anyhow!("c")), Exit::Failed);
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let page = include_str!("../../docs/command-line.md");
        for exit in Exit::ALL {
            let row = format!("| {} | `{}` | {} |", exit.code(), exit.name(), exit.meaning());
            assert!(page.contains(&row), "docs/command-line.md has no line\n{row}");
        }
    }
}
