//! The requests of `/v1/embeddings`, `/v1/rerank`, and Ollama's `/api/embed` and `/api/embeddings`.

use serde::Serialize;

use super::{
    compat,
    keep_alive::keep_alive,
    prompt::{Prompt, texts},
    schema::{FieldType, Modify, array, boolean, integer, integer_from, one_of, shape, string},
};
use crate::{
    http::field_error::FieldError,
    job::{KeepAlive, Pooling, Priority},
};

/// Most documents of one request.
const MAX_DOCUMENTS: usize = 1024;

shape! {
    /// A request of `/v1/embeddings`.
    pub(crate) struct EmbeddingRequest {
        /// The texts: at most 2048.
        input: Vec<Prompt> = texts();
        /// Id of a model of `GET /v1/models`; by default the first of them.
        _model as "model": Option<String> = string().optional();
        /// Numbers, or the base64 of little-endian float32.
        encoding_format: EmbeddingFormat = encoding_format().or(EmbeddingFormat::Float);
        /// Keeps this many of the first numbers. Only for models that were trained for it.
        dimensions: Option<usize> = integer_from(1).optional();
        /// How the hidden states become an embedding; by default `engine.pooling`.
        pooling: Option<Pooling> = pooling().optional();
        /// Whether embeddings have length 1.
        normalize: bool = boolean().or(true);
        /// Interactive requests, the default, run before batch requests, within a limit.
        priority: Option<Priority> = one_of(&[("interactive", Priority::Interactive), ("batch", Priority::Batch)]).optional();
        /// How long the model stays loaded afterwards.
        keep_alive: Option<KeepAlive> = keep_alive().optional();
    }
    accepts compat::EMBEDDINGS;
}

shape! {
    /// A request of `/v1/rerank`, as Jina, Cohere and vLLM have it, or with `texts` as Text Embeddings Inference has it.
    pub(crate) struct RerankRequest {
        query: String = string();
        /// The texts to order: at most 1024.
        documents: Option<Vec<String>> = array(string()).items(1..=MAX_DOCUMENTS).optional();
        /// The same in the shape of Text Embeddings Inference: the answer is an array of scores.
        texts: Option<Vec<String>> = array(string()).items(1..=MAX_DOCUMENTS).optional();
        /// Id of a model of `GET /v1/models`; by default the first of them.
        _model as "model": Option<String> = string().optional();
        /// How many of the best documents are sent; by default all.
        top_n: Option<usize> = integer(1..=MAX_DOCUMENTS).optional();
        /// Whether each result has its text.
        return_documents: bool = boolean().or(false);
        /// The same for `texts`.
        return_text: bool = boolean().or(false);
        /// How the hidden states become an embedding; by default `engine.pooling`.
        pooling: Option<Pooling> = pooling().optional();
    }
    accepts compat::EMBEDDINGS;
}

shape! {
    /// A request of `/api/embed`.
    pub(crate) struct OllamaEmbedRequest {
        input: Vec<Prompt> = texts();
        _model as "model": Option<String> = string().optional();
        dimensions: Option<usize> = integer_from(1).optional();
        keep_alive: Option<KeepAlive> = keep_alive().optional();
    }
    accepts compat::OLLAMA_EMBED;
}

shape! {
    /// A request of `/api/embeddings`, the older form.
    pub(crate) struct OllamaEmbeddingsRequest {
        prompt: String = string();
        _model as "model": Option<String> = string().optional();
        keep_alive: Option<KeepAlive> = keep_alive().optional();
    }
    accepts compat::OLLAMA_EMBED;
}

impl RerankRequest {
    /// The texts to order, and whether they are in the shape of Text Embeddings Inference.
    pub(crate) fn take_texts(&mut self) -> Result<(Vec<String>, bool), FieldError> {
        match (self.documents.take(), self.texts.take()) {
            (Some(documents), None) => Ok((documents, false)),
            (None, Some(texts)) => Ok((texts, true)),
            (Some(_), Some(_)) => Err(FieldError::conflict("texts", "documents")),
            (None, None) => Err(FieldError::Missing { param: "documents".into() }),
        }
    }
}

/// How embeddings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EmbeddingFormat {
    Float,
    Base64,
}

/// How texts are embedded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EmbeddingTerms {
    pub(crate) dimensions: Option<usize>,
    /// `None` leaves it to the settings.
    pub(crate) pooling: Option<Pooling>,
    pub(crate) is_raw: bool,
    pub(crate) priority: Priority,
    pub(crate) keep_alive: Option<KeepAlive>,
}

const fn encoding_format() -> impl FieldType<Value = EmbeddingFormat> {
    one_of(&[("float", EmbeddingFormat::Float), ("base64", EmbeddingFormat::Base64)])
}

const fn pooling() -> impl FieldType<Value = Pooling> {
    one_of(&[("last", Pooling::Last), ("mean", Pooling::Mean)])
}
