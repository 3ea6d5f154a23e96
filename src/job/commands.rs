//! Commands to a worker that run between two jobs, and their results.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    adapters::JobAdapter, cache_salt::CacheSalt, failure::Failure, ids::ModelId, memory::Memory,
    request::KeepAlive,
};

/// A command to a worker. It runs between two jobs.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Load a model, unless it is loaded.
    Load {
        /// The model.
        model: ModelId,
        /// How long it stays loaded; `None` leaves that unchanged.
        keep_alive: Option<KeepAlive>,
    },
    /// Unload a model, if it is loaded.
    Unload {
        /// The model.
        model: ModelId,
    },
    /// Free memory that no job needs.
    Trim,
    /// Restore a saved prompt, so that jobs with the same beginning can use it.
    Restore(PromptToRestore),
    /// Drop a restored prompt.
    Forget {
        /// Its name.
        name: String,
    },
}

/// A prompt that was saved to a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptToRestore {
    /// The model it was saved from.
    pub model: ModelId,
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// Only jobs with this salt may use it; `None` means all jobs.
    pub salt: Option<CacheSalt>,
    /// The adapters that it was computed with.
    pub adapters: Vec<JobAdapter>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReport {
    /// The worker's memory before.
    pub before: Memory,
    /// The worker's memory after.
    pub after: Memory,
    /// Time it took, without the wait for the running job.
    pub took: Duration,
    /// Models that are loaded now.
    pub loaded: Vec<ModelId>,
}

/// The result of a command on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandOutcome {
    /// Label of the device; `None` for a single device.
    pub device: Option<String>,
    /// What the command did there, or why it failed.
    pub outcome: Result<CommandReport, Failure>,
}
