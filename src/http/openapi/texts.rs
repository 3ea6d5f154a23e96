//! Bodies of the routes that turn texts into tokens and back, and of those for whoever runs the server.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{http::handlers::prompt_cache::SavedPrompt, job::Memory};

/// Tokens of a text.
#[derive(Serialize, ToSchema)]
pub(super) struct Tokenized {
    count: usize,
    /// Ids, or with `with_pieces` ids and texts.
    tokens: TokenList,
    /// The context length.
    max_model_len: usize,
}

/// Ids, or ids and texts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TokenList {
    Ids(Vec<u32>),
    Pieces(Vec<Piece>),
}

/// A token.
#[derive(Serialize, ToSchema)]
pub(super) struct Piece {
    id: u32,
    /// Its text; its bytes where they are no whole characters.
    piece: PieceText,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum PieceText {
    Text(String),
    Bytes(Vec<u8>),
}

/// The text of tokens, under two names.
#[derive(Serialize, ToSchema)]
pub(super) struct Detokenized {
    content: String,
    prompt: String,
}

/// What the chat template makes of messages.
#[derive(Serialize, ToSchema)]
pub(super) struct TemplateApplied {
    prompt: String,
}

/// What was done with a saved prompt.
#[derive(Serialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(super) enum CacheAnswer {
    Save {
        saved: SavedPrompt,
        /// Tokens that were kept from earlier requests, and took no time.
        cached_tokens: usize,
        timings: SaveTimings,
    },
    Restore {
        saved: SavedPrompt,
        done: Outcome,
    },
    Delete {
        name: String,
        /// Null where no worker is there that could have anything of it.
        #[schema(required)]
        done: Option<Outcome>,
    },
}

/// Where the time went.
#[derive(Serialize, ToSchema)]
pub(super) struct SaveTimings {
    queue_ms: f64,
    prefill_ms: f64,
    /// To write the file and bring it to the disk.
    saving_ms: f64,
}

/// The prompts that are saved.
#[derive(Serialize, ToSchema)]
pub(super) struct SavedPromptList {
    /// Always `list`.
    object: String,
    data: Vec<SavedPrompt>,
}

/// What is logged from now on.
#[derive(Serialize, ToSchema)]
pub(super) struct LogLevel {
    level: String,
}

/// What an order did; with several devices, on each of them.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Outcome {
    Done(Done),
    OnEach(OnEach),
}

/// What an order did on each device.
#[derive(Serialize, ToSchema)]
pub(super) struct OnEach {
    devices: Vec<OnOne>,
}

/// What an order did on one of several devices, or why it did not.
#[derive(Serialize, ToSchema)]
pub(super) struct OnOne {
    device: String,
    /// With the code of what went wrong, and then nothing else is there.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
    loaded: Option<Vec<String>>,
    took_ms: Option<u64>,
    memory: Option<BeforeAfter>,
}

/// What an order did.
#[derive(Serialize, ToSchema)]
pub(super) struct Done {
    /// Models that are loaded now.
    loaded: Vec<String>,
    took_ms: u64,
    memory: BeforeAfter,
}

/// The worker's memory.
#[derive(Serialize, ToSchema)]
pub(super) struct BeforeAfter {
    before: Memory,
    after: Memory,
}

/// What is left to do before the server ends.
#[derive(Serialize, ToSchema)]
pub(super) struct Draining {
    draining: bool,
    /// Requests that wait.
    queued: usize,
    /// Requests that run.
    running: usize,
    /// They have this long.
    grace_ms: u64,
}

/// How a probe went.
#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    /// `alive`, `ready` or `started`.
    status: String,
    /// Of `/readyz`, where there are several devices: the state of each.
    devices: Option<BTreeMap<String, String>>,
}

/// The models that are served.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// Always `list`.
    object: String,
    data: Vec<Model>,
}

/// OpenAI's model object, with what eka knows besides.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    id: String,
    /// Always `model`.
    object: String,
    /// When it was exported, in seconds since 1970.
    created: u64,
    owned_by: String,
    eka: ModelDetails,
}

/// What eka knows of a model.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelDetails {
    /// `available`, or `unavailable` where its files cannot be used: then there is an error, and nothing else.
    status: String,
    /// Why it is not available.
    error: Option<String>,
    /// Most tokens of prompt and answer together.
    context_length: Option<usize>,
    /// Number of token ids.
    vocabulary: Option<usize>,
    has_chat_template: Option<bool>,
    /// Null while it is not loaded.
    #[schema(value_type = Option<Object>)]
    loaded: Option<Value>,
    /// The worker's state, device, threads and memory.
    #[schema(value_type = Option<Object>)]
    worker: Option<Value>,
    /// Where there are several devices, `loaded` and `worker` of each.
    #[schema(value_type = Option<Vec<Object>>)]
    devices: Option<Vec<Value>>,
}
