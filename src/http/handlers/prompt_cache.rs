//! `/admin/cache`: prompts that are kept in files, for whoever runs the server.
//!
//! | `POST` with `action` | does |
//! |---|---|
//! | `save` | reads a prompt as any request would, in its turn, and puts its keys and values into the file of a name |
//! | `restore` | has that file kept in memory for requests that begin like it, by every device, until the server ends |
//! | `delete` | removes the file, and what was restored from it |
//!
//! `GET` lists the files. A restored prompt is restored again when a worker is replaced or its model loaded again, and given
//! back by `POST /admin/trim` as all that is kept. llama-server has `save` and `restore` of a slot as it happens to be; here a
//! prompt is named by what it says, so nobody has to know what a slot holds, and there is no slot to choose.
//!
//! Where there are API keys, a restored prompt is there for requests with the key that restores it, as every kept prompt is
//! (`salt`). An admin may restore it for another key by its name (`key`), for requests with a `cache_salt`, or for all
//! requests (`shared`): requests that may begin with it can find out what it says.
//!
//! The messages of a conversation are followed by others in the requests that shall begin like them, so what is saved of them
//! is what their chat template makes of them whatever follows: up to the place where the next user's words stand.

use std::{sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    admin::{describe_all, give},
    slot::caller,
    submit::{check_readiness, room},
};
use crate::{
    executor::Terms,
    http::{
        error::ApiError,
        field_error::FieldError,
        formats::format::milliseconds,
        middleware::{
            access_log::RequestRecord,
            auth::{self, check_admin},
        },
        request::{
            admin::{CacheRequest, RestorePrompt, SavePrompt},
            body, cache_salt,
            prompt::Prompt,
            prompt_rendering::render,
            prompt_tokens::{Special, Untokenized, tokenize},
            tokenize::with_tools,
        },
        state::AppState,
    },
    job::{CacheSalt, Event, Failure, Finish, FinishReason, Job, Order, SaveAs},
    metrics::{OnDevice, PromptFile},
    prompt_store::{PromptInfo, PromptName, PromptStore, PromptStoreError, StoredPrompt},
    text::{Conversation, Message, Text},
    units::{Bytes, Tokens},
};

/// What the next user may begin with: where the tokens of a prompt with one and with another part, anything may follow.
const BEGINNINGS: [&str; 3] = ["a", "1", "("];

/// A prompt in a file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SavedPrompt {
    name: String,
    /// The model that it is of; this and what follows is null where the file cannot be used.
    model: Option<String>,
    tokens: Option<Tokens>,
    /// Of the file.
    bytes: Option<Bytes>,
    /// What keys and values are stored in: `float32`, `float16`, `bfloat16` or `int8`.
    kv_cache: Option<String>,
    /// When, in seconds since 1970.
    saved_at: Option<u64>,
    /// Why the file cannot be used; not there where it can.
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
            Err(e) => Self {
                name: name.to_string(),
                model: None,
                tokens: None,
                bytes: None,
                kv_cache: None,
                saved_at: None,
                error: Some(if e.is_io() { "it cannot be read".into() } else { e.to_string() }),
            },
        }
    }
}

/// `GET /admin/cache`.
pub(crate) async fn list(request: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    let store = store(&request, &state)?;
    let listed = blocking(move || store.list()).await?.map_err(|e| failed("", &e))?;
    let data: Vec<_> = listed.into_iter().map(SavedPrompt::from).collect();
    Ok(HttpResponse::Ok().json(json!({ "object": "list", "data": data })))
}

/// `POST /admin/cache`.
pub(crate) async fn cache(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    check_admin(&request, &state)?;
    let store = store(&request, &state)?;
    match body::read(&request, payload, &state).await? {
        CacheRequest::Save(body) => {
            let saved = save(&request, &state, store, body).await;
            let outcome = if saved.is_ok() { "ok" } else { "failed" };
            let save = PromptFile { action: "save", outcome, device: OnDevice::default() };
            state.metrics.saved_prompts.get_or_create(&save).inc();
            saved
        }
        CacheRequest::Restore(body) => restore(&request, &state, store, body).await,
        CacheRequest::Delete(body) => delete(&request, &state, store, body.name).await,
    }
}

/// Has a prompt read in its turn and saved, by whichever device is free.
async fn save(
    request: &HttpRequest,
    state: &AppState,
    store: PromptStore,
    body: SavePrompt,
) -> Result<HttpResponse, ApiError> {
    let SavePrompt { name, model, prompt, messages, tools, cache_salt: salt } = body;
    let text = auth::model(request, state, model.as_deref())?;
    let prompt = Prompt::choose(prompt, with_tools(messages, tools)?)?;
    prompt.check(text.card().vocabulary)?;
    check_readiness(&state.readiness.borrow())?;
    let tokens = encode(state, text, prompt).await?;
    if tokens.is_empty() {
        return Err(ApiError::EmptyPrompt);
    }
    let read = Tokens(tokens.len());
    room(read, Some(Tokens(1)), Tokens(1), state.context_length(text))?;
    let save = SaveAs { name: name.to_string(), dir: store.dir().to_path_buf() };
    let model = text.card().id.as_str().into();
    let cache_salt = cache_salt::digest(state, caller(request).key.as_deref(), salt.as_deref());
    let job = Job { model, cache_salt, save: Some(save), ..Job::new(state.executor.new_id(), tokens, 1) };
    let (finish, queue_wait) = run(request, state, job).await?;
    if let Some(tally) = RequestRecord::of(request) {
        tally.add_tokens(read.0, 0);
    }
    let (head, bytes) = head(store, &name).await?;
    Ok(HttpResponse::Ok().json(json!({
        "action": "save",
        "saved": SavedPrompt::new(&name, head, bytes),
        "cached_tokens": finish.usage.cached_tokens,
        "timings": {
            "queue_ms": milliseconds(queue_wait),
            "prefill_ms": milliseconds(finish.timings.prefill),
            "saving_ms": milliseconds(finish.timings.saving),
        },
    })))
}

