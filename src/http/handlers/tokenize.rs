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

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType, web};
use serde_json::{Value, json};

use crate::{
    http::{
        error::ApiError,
        offload::Cost,
        request::{
            body::{self, Taken},
            prompt::check_ids,
            prompt_rendering::render,
            prompt_tokens::{Special, Untokenized, tokenize_within},
            tokenize::{ApplyTemplateRequest, DetokenizeRequest, Source, TokenizeRequest},
        },
        state::AppState,
    },
    text::Text,
    units::Tokens,
};

/// Most tokens of a text for `/tokenize`, even if the context holds fewer: clients measure documents before they cut them.
/// Tokenizing takes hundreds of bytes of memory for each token.
const MOST_TOKENS: usize = 1 << 17;

/// `POST /tokenize`.
pub(crate) async fn tokenize(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let taken = body::take(&request, payload, &state, |request: TokenizeRequest, _| {
        let with_pieces = request.with_pieces;
        Ok((request.source()?, with_pieces))
    });
    let Taken { text, value: (source, with_pieces), share, ignored } = taken.await?;
    let (source, special) = match source {
        Source::Text { text, add_special: true } => (text, Special::Added),
        Source::Text { text, add_special: false } => (text, Special::Written),
        Source::Conversation(conversation) => (render(&state, &text, conversation).await?, Special::Written),
    };
    let most = state.context_length(&text);
    let counted = Tokens(most.0.max(MOST_TOKENS));
    let ids = tokenize_within(&state, &text, Untokenized { text: source, special }, counted).await?;
    drop(share);
    let json = state.offload.run(Cost::of_text(ids.len()), move || {
        let tokens = if with_pieces { pieces(&text, &ids) } else { json!(ids) };
        Ok::<_, ApiError>(json!({ "count": ids.len(), "tokens": tokens, "max_model_len": most }).to_string())
    });
    Ok(ignored.name_in(send(json.await?)))
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let taken = body::take(&request, payload, &state, |request: DetokenizeRequest, text| {
        check_ids(&request.tokens, "tokens", text.card().vocabulary)?;
        Ok(request.tokens)
    });
    let Taken { text, value: ids, share, ignored } = taken.await?;
    let json = state.offload.run(Cost::of_text(ids.len()), move || {
        let spelled = text.spell(&ids);
        drop(share);
        Ok::<_, ApiError>(json!({ "content": spelled, "prompt": spelled }).to_string())
    });
    Ok(ignored.name_in(send(json.await?)))
}

/// `POST /apply-template`.
pub(crate) async fn apply_template(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let taken =
        body::take(&request, payload, &state, |request: ApplyTemplateRequest, _| Ok(request.conversation()));
    let Taken { text, value: conversation, share, ignored } = taken.await?;
    let prompt = render(&state, &text, conversation).await?;
    drop(share);
    let cost = Cost::of_json(prompt.len());
    let json = state.offload.run(cost, move || Ok::<_, ApiError>(json!({ "prompt": prompt }).to_string()));
    Ok(ignored.name_in(send(json.await?)))
}

/// An answer with JSON that was serialized off the HTTP thread.
fn send(json: String) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(json)
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
