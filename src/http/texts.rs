//! What a model's text side does by itself: text to tokens, tokens to text, messages to a prompt. No worker is needed.
//!
//! | route | takes | gives |
//! |---|---|---|
//! | `POST /tokenize` | one of `content`, `prompt`, `messages`; `tools`, `add_special`, `with_pieces` | `tokens`, `count`, `max_model_len` |
//! | `POST /detokenize` | `tokens` | `content`, and the same as `prompt` |
//! | `POST /apply-template` | `messages`, `tools` | `prompt` |
//!
//! Each takes `model` as well. `content` is llama.cpp's name and gets no special tokens unless `add_special` asks for them;
//! `prompt` is vLLM's and gets them unless it does not want them. A chat template writes its own. `add_special_tokens` is
//! vLLM's name for the field.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::{
    AppState,
    ask::check_ids,
    body,
    error::ApiError,
    fields::{FieldError, Fields, Known},
    gate,
    messages::conversation_of,
    rendering::render,
    tools::{Shape, take_tools},
};
use crate::text::{Conversation, Text, TextError};

/// Characters or tokens that are worked on sooner than another thread has taken them up.
const FEW: usize = 1024;

/// Templates always ask for the next answer here.
const ADD_GENERATION_PROMPT: Known =
    Known { name: "add_generation_prompt", asks_for_nothing: |v| v == true, only: "true", kind: None };

/// llama.cpp's and vLLM's fields with the only value that eka has for them.
pub(super) const OF_TOKENIZE: &[Known] = &[
    Known { name: "parse_special", asks_for_nothing: |v| v == true, only: "true", kind: None },
    ADD_GENERATION_PROMPT,
];

pub(super) const OF_TEMPLATES: &[Known] = &[ADD_GENERATION_PROMPT];

/// What to cut into tokens.
enum Source {
    Text { text: String, add_special: bool },
    Conversation(Conversation),
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let (text, mut fields) = begin(&request, payload, &state).await?;
    let source = Source::take(&mut fields)?;
    let with_pieces = fields.take("with_pieces")?.unwrap_or(false);
    fields.finish(OF_TOKENIZE)?;
    let max_model_len = state.context_length(&text);
    let (source, special) = match source {
        Source::Text { text, add_special } => (text, add_special),
        Source::Conversation(conversation) => (render(&state, &text, conversation).await?, false),
    };
    let tokens = aside(&state, source.len(), move || {
        let ids = if special { text.encode(&source)? } else { text.encode_bare(&source)? };
        Ok(
            json!({ "count": ids.len(), "tokens": if with_pieces { pieces(&text, &ids) } else { json!(ids) } }),
        )
    });
    let mut answer = tokens.await?;
    answer["max_model_len"] = json!(max_model_len);
    Ok(HttpResponse::Ok().json(answer))
}

/// `POST /detokenize`.
pub(super) async fn detokenize(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let (text, mut fields) = begin(&request, payload, &state).await?;
    let ids: Vec<u32> = fields.require("tokens")?;
    check_ids(&ids, "tokens", text.card().vocabulary)?;
    fields.finish(&[])?;
    let spelled = aside(&state, ids.len(), move || Ok(text.spell(&ids))).await?;
    Ok(HttpResponse::Ok().json(json!({ "content": spelled, "prompt": spelled })))
}

/// `POST /apply-template`.
pub(super) async fn apply_template(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let (text, mut fields) = begin(&request, payload, &state).await?;
    let conversation = take_conversation(&mut fields)?;
    fields.finish(OF_TEMPLATES)?;
    let prompt = render(&state, &text, conversation).await?;
    Ok(HttpResponse::Ok().json(json!({ "prompt": prompt })))
}

async fn begin(
    request: &HttpRequest,
    payload: web::Payload,
    state: &AppState,
) -> Result<(Arc<Text>, Fields), ApiError> {
    let mut fields = body::read(payload, state.settings.body_limit).await?;
    let text = gate::model(request, state, fields.take::<String>("model")?.as_deref())?;
    Ok((Arc::clone(text), fields))
}

/// Does what may take long on a thread of its own, as prompts are encoded: a few at a time.
pub(super) async fn aside<T: Send + 'static>(
    state: &AppState,
    length: usize,
    work: impl FnOnce() -> Result<T, TextError> + Send + 'static,
) -> Result<T, ApiError> {
    let internal = |error: &dyn std::fmt::Display| ApiError::Internal { message: error.to_string() };
    let _permit = state.encoders.acquire().await.map_err(|error| internal(&error))?;
    if length <= FEW {
        return Ok(work()?);
    }
    Ok(web::block(work).await.map_err(|error| internal(&error))??)
}

impl Source {
    fn take(fields: &mut Fields) -> Result<Self, FieldError> {
        let older: Option<bool> = fields.take("add_special_tokens")?;
        let add_special = fields.take("add_special")?.or(older);
        let names = ["content", "prompt", "messages"];
        let given: Vec<&str> = names.into_iter().filter(|name| fields.has(name)).collect();
        match given[..] {
            [] => Err(FieldError::Missing { param: "content, prompt or messages".into() }),
            [name, other, ..] => {
                Err(FieldError::value(other, format!("is given together with {name}; send one of them")))
            }
            ["messages"] if add_special == Some(true) => Err(FieldError::value(
                "add_special",
                "is true, and a chat template writes the special tokens itself; leave it out or send false",
            )),
            ["messages"] => take_conversation(fields).map(Self::Conversation),
            [name] => {
                let add_special = add_special.unwrap_or(name == "prompt");
                Ok(Self::Text { text: fields.require(name)?, add_special })
            }
        }
    }
}

pub(super) fn take_conversation(fields: &mut Fields) -> Result<Conversation, FieldError> {
    let conversation = conversation_of(fields.require("messages")?, "messages")?;
    let tools = take_tools(fields, Shape::Nested)?.into_iter().map(|tool| tool.told).collect();
    Ok(Conversation { tools, ..conversation })
}

/// As llama.cpp has it: a piece that is no whole characters is an array of bytes.
fn pieces(text: &Text, ids: &[u32]) -> Value {
    let piece = |id: &u32| {
        let token = text.token(*id);
        let whole = match token.bytes {
            None => json!(token.text),
            Some(bytes) => String::from_utf8(bytes).map_or_else(|e| json!(e.into_bytes()), Value::from),
        };
        json!({ "id": id, "piece": whole })
    };
    ids.iter().map(piece).collect()
}