/// Waits for a job's end; how long it waited for the slot.
async fn run(request: &HttpRequest, state: &AppState, job: Job) -> Result<(Finish, Duration), ApiError> {
    let terms = Terms::from(state.deadlines());
    // Whoever leaves meanwhile drops it, and nothing is saved.
    let mut ticket = state.executor.submit_for(caller(request), job, terms)?;
    let mut waited = Duration::ZERO;
    loop {
        match ticket.next().await {
            Some(Event::Started { queue_wait }) => waited = queue_wait,
            Some(Event::Done(finish)) if finish.reason != FinishReason::Cancelled => {
                return Ok((finish, waited));
            }
            Some(Event::Failed(failure)) => return Err(failure.into()),
            Some(Event::Done(_)) | None => return Err(Failure::ShuttingDown.into()),
            Some(_) => {}
        }
    }
}

/// Has a saved prompt kept by every device.
async fn restore(
    request: &HttpRequest,
    state: &AppState,
    store: PromptStore,
    body: RestorePrompt,
) -> Result<HttpResponse, ApiError> {
    let salt = audience(request, state, &body)?;
    let RestorePrompt { name, model: asked, .. } = body;
    let file = store.path(&name);
    let (head, bytes) = head(store, &name).await?;
    let text = auth::model(request, state, Some(asked.as_ref().unwrap_or(&head.model)))?;
    let (model, called) = (text.card().id.as_str().into(), name.to_string());
    let outcomes = give(request, state, Order::Restore { model, name: called, file, salt }).await?;
    Ok(HttpResponse::Ok().json(json!({
        "action": "restore",
        "saved": SavedPrompt::new(&name, head, bytes),
        "done": describe_all(outcomes)?,
    })))
}

/// The salt of the requests that may use a restored prompt: those of the key that restores it, or of another; `None` is all.
fn audience(
    request: &HttpRequest,
    state: &AppState,
    body: &RestorePrompt,
) -> Result<Option<CacheSalt>, FieldError> {
    body.check()?;
    if let Some(name) = &body.key
        && !state.access.rules().keys.has_name(name)
    {
        return Err(FieldError::value("key", format!("no API key has the name {name:?}")));
    }
    let key = body.key.clone().or_else(|| caller(request).key);
    Ok((!body.shared).then(|| cache_salt::digest(state, key.as_deref(), body.cache_salt.as_deref())))
}

/// Removes a saved prompt, and what was restored from it.
async fn delete(
    request: &HttpRequest,
    state: &AppState,
    store: PromptStore,
    name: PromptName,
) -> Result<HttpResponse, ApiError> {
    let called = name.clone();
    let deleted = blocking(move || store.delete(&called)).await?;
    deleted.map_err(|e| failed(name.as_str(), &e))?;
    // The file is gone in any case, and so is what a worker had that is gone itself.
    let forgotten = give(request, state, Order::Forget { name: name.to_string() }).await;
    let done = forgotten.ok().and_then(|outcomes| describe_all(outcomes).ok());
    Ok(HttpResponse::Ok().json(json!({ "action": "delete", "name": name.as_str(), "done": done })))
}

/// Where saved prompts lie, if there is somebody to take orders.
fn store(request: &HttpRequest, state: &AppState) -> Result<PromptStore, ApiError> {
    let store = state.saved.clone().filter(|_| state.orders.is_some());
    store.ok_or_else(|| ApiError::NotFound { path: request.path().to_owned() })
}

async fn head(store: PromptStore, name: &PromptName) -> Result<(PromptInfo, u64), ApiError> {
    let called = name.clone();
    blocking(move || store.head(&called)).await?.map_err(|e| failed(name.as_str(), &e))
}

/// Looks at files on a thread of its own: disks may be slow, and this one streams answers.
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

async fn encode(state: &AppState, text: &Arc<Text>, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    match prompt {
        // Some tokenizers would make a beginning-of-text token of it.
        Prompt::Text(prompt) if prompt.is_empty() => Ok(Vec::new()),
        Prompt::Text(prompt) => {
            tokenize(state, text, Untokenized { text: prompt, special: Special::Added }).await
        }
        Prompt::Ids(ids) => Ok(ids),
        Prompt::Conversation(conversation) => stem(state, text, conversation).await,
    }
}

/// What prompts begin with whose conversations begin with this one. Of one that ends with what the model is to answer, that is
/// all of it.
async fn stem(state: &AppState, text: &Arc<Text>, conversation: Conversation) -> Result<Vec<u32>, ApiError> {
    let is_open = |message: &Message| matches!(message.role.as_str(), "user" | "tool");
    if conversation.messages.last().is_some_and(is_open) {
        return encode_chat(state, text, conversation).await;
    }
    let mut shared: Option<Vec<u32>> = None;
    for beginning in BEGINNINGS {
        let mut longer = conversation.clone();
        longer.messages.push(Message::new("user", beginning));
        let prompt = encode_chat(state, text, longer).await?;
        shared = Some(match shared {
            None => prompt,
            Some(shared) => shared
                .into_iter()
                .zip(prompt)
                .take_while(|(one, other)| one == other)
                .map(|(one, _)| one)
                .collect(),
        });
    }
    Ok(shared.unwrap_or_default())
}

async fn encode_chat(
    state: &AppState,
    text: &Arc<Text>,
    conversation: Conversation,
) -> Result<Vec<u32>, ApiError> {
    let prompt = render(state, text, conversation).await?;
    tokenize(state, text, Untokenized { text: prompt, special: Special::Written }).await
}
