//! Every route of the server, as the document describes it.
//!
//! The functions are never called: handlers are generic, and these carry what is said of them. A test holds the list to that
//! of the routes.

use utoipa::IntoResponses;

use super::{answers::*, texts::*};
use crate::http::{
    handlers::slot::Slot,
    request::{
        admin::{CacheRequest, LoadRequest, LogRequest},
        chat::ChatRequest,
        completions::CompletionRequest,
        generate_lite::GenerateLiteRequest,
        responses::ResponseRequest,
        tokenize::{ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest},
    },
};

/// What any request may be refused with that wants a key.
#[derive(IntoResponses)]
pub(super) enum Refused {
    /// The server wants an API key, or does not know the one that was sent.
    #[response(status = 401)]
    NoKey(ErrorBody),
    /// The key, the page's origin or the address may not do this.
    #[response(status = 403)]
    NotAllowed(ErrorBody),
    /// The address or the key has used up its allowance. `Retry-After` says when there is more.
    #[response(status = 429)]
    RateLimited(ErrorBody),
}

/// What a request with a body may be refused with.
#[derive(IntoResponses)]
pub(super) enum RefusedBody {
    /// The request cannot be done as it is; `error.param` names the field.
    #[response(status = 400)]
    Wrong(ErrorBody),
    /// The server wants an API key, or does not know the one that was sent.
    #[response(status = 401)]
    NoKey(ErrorBody),
    /// The key, the page's origin or the address may not do this.
    #[response(status = 403)]
    NotAllowed(ErrorBody),
    /// There is no such model.
    #[response(status = 404)]
    NoModel(ErrorBody),
    /// The body did not arrive in time.
    #[response(status = 408)]
    TooSlow(ErrorBody),
    /// The body is larger than `server.body_limit_bytes`, or the device has no room for what was asked.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The address or the key has used up its allowance. `Retry-After` says when there is more.
    #[response(status = 429)]
    RateLimited(ErrorBody),
    /// The server is at fault, and its log says why.
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The model's chat template uses something that the server does not have.
    #[response(status = 501)]
    TemplateUnsupported(ErrorBody),
}

/// What a request for an answer may be refused with, besides.
#[derive(IntoResponses)]
pub(super) enum NotGenerated {
    /// The queue is full, or an allowance used up. `Retry-After` says when to come back.
    #[response(status = 429)]
    Busy(ErrorBody),
    /// Workers were lost on this request, the last one too often.
    #[response(status = 502)]
    WorkerLost(ErrorBody),
    /// No worker is ready. `Retry-After` says when to come back.
    #[response(status = 503)]
    NotReady(ErrorBody),
    /// It waited or ran for longer than it was allowed to.
    #[response(status = 504)]
    TooLate(ErrorBody),
}

/// One answer, whole or streamed, with timings and memory.
///
/// Greedy unless a temperature is sent. A stream's events are `GeneratedDelta`s and at last a `Generated`; it ends with `data: [DONE]`.
#[utoipa::path(
    post, path = "/generate-lite", tag = "eka",
    request_body(content = GenerateLiteRequest, examples(
        ("prompt" = (summary = "A prompt", value = json!({ "prompt": "Translate to Hindi: Good morning, friend.", "max_new_tokens": 24 }))),
        ("messages" = (summary = "A conversation, streamed", value = json!({ "messages": [{ "role": "user", "content": "Translate to Urdu: Good night." }], "stream": true }))),
    )),
    responses(
        (status = 200, description = "The answer.", content((Generated = "application/json"), (String = "text/event-stream"))),
        RefusedBody, NotGenerated,
    ),
)]
pub(super) fn generate_lite() {}

/// OpenAI's completions.
///
/// A stream's events are `Completion`s, and it ends with `data: [DONE]`.
#[utoipa::path(
    post, path = "/v1/completions", tag = "openai",
    request_body(content = CompletionRequest, examples(
        ("prompt" = (summary = "A prompt, with log-probabilities", value = json!({ "prompt": "Good morning", "max_tokens": 8, "logprobs": 2, "seed": 7 }))),
        ("choices" = (summary = "Two answers in a form", value = json!({ "prompt": "Yes or no?", "regex": "yes|no", "n": 2, "temperature": 0.8 }))),
    )),
    responses(
        (status = 200, description = "The answer.", content((Completion = "application/json"), (String = "text/event-stream"))),
        RefusedBody, NotGenerated,
    ),
)]
pub(super) fn completions() {}

