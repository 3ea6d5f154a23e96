//! Why a job could not be finished.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::ModelId;
use crate::units::Tokens;

/// Why a job could not be finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Prompt and answer exceed the model's context length.
    // OpenAI's wording, which client libraries recognize.
    #[error(
        "This model's maximum context length is {capacity}. However, you requested {} ({} in the messages, {} in the \
         completion). Please reduce the length of the messages or completion.",
        Tokens(prompt.0.saturating_add(max_new.0)), prompt.0, max_new.0
    )]
    Context {
        /// Length of the prompt.
        prompt: Tokens,
        /// Requested length of the answer.
        max_new: Tokens,
        /// The context length.
        capacity: Tokens,
    },
    /// A token id outside the model's vocabulary.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Number of ids, which start at 0.
        vocabulary: usize,
    },
    /// The model could not be loaded. Other models are not affected.
    #[error("model {model} cannot be loaded: {message}")]
    Model {
        /// The model.
        model: ModelId,
        /// Why, and the way out.
        message: String,
    },
    /// The model returned only NaN logits: its weights are damaged. The worker keeps running.
    #[error(
        "the model returned only NaN logits after {after}, so its weights are damaged; check them with `eka inspect \
         --verify`, or export the model again"
    )]
    NanLogits {
        /// Tokens fed before.
        after: Tokens,
    },
    /// The graph of the model does not give hidden states. The worker keeps running.
    #[error(
        "this model gives no embeddings here: only models exported by eka do, on a CPU with engine.own_operators; use another \
         server for embeddings"
    )]
    NoEmbeddings,
    /// An adapter could not be loaded. The worker keeps running.
    #[error("adapter {name:?} cannot be used: {message}")]
    Adapter {
        /// The adapter.
        name: String,
        /// Why, and the way out.
        message: String,
    },
    /// No token satisfies the constraint. The worker keeps running.
    #[error("the constraint cannot be satisfied: {message}; simplify it or leave it out")]
    Constraint {
        /// Why not.
        message: String,
    },
    /// The device could not compute a step. The worker keeps running.
    #[error("the device failed: {message}")]
    Device {
        /// The error from ONNX Runtime.
        message: String,
    },
    /// The device has not enough memory for the job. The worker keeps running, and smaller jobs may succeed.
    #[error("out of device memory: {message}")]
    OutOfMemory {
        /// The size of the request, the free memory, and the way out.
        message: String,
    },
    /// The content of a saved prompt does not fit.
    #[error("saved prompt {name:?} cannot be used: {message}")]
    SavedPrompt {
        /// Its name.
        name: String,
        /// Why not, and the way out.
        message: String,
    },
    /// The file of a saved prompt could not be written or read.
    #[error("saved prompt {name:?}: {message}")]
    SavedFile {
        /// Its name.
        name: String,
        /// The error from the system.
        message: String,
    },
    /// The worker process ended while it ran the job.
    #[error("the worker process was lost: {message}")]
    WorkerLost {
        /// How it ended.
        message: String,
    },
    /// No worker could be started.
    #[error("no worker is running: {message}")]
    NoWorker {
        /// Why not.
        message: String,
        /// Time until the next attempt; `None` if there will be none.
        retry_in: Option<Duration>,
    },
    /// The job reached its time limit in the queue.
    #[error("waited {} ms in the queue, the limit of this request", waited.as_millis())]
    QueueTimeout {
        /// Time in the queue.
        waited: Duration,
    },
    /// The job reached its total time limit.
    #[error("not finished after {} ms, the limit of this request", elapsed.as_millis())]
    Deadline {
        /// Time since it was accepted.
        elapsed: Duration,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}
