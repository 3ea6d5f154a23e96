//! Tokenizing, detokenizing and rendering chat templates, without a worker.
//!
//! | route | request | answer |
//! |---|---|---|
//! | `POST /tokenize` | one of `content`, `prompt`, `messages`; `tools`, `add_special`, `with_pieces`, `return_token_strs` | `tokens`, `count`, `max_model_len`, `token_strs` |
//! | `POST /detokenize` | `tokens` | `content`, and the same as `prompt` |
//! | `POST /apply-template` | `messages`, `tools` | `prompt` |
//!
//! All take `model` as well. `content` is llama.cpp's name and gets no special tokens by default; `prompt` is vLLM's name and
//! gets them by default; `add_special` overrides both. Chat templates write their own. `add_special_tokens` is vLLM's name of
//! `add_special`.

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    http::{
        error::ApiError,
        formats::to_json,
        middleware::auth,
        offload::Cost,
        request::{
            ApiRequest, ApplyTemplateRequest, DetokenizeRequest, Ignored, ServedModel, Source, Special,
            Taken, TokenizeRequest, prompt::check_ids,
        },
        state::AppState,
    },
    text::{Text, TokenText},
    units::Tokens,
};

/// Token limit of `/tokenize` for models with a shorter context: clients measure documents before they split them. Tokenizing
/// takes hundreds of bytes of memory per token.
const MAX_TOKENS: usize = 1 << 17;

/// The tokens of a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tokenized {
    count: usize,
    tokens: Vec<Token>,
    /// The context length.
    max_model_len: Tokens,
    /// The texts of the tokens, with `return_token_strs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

/// A token id, or with `with_pieces` a token id and its text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Token {
    Id(u32),
    Piece { id: u32, piece: PieceText },
}

/// The text of a token, or its bytes where they are not whole characters, as in llama.cpp.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum PieceText {
    Text(String),
    Bytes(Vec<u8>),
}

/// The text of tokens, under two names.
#[derive(Serialize, ToSchema)]
pub(crate) struct Detokenized<'a> {
    content: &'a str,
    prompt: &'a str,
}

/// What a tokenizer's configuration tells clients that render and count by themselves, as in vLLM.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenizerInfo<'a> {
    /// Always `PreTrainedTokenizerFast`: the tokenizer is read from tokenizer.json.
    tokenizer_class: &'static str,
    #[schema(required)]
    bos_token: Option<&'a str>,
    #[schema(required)]
    eos_token: Option<String>,
    /// Always null: nothing is padded.
    #[schema(required)]
    pad_token: Option<&'static str>,
    #[schema(required)]
    chat_template: Option<&'a str>,
    vocab_size: usize,
    model_max_length: Tokens,
}

/// The prompt that the chat template renders from messages.
#[derive(Serialize, ToSchema)]
pub(crate) struct RenderedPrompt {
    prompt: String,
}

/// `POST /tokenize`.
pub(crate) async fn tokenize(mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let taken = request.take(|request: TokenizeRequest, _| {
        let (with_pieces, with_texts) = (request.with_pieces, request.return_token_strs);
        Ok((request.source()?, with_pieces, with_texts))
    });
    let Taken { text, value: (source, with_pieces, with_texts), share, ignored, .. } = taken.await?;
    let model = ServedModel { state: &request.state, text: &text };
    let (source, special) = match source {
        Source::Text { text, add_special: true } => (text, Special::Added),
        Source::Text { text, add_special: false } => (text, Special::Written),
        Source::Conversation(conversation) => (model.render(conversation).await?, Special::Written),
    };
    let max = model.context_length();
    let ids = model.tokenize(source, special, Tokens(max.0.max(MAX_TOKENS))).await?;
    drop(share);
    let count = ids.len();
    let json = move || {
        let token = |id| if with_pieces { Token::piece(&text, id) } else { Token::Id(id) };
        let token_strs = with_texts.then(|| ids.iter().map(|id| text.token(*id).text).collect());
        let tokens = ids.into_iter().map(token).collect();
        to_json(&Tokenized { count, tokens, max_model_len: max, token_strs })
    };
    answer(&request.state, Cost::of_text(count), ignored, json).await
}

/// `GET /tokenizer_info`: that of the default model.
pub(crate) async fn tokenizer_info(
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let text = auth::model(&request, &state, None)?;
    let card = text.card();
    Ok(HttpResponse::Ok().json(TokenizerInfo {
        tokenizer_class: "PreTrainedTokenizerFast",
        bos_token: text.bos(),
        eos_token: card.end_tokens.first().map(|end| text.token(*end).text),
        pad_token: None,
        chat_template: text.templates().next().map(|template| template.source().text()),
        vocab_size: card.vocabulary,
        model_max_length: state.context_length(text),
    }))
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let taken = request.take(|request: DetokenizeRequest, text| {
        check_ids(&request.tokens, "tokens", text.card().vocabulary)?;
        Ok(request.tokens)
    });
    let Taken { text, value: ids, share, ignored, .. } = taken.await?;
    let cost = Cost::of_text(ids.len());
    let json = move || {
        let content = text.decode_with_special(&ids);
        drop(share);
        to_json(&Detokenized { content: &content, prompt: &content })
    };
    answer(&request.state, cost, ignored, json).await
}

/// `POST /apply-template`.
pub(crate) async fn apply_template(mut request: ApiRequest) -> Result<HttpResponse, ApiError> {
    let taken = request.take(|request: ApplyTemplateRequest, _| Ok(request.conversation()?));
    let Taken { text, value: conversation, share, ignored, .. } = taken.await?;
    let prompt = ServedModel { state: &request.state, text: &text }.render(conversation).await?;
    drop(share);
    answer(&request.state, Cost::of_json(prompt.len()), ignored, move || to_json(&RenderedPrompt { prompt }))
        .await
}

/// An answer with the JSON that `write` makes at this cost.
async fn answer(
    state: &AppState,
    cost: Cost,
    ignored: Ignored,
    write: impl FnOnce() -> String + Send + 'static,
) -> Result<HttpResponse, ApiError> {
    let json = state.offload.run(cost, move || Ok::<_, ApiError>(write())).await?;
    Ok(ignored.name_in(HttpResponse::Ok().content_type(ContentType::json()).body(json)))
}

impl Token {
    fn piece(text: &Text, id: u32) -> Self {
        let TokenText { text, bytes } = text.token(id);
        let piece = match bytes.map(String::from_utf8) {
            None => PieceText::Text(text),
            Some(Ok(text)) => PieceText::Text(text),
            Some(Err(error)) => PieceText::Bytes(error.into_bytes()),
        };
        Self::Piece { id, piece }
    }
}