/// OpenAI's chat completions.
///
/// A stream's events are `ChatCompletionChunk`s, and it ends with `data: [DONE]`.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai",
    request_body(content = ChatRequest, examples(
        ("chat" = (summary = "A conversation", value = json!({ "messages": [{ "role": "user", "content": "Translate to Tamil: Thank you." }], "max_completion_tokens": 24, "temperature": 0 }))),
        ("stream" = (summary = "Streamed, with its usage", value = json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Translate to Bengali: Welcome." }] }], "stream": true, "stream_options": { "include_usage": true }, "logprobs": true, "top_logprobs": 2 }))),
        ("schema" = (summary = "In the form of a JSON schema", value = json!({ "messages": [{ "role": "user", "content": "Good morning" }], "response_format": { "type": "json_schema", "json_schema": { "name": "word", "schema": { "type": "object", "properties": { "word": { "enum": ["a", "b"] } }, "required": ["word"], "additionalProperties": false } } } }))),
    )),
    responses(
        (status = 200, description = "The answer.", content((ChatCompletion = "application/json"), (String = "text/event-stream"))),
        RefusedBody, NotGenerated,
    ),
)]
pub(super) fn chat_completions() {}

/// OpenAI's responses, of which none is kept.
///
/// A stream's events have OpenAI's types, the last of which is `response.completed` or `response.incomplete`.
#[utoipa::path(
    post, path = "/v1/responses", tag = "openai",
    request_body(content = ResponseRequest, examples(
        ("text" = (summary = "A text", value = json!({ "input": "Translate to Hindi: Good morning.", "max_output_tokens": 24 }))),
        ("conversation" = (summary = "A conversation, streamed", value = json!({ "instructions": "Answer briefly.", "input": [{ "role": "user", "content": [{ "type": "input_text", "text": "Translate to Marathi: Good evening." }] }], "stream": true }))),
    )),
    responses(
        (status = 200, description = "The answer.", content((Response = "application/json"), (String = "text/event-stream"))),
        RefusedBody, NotGenerated,
    ),
)]
pub(super) fn responses() {}

/// The tokens of a text or of messages.
#[utoipa::path(
    post, path = "/tokenize", tag = "texts",
    request_body(content = TokenizeRequest, examples(("content" = (summary = "A text", value = json!({ "content": "Good morning", "with_pieces": true }))))),
    responses((status = 200, description = "The tokens.", body = Tokenized), RefusedBody),
)]
pub(super) fn tokenize() {}

/// The text of tokens.
#[utoipa::path(
    post, path = "/detokenize", tag = "texts",
    request_body(content = DetokenizeRequest, examples(("tokens" = (summary = "Tokens", value = json!({ "tokens": [40, 41, 42] }))))),
    responses((status = 200, description = "The text.", body = Detokenized), RefusedBody),
)]
pub(super) fn detokenize() {}

/// The prompt that the chat template makes of messages.
#[utoipa::path(
    post, path = "/apply-template", tag = "texts",
    request_body(content = ApplyTemplateRequest, examples(("messages" = (summary = "A conversation", value = json!({ "messages": [{ "role": "user", "content": "Good morning" }] }))))),
    responses((status = 200, description = "The prompt.", body = TemplateApplied), RefusedBody),
)]
pub(super) fn apply_template() {}

/// Loads a model.
///
/// For whoever runs the server: with an admin key, or without keys from the machine itself. It waits for the running request and goes
/// before all that are queued.
#[utoipa::path(
    post, path = "/admin/models/{id}/load", tag = "admin", params(("id" = String, Path, description = "Of a model.")),
    request_body(content = LoadRequest, examples(("keep_alive" = (summary = "For a while", value = json!({ "keep_alive": "10m" }))))),
    responses((status = 200, description = "It is loaded.", body = Outcome), RefusedBody, NotGenerated),
)]
pub(super) fn load_model() {}

/// Gives a model's memory back; for whoever runs the server.
#[utoipa::path(
    post, path = "/admin/models/{id}/unload", tag = "admin", params(("id" = String, Path, description = "Of a model.")),
    responses((status = 200, description = "It is gone.", body = Outcome), RefusedBody, NotGenerated),
)]
pub(super) fn unload_model() {}

/// Gives back what no request needs; for whoever runs the server.
#[utoipa::path(
    post, path = "/admin/trim", tag = "admin",
    responses((status = 200, description = "It is given back.", body = Outcome), RefusedBody, NotGenerated),
)]
pub(super) fn trim() {}

