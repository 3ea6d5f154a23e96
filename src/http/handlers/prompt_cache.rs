//! `/admin/cache`: prompts whose KV cache is saved to files.
//!
//! | `POST` with `action` | does |
//! |---|---|
//! | `save` | computes a prompt like any request and saves its keys and values under a name |
//! | `restore` | loads the file into the prefix cache of every device, until the server ends |
//! | `delete` | deletes the file and what was restored from it |
//!
//! `GET` lists the files. A restored prompt is restored again when a worker is replaced or its model is reloaded; `POST
//! /admin/trim` frees it like all cached prompts. llama-server saves and restores a slot instead; here a prompt has a name, so
//! clients need not know what a slot holds.
//!
//! With API keys, a restored prompt serves requests of the key that restores it, like every cached prompt
//! ([`cache_salt`]). An admin may restore it for another key (`key`), for requests with a `cache_salt`, or for all requests
//! (`shared`). Note that clients can find out the text of a prompt that they share.
//!
//! Later requests continue a saved conversation with other messages. So only the tokens are saved that do not depend on what
//! follows: up to the text of the next user message.

use std::time::Duration;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    adapters,
    admin::{CommandAnswer, send_command},
    slot::caller,
    submit::{check_readiness, room},
};
use crate::{
    executor::Terms,
    http::{
        error::ApiError,
        field_error::FieldError,
        formats::milliseconds,
        middleware::{RequestRecord, auth},
        request::{
            ApiRequest, CacheRequest, EncodeOptions, Prompt, RestorePrompt, SavePrompt, ServedModel,
            cache_salt, tokenize::with_tools,
        },
    },
    job::{CacheSalt, Command, EndReason, Event, Failure, Finish, Job, PromptToRestore, SaveAs},
    metrics::{OnDevice, PromptFile},
    prompt_store::{PromptInfo, PromptName, PromptStore, PromptStoreError, StoredPrompt},
    text::{Conversation, Message},
    units::{Bytes, Tokens},
};

/// Beginnings of a next user message. The tokens that all of them share do not depend on what follows.
const BEGINNINGS: [&str; 3] = ["a", "1", "("];

/// A saved prompt.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct SavedPrompt {
    name: String,
    /// Its model; this and all that follows is null if the file cannot be used.
    model: Option<String>,
    tokens: Option<Tokens>,
    /// Size of the file.
    bytes: Option<Bytes>,
    /// Type of the stored keys and values: `float32`, `float16`, `bfloat16` or `int8`.
    kv_cache: Option<String>,
    /// In seconds since 1970.
    saved_at: Option<u64>,
    /// Why the file cannot be used; absent if it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl SavedPrompt {
    fn new(name: &PromptName, head: PromptInfo, bytes: u64) -> Self {
        Self {
            name: name.to_string(),
            model: Some(head.model),
            tokens: Some(Tokens(head.tokens)),
            bytes: Some(Bytes(bytes)),
            kv_cache: Some(head.shape.kind.to_string()),
            saved_at: Some(head.saved_at),
            error: None,
        }
    }
}

impl From<StoredPrompt> for SavedPrompt {
    fn from(StoredPrompt { name, found }: StoredPrompt) -> Self {
        match found {
            Ok((head, bytes)) => Self::new(&name, head, bytes),
            Err(e) => {
                let error = Some(if e.is_io() { "cannot be read".into() } else { e.to_string() });
                Self { name: name.to_string(), error, ..Self::default() }
            }
        }
    }
}

/// The saved prompts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SavedPromptList {
    /// Always `list`.
    object: &'static str,
    data: Vec<SavedPrompt>,
}

/// What was done with a saved prompt.
#[derive(Serialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub(crate) enum CacheAnswer<'a> {
    Save {
        saved: SavedPrompt,
        /// Prompt tokens taken from the prefix cache instead of being computed.
        cached_tokens: usize,
        timings: SaveTimings,
    },
    Restore {
        saved: SavedPrompt,
        done: CommandAnswer,
    },
    Delete {
        name: &'a str,
        /// Null without a worker that could have the prompt in memory.
        #[schema(required)]
        done: Option<CommandAnswer>,
    },
}

/// Where the time went.
#[derive(Serialize, ToSchema)]
pub(crate) struct SaveTimings {
    queue_ms: f64,
    prefill_ms: f64,
    /// To write the file and sync it to disk.
    saving_ms: f64,
}

