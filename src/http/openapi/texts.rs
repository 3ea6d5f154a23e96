//! Bodies of the routes that tokenize texts, and of the admin routes.

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    messages::{Message, Tool},
    requests::{KeepAlive, Prompt},
};

/// A request of `/tokenize`: one of `content`, `prompt` and `messages`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
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

/// A request of `/detokenize`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// A request of `/apply-template`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplyTemplateRequest {
    model: Option<String>,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Functions that the chat template tells the model of.
    #[schema(max_items = 128)]
    tools: Option<Vec<Tool>>,
}

/// A request of `/admin/models/{id}/load`; there need not be any body.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadRequest {
    keep_alive: Option<KeepAlive>,
}

/// A request of `/admin/cache`.
#[derive(Serialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum CacheRequest {
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

/// A request of `/admin/log`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogRequest {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,eka=debug`.
    level: String,
}