/// Saves a prompt to a file, restores it from there, or deletes it; for whoever runs the server.
///
/// Requests that begin like a restored prompt start after it, as `cached_tokens` tells. To save takes its turn in the queue; to restore
/// waits for the running request alone, and is done by every device.
#[utoipa::path(
    post, path = "/admin/cache", tag = "admin",
    request_body(content = CacheRequest, examples(
        ("save" = (summary = "A system prompt", value = json!({ "action": "save", "name": "support", "messages": [{ "role": "system", "content": "You translate what travellers say into the language they ask for." }] }))),
        ("restore" = (summary = "After a restart", value = json!({ "action": "restore", "name": "support" }))),
        ("delete" = (summary = "For good", value = json!({ "action": "delete", "name": "support" }))),
    )),
    responses(
        (status = 200, description = "It is done.", body = CacheAnswer),
        (status = 409, description = "The file is damaged, or not of this model or its kind of cache, or there is no room for it.", body = ErrorBody),
        RefusedBody, NotGenerated,
    ),
)]
pub(super) fn cache() {}

/// The prompts that are saved; for whoever runs the server.
#[utoipa::path(
    get, path = "/admin/cache", tag = "admin",
    responses(
        (status = 200, description = "The list.", body = SavedPromptList),
        (status = 500, description = "Their directory cannot be read.", body = ErrorBody),
        Refused,
    ),
)]
pub(super) fn cached() {}

/// Sets what is logged; for whoever runs the server.
#[utoipa::path(
    post, path = "/admin/log", tag = "admin",
    request_body(content = LogRequest, examples(("level" = (summary = "Less", value = json!({ "level": "warn" }))))),
    responses((status = 200, description = "It is logged from now on.", body = LogLevel), RefusedBody),
)]
pub(super) fn log() {}

/// Ends the server when its work is done; for whoever runs it.
#[utoipa::path(
    post, path = "/admin/drain", tag = "admin",
    responses((status = 202, description = "It will end.", body = Draining), Refused),
)]
pub(super) fn drain() {}

/// The models that are served.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, description = "They.", body = ModelList), Refused))]
pub(super) fn models() {}

/// One of the models, by its id.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "openai", params(("id" = String, Path, description = "Of a model.")), responses((status = 200, description = "It.", body = Model), (status = 404, description = "There is no such model.", body = ErrorBody), Refused))]
pub(super) fn model() {}

/// 200 while this process answers.
#[utoipa::path(get, path = "/livez", tag = "operation", responses((status = 200, description = "It does.", body = Status)), security(()))]
pub(super) fn livez() {}

/// 200 while a worker has the model loaded.
#[utoipa::path(get, path = "/readyz", tag = "operation", responses((status = 200, description = "It has.", body = Status), (status = 503, description = "It has not; `Retry-After` says when to ask again.", body = ErrorBody)), security(()))]
pub(super) fn readyz() {}

/// 200 once a worker has had the model loaded.
#[utoipa::path(get, path = "/startupz", tag = "operation", responses((status = 200, description = "It has had.", body = Status), (status = 503, description = "Not yet.", body = ErrorBody)), security(()))]
pub(super) fn startupz() {}

/// Figures in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses((status = 200, description = "The figures.", body = String, content_type = "application/openmetrics-text"), Refused))]
pub(super) fn metrics() {}

/// What runs, who waits, and what the last requests took.
///
/// Who asked is told to admin keys and to the key that asked itself.
#[utoipa::path(get, path = "/v1/slot", tag = "eka", responses((status = 200, description = "It.", body = Slot), Refused))]
pub(super) fn slot() {}

/// What the page at `/` is made of.
#[utoipa::path(
    get, path = "/page/{file}", tag = "operation", params(("file" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "It.", body = String, content_type = "text/plain"),
        (status = 404, description = "There is no such file.", body = ErrorBody),
        Refused,
    ),
)]
pub(super) fn page_file() {}

/// What is served; for browsers, a page.
#[utoipa::path(get, path = "/", tag = "operation", responses((status = 200, description = "A list.", body = String, content_type = "text/plain"), Refused))]
pub(super) fn index() {}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", responses((status = 200, description = "It.", body = Object), Refused))]
pub(super) fn openapi() {}

/// This document for people.
#[utoipa::path(get, path = "/docs", tag = "operation", responses((status = 200, description = "A page.", body = String, content_type = "text/html"), Refused))]
pub(super) fn docs() {}