/// `GET /admin/cache`.
pub(crate) async fn list(request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let store = store(&request)?;
    let listed = blocking(move || store.list()).await?.map_err(|e| failed("", &e))?;
    let data = listed.into_iter().map(SavedPrompt::from).collect();
    Ok(HttpResponse::Ok().json(SavedPromptList { object: "list", data }))
}

/// `POST /admin/cache`.
pub(crate) async fn cache(mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let store = store(&request)?;
    match request.read().await? {
        CacheRequest::Save(body) => {
            let saved = save(&request, store, body).await;
            let outcome = if saved.is_ok() { "ok" } else { "failed" };
            let save = PromptFile { action: "save", outcome, device: OnDevice::default() };
            request.state.metrics.saved_prompts.get_or_create(&save).inc();
            saved
        }
        CacheRequest::Restore(body) => restore(&request, store, body).await,
        CacheRequest::Delete(body) => delete(&request, store, body.name).await,
    }
}

/// Queues a job that computes and saves a prompt, on the next free device.
async fn save(request: &ApiRequest, store: PromptStore, body: SavePrompt) -> Result<HttpResponse, ApiError> {
    let state = &request.state;
    let SavePrompt { name, model, prompt, messages, tools, cache_salt: salt } = body;
    let text = auth::model(&request.http, state, model.as_deref())?;
    let adapter = state.models.adapter(model.as_deref())?;
    let prompt = Prompt::choose(prompt, with_tools(messages, tools)?)?;
    prompt.check("prompt", text.card().vocabulary)?;
    check_readiness(&state.readiness.borrow())?;
    let served = ServedModel { state, text };
    let tokens = match prompt {
        Prompt::Conversation(conversation) => beginning_of(served, conversation).await?,
        prompt => served.encode(prompt, EncodeOptions::default()).await?.ids,
    };
    let read = Tokens(tokens.len());
    room(read, Some(Tokens(1)), None, served.context_length())?;
    let save = SaveAs { name: name.to_string(), dir: store.dir().to_path_buf() };
    let model = text.card().id.as_str().into();
    let cache_salt = cache_salt::digest(state, caller(&request.http).key.as_deref(), salt.as_deref());
    let adapters = adapter.iter().map(|adapter| adapters::whole(adapter)).collect();
    let id = state.executor.new_id();
    let job = Job { model, cache_salt, adapters, save: Some(save), ..Job::new(id, tokens, 1) };
    let (finish, queue_wait) = run(request, job).await?;
    if let Some(record) = RequestRecord::of(&request.http) {
        record.add_tokens(read.0, 0);
    }
    let (head, bytes) = head(store, &name).await?;
    Ok(HttpResponse::Ok().json(CacheAnswer::Save {
        saved: SavedPrompt::new(&name, head, bytes),
        cached_tokens: finish.usage.cached_tokens,
        timings: SaveTimings {
            queue_ms: milliseconds(queue_wait),
            prefill_ms: milliseconds(finish.timings.prefill),
            saving_ms: milliseconds(finish.timings.saving),
        },
    }))
}

/// Waits for the end of a job; also returns its time in the queue.
async fn run(request: &ApiRequest, job: Job) -> Result<(Finish, Duration), ApiError> {
    let terms = Terms::from(request.state.deadlines());
    // If the client disconnects, this is dropped and nothing is saved.
    let mut ticket = request.state.executor.submit_for(caller(&request.http), job, terms)?;
    let mut waited = Duration::ZERO;
    loop {
        match ticket.next().await {
            Some(Event::Started { queue_wait }) => waited = queue_wait,
            Some(Event::Done(finish)) if finish.reason != EndReason::Cancelled => {
                return Ok((finish, waited));
            }
            Some(Event::Failed(failure)) => return Err(failure.into()),
            Some(Event::Done(_)) | None => return Err(Failure::ShuttingDown.into()),
            Some(_) => {}
        }
    }
}

