//! What is done in the slot between two jobs, and what came of it.

use std::{path::PathBuf, time::Duration};

use super::{CacheSalt, Failure, KeepAlive, Memory, ModelId};

/// Something to be done in the slot between two jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Load a model, if it is not.
    Load {
        /// The model.
        model: ModelId,
        /// How long it stays; `None` leaves it as it is.
        keep_alive: Option<KeepAlive>,
    },
    /// Give a model's memory back, if it is loaded.
    Unload {
        /// The model.
        model: ModelId,
    },
    /// Give back what no job needs.
    Trim,
    /// Keep a saved prompt for jobs that begin like it.
    Restore {
        /// The model that it is of.
        model: ModelId,
        /// What it is called.
        name: String,
        /// Its file.
        file: PathBuf,
        /// Which jobs may begin with it; `None` is all of them.
        salt: Option<CacheSalt>,
    },
    /// Let go of a saved prompt that was restored.
    Forget {
        /// What it is called.
        name: String,
    },
}

/// What an order came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderReport {
    /// The worker's memory before.
    pub before: Memory,
    /// And after.
    pub after: Memory,
    /// How long it took, waiting for the slot not included.
    pub took: Duration,
    /// What is loaded now.
    pub loaded: Vec<ModelId>,
}

/// What came of an order on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderOutcome {
    /// Its name; `None` where there is but one.
    pub device: Option<String>,
    /// What the order came to there, or why it did not.
    pub outcome: Result<OrderReport, Failure>,
}
