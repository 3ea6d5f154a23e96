//! The requests of `POST /admin/…`.

use super::{
    cache_salt::cache_salt,
    keep_alive::keep_alive,
    messages::messages,
    prompt::{Prompt, prompt},
    schema::{FieldType, Modify, boolean, shape, string, tagged_shape},
    tool_definitions::{Tool, chat_tools},
};
use crate::{http::field_error::FieldError, job::KeepAlive, prompt_store::PromptName, text::Conversation};

shape! {
    /// A request of `/admin/models/{id}/load`; the body may be empty.
    pub(crate) struct LoadRequest {
        keep_alive: Option<KeepAlive> = keep_alive().optional();
    }
}

shape! {
    /// A request of `/admin/log`.
    pub(crate) struct LogRequest {
        /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,eka=debug`.
        level: String = string();
    }
}

tagged_shape! {
    /// A request of `/admin/cache`.
    pub(crate) enum CacheRequest by "action" {
        "save" => Save(SavePrompt),
        "restore" => Restore(RestorePrompt),
        "delete" => Delete(DeletePrompt),
    }
}

shape! {
    /// Processes a prompt, queued like other requests, and saves it to a file.
    pub(crate) struct SavePrompt {
        /// Letters from a to z, digits, `.`, `_` and `-`; a file of this name is replaced.
        name: PromptName = prompt_name();
        model: Option<String> = string().optional();
        /// A text or token ids, as in `/v1/completions`; either this or `messages`.
        prompt: Option<Prompt> = prompt().optional();
        /// The beginning of conversations; either this or `prompt`.
        messages: Option<Conversation> = messages().optional();
        /// Functions that the chat template shows to the model; only for `messages`.
        tools: Vec<Tool> = chat_tools().or_empty();
        /// As in a request for an answer.
        cache_salt: Option<String> = cache_salt().optional();
    }
}

shape! {
    /// Loads a saved prompt into memory for requests that begin with it.
    pub(crate) struct RestorePrompt {
        name: PromptName = prompt_name();
        /// By default the model that computed it.
        model: Option<String> = string().optional();
        /// Name of the API key whose requests may use it; by default the key of this request.
        key: Option<String> = string().optional();
        /// Only requests with this salt may use it.
        cache_salt: Option<String> = cache_salt().optional();
        /// Every request may use it, with any key and salt; excludes `key` and `cache_salt`.
        shared: bool = boolean().or(false);
    }
}

shape! {
    /// Removes the file, and the restored prompt from memory.
    pub(crate) struct DeletePrompt {
        name: PromptName = prompt_name();
    }
}

fn prompt_name() -> impl FieldType<Value = PromptName> {
    string()
        .pattern("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
        .try_map(|name, at| PromptName::try_from(name.as_str()).map_err(|e| at.invalid(e.to_string())))
}

impl RestorePrompt {
    /// Checks that `shared` is not combined with a key or a salt.
    pub(crate) fn check(&self) -> Result<(), FieldError> {
        match (self.shared, &self.key, &self.cache_salt) {
            (true, Some(_), _) => Err(FieldError::conflict("shared", "key")),
            (true, None, Some(_)) => Err(FieldError::conflict("shared", "cache_salt")),
            _ => Ok(()),
        }
    }
}