/// Loads a saved prompt on every device.
async fn restore(
    request: &ApiRequest,
    store: PromptStore,
    body: RestorePrompt,
) -> Result<HttpResponse, ApiError> {
    let salt = audience(request, &body)?;
    let RestorePrompt { name, model: asked, .. } = body;
    let file = store.path(&name);
    let (head, bytes) = head(store, &name).await?;
    let asked = asked.as_ref().unwrap_or(&head.model);
    let text = auth::model(&request.http, &request.state, Some(asked))?;
    let adapter = request.state.models.adapter(Some(asked))?;
    let adapters = adapter.iter().map(|adapter| adapters::whole(adapter)).collect();
    let (model, called) = (text.card().id.as_str().into(), name.to_string());
    let prompt = PromptToRestore { model, name: called, file, salt, adapters };
    let outcomes = send_command(request, Command::Restore(prompt)).await?;
    let (saved, done) = (SavedPrompt::new(&name, head, bytes), outcomes.try_into()?);
    Ok(HttpResponse::Ok().json(CacheAnswer::Restore { saved, done }))
}

/// The salt of the requests that may use a restored prompt; `None` means all.
fn audience(request: &ApiRequest, body: &RestorePrompt) -> Result<Option<CacheSalt>, FieldError> {
    body.check()?;
    if let Some(name) = &body.key
        && !request.state.access.rules().keys.has_name(name)
    {
        return Err(FieldError::value("key", format!("no API key has the name {name:?}")));
    }
    let key = body.key.clone().or_else(|| caller(&request.http).key);
    Ok((!body.shared).then(|| cache_salt::digest(&request.state, key.as_deref(), body.cache_salt.as_deref())))
}

/// Deletes a saved prompt and what was restored from it.
async fn delete(
    request: &ApiRequest,
    store: PromptStore,
    name: PromptName,
) -> Result<HttpResponse, ApiError> {
    let called = name.clone();
    let deleted = blocking(move || store.delete(&called)).await?;
    deleted.map_err(|e| failed(name.as_str(), &e))?;
    // The file is deleted in any case, and a lost worker has lost the prompt as well.
    let forgotten = send_command(request, Command::Forget { name: name.to_string() }).await;
    let done = forgotten.ok().and_then(|outcomes| outcomes.try_into().ok());
    Ok(HttpResponse::Ok().json(CacheAnswer::Delete { name: name.as_str(), done }))
}

/// The store, if prompts can be saved and commands are supported.
fn store(request: &ApiRequest) -> Result<PromptStore, ApiError> {
    if request.state.drain_node.is_some() {
        return Err(ApiError::NotImplemented {
            what: "saving prompts in a cluster",
            instead: "each node keeps the prompts that it has read, see cluster.affinity",
        });
    }
    let store = request.state.saved.clone().filter(|_| request.state.commands.is_some());
    store.ok_or_else(|| request.not_found())
}

async fn head(store: PromptStore, name: &PromptName) -> Result<(PromptInfo, u64), ApiError> {
    let called = name.clone();
    blocking(move || store.head(&called)).await?.map_err(|e| failed(name.as_str(), &e))
}

/// Accesses files on another thread: disks may be slow, and this thread streams answers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    web::block(work).await.map_err(|error| ApiError::Internal { message: error.to_string() })
}

fn failed(name: &str, e: &PromptStoreError) -> ApiError {
    let (name, message) = (name.to_owned(), e.to_string());
    match e {
        PromptStoreError::Missing => ApiError::SavedPromptNotFound { name },
        e if e.is_io() => Failure::SavedFile { name, message }.into(),
        _ => Failure::SavedPrompt { name, message }.into(),
    }
}

/// The tokens with which all continuations of this conversation begin. A conversation that ends with a user message or a tool
/// result is complete.
async fn beginning_of(model: ServedModel<'_>, conversation: Conversation) -> Result<Vec<u32>, ApiError> {
    let is_open = |message: &Message| matches!(message.role.as_str(), "user" | "tool");
    if conversation.messages.last().is_some_and(is_open) {
        return Ok(model.encode(Prompt::Conversation(conversation), EncodeOptions::default()).await?.ids);
    }
    let mut shared: Option<Vec<u32>> = None;
    for beginning in BEGINNINGS {
        let mut longer = conversation.clone();
        longer.messages.push(Message::new("user", beginning));
        let prompt = model.encode(Prompt::Conversation(longer), EncodeOptions::default()).await?.ids;
        shared = Some(match shared {
            None => prompt,
            Some(mut shared) => {
                let common = shared.iter().zip(&prompt).take_while(|(one, other)| one == other).count();
                shared.truncate(common);
                shared
            }
        });
    }
    let shared = shared.unwrap_or_default();
    if shared.is_empty() {
        Err(FieldError::EmptyPrompt { param: "prompt".into() }.into())
    } else {
        Ok(shared)
    }
}
