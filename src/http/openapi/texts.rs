//! Bodies of the routes that turn texts into tokens and back, and of those for whoever runs the server.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    messages::{Message, Tool},
    requests::{KeepAlive, Prompt},
};
use crate::{http::handlers::prompt_cache::SavedPrompt, job::Memory};

/// A request of `/tokenize`: one of `content`, `prompt` and `messages`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeRequest {
    model: Option<String>,
    /// A text, which gets no special tokens unless `add_special` asks for them.
    content: Option<String>,
    /// A text, which gets the special tokens of a prompt unless `add_special` is false.
    prompt: Option<String>,
    /// A conversation, to which the chat template is applied.
    #[schema(min_items = 1)]
    messages: Option<Vec<Message>>,
    /// Functions that the chat template tells the model of; for `messages`.
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
    add_special: Option<bool>,
    /// Another name of `add_special`.
    add_special_tokens: Option<bool>,
    /// Tokens come with their texts.
    #[schema(default = false)]
    with_pieces: Option<bool>,
}

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

/// A request of `/detokenize`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The text of tokens, under two names.
#[derive(Serialize, ToSchema)]
pub(super) struct Detokenized {
    content: String,
    prompt: String,
}

/// A request of `/apply-template`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyTemplateRequest {
    model: Option<String>,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Functions that the chat template tells the model of.
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
}

/// What the chat template makes of messages.
#[derive(Serialize, ToSchema)]
pub(super) struct TemplateApplied {
    prompt: String,
}

/// A request of `/admin/models/{id}/load`; there need not be any body.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadRequest {
    keep_alive: Option<KeepAlive>,
}

/// A request of `/admin/cache`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum CacheRequest {
    /// Reads a prompt, in its turn, and puts it into a file.
    Save {
        /// Letters from a to z, digits, `.`, `_` and `-`; a file of this name is replaced.
        #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
        name: String,
        model: Option<String>,
        /// A text or token ids, as in `/v1/completions`; or `messages`.
        prompt: Option<Prompt>,
        /// What conversations begin with; or `prompt`.
        #[schema(min_items = 1)]
        messages: Option<Vec<Message>>,
        /// Functions that the chat template tells the model of; for `messages`.
        #[schema(max_items = 128)]
        tools: Option<Vec<Tool>>,
        /// As in a request for an answer.
        #[schema(min_length = 1, max_length = 256)]
        cache_salt: Option<String>,
    },
    /// Keeps a saved prompt in memory for requests that begin like it.
    Restore {
        #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
        name: String,
        /// Without it, the one that computed it.
        model: Option<String>,
        /// Name of the API key whose requests may begin with it. Without it, the key of this request.
        key: Option<String>,
        /// Requests with this salt alone may begin with it.
        #[schema(min_length = 1, max_length = 256)]
        cache_salt: Option<String>,
        /// Every request may begin with it, whatever its key and salt; excludes `key` and `cache_salt`.
        #[schema(default = false)]
        shared: Option<bool>,
    },
    /// Removes the file, and what was restored from it.
    Delete {
        #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
        name: String,
    },
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

/// A request of `/admin/log`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogRequest {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,eka=debug`.
    level: String,
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
