//! Embeddings of texts, and the order of documents by them: OpenAI's, Jina's and Ollama's routes.
//!
//! The texts of a request are computed in turn, a few jobs at a time, so that a long list leaves room in the queue for others.

use std::{sync::Arc, time::Instant};

use actix_web::HttpResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use utoipa::ToSchema;

use super::{adapters, slot, submit::check_readiness};
use crate::{
    executor::{Caller, Terms, Ticket},
    http::{
        adapter_registry::ServedAdapter,
        error::ApiError,
        field_error::FieldError,
        formats::to_json,
        middleware::RequestRecord,
        offload::Cost,
        request::{
            ApiRequest, EmbeddingFormat, EmbeddingRequest, EmbeddingTerms, EncodeOptions, OllamaEmbedRequest,
            OllamaEmbeddingsRequest, Prompt, RerankRequest, ServedModel, Taken,
        },
        state::AppState,
    },
    job::{Event, Failure, Job, JobAdapter, Step},
    text::Text,
    units::Tokens,
};

/// The embeddings of texts.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbeddingList<'a> {
    /// Always `list`.
    object: &'static str,
    data: Vec<EmbeddingItem>,
    model: &'a str,
    usage: EmbeddingUsage,
}

/// The embedding of a text.
#[derive(Serialize, ToSchema)]
#[schema(as = Embedding)]
struct EmbeddingItem {
    /// Always `embedding`.
    object: &'static str,
    /// Of the text in the request.
    index: usize,
    embedding: EmbeddingValue,
}

/// Numbers, or the base64 of little-endian float32.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum EmbeddingValue {
    Numbers(Vec<f32>),
    Base64(String),
}

/// Tokens of all texts.
#[derive(Clone, Copy, Serialize, ToSchema)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Documents in the order of their similarity to a query; an array for a request with `texts`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum RerankAnswer<'a> {
    Documents(Reranked<'a>),
    Texts(Vec<RankedText>),
}

/// A text and its similarity.
#[derive(Serialize, ToSchema)]
pub(crate) struct RankedText {
    /// Of the text in the request.
    index: usize,
    /// The cosine of the angle between the embeddings of query and text.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Documents in the order of their similarity to a query.
#[derive(Serialize, ToSchema)]
pub(crate) struct Reranked<'a> {
    id: String,
    model: &'a str,
    /// The best document first.
    results: Vec<RerankedDocument>,
    usage: EmbeddingUsage,
}

/// A document and its similarity.
#[derive(Serialize, ToSchema)]
struct RerankedDocument {
    /// Of the document in the request.
    index: usize,
    /// The cosine of the angle between the embeddings of query and document.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<DocumentText>,
}

/// The text of a document.
#[derive(Serialize, ToSchema)]
struct DocumentText {
    text: String,
}

/// The answer of `/api/embed`.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaEmbeddings<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    /// In nanoseconds.
    total_duration: u64,
    /// Always 0: loading is part of the total.
    load_duration: u64,
    prompt_eval_count: usize,
}

/// The answer of `/api/embeddings`.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaEmbedding {
    embedding: Vec<f32>,
}

/// `POST /v1/embeddings`.
pub(crate) async fn embeddings(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    let taken = from.take(|request: EmbeddingRequest, text| {
        check(&request.input, "input", text)?;
        Ok(request)
    });
    let Taken { text, adapter, value: request, share: _share, ignored } = taken.await?;
    let terms = EmbeddingTerms {
        dimensions: request.dimensions,
        pooling: request.pooling,
        is_raw: !request.normalize,
        priority: request.priority.unwrap_or_default(),
        keep_alive: request.keep_alive,
    };
    let (embedded, usage) =
        Embedder::new(&from, (&text, adapter.as_deref()), terms)?.embed(request.input).await?;
    let numbers = embedded.iter().map(Vec::len).sum();
    let format = request.encoding_format;
    let json = move || {
        let item = |(index, numbers): (usize, Vec<f32>)| EmbeddingItem {
            object: "embedding",
            index,
            embedding: EmbeddingValue::new(numbers, format),
        };
        let data = embedded.into_iter().enumerate().map(item).collect();
        to_json(&EmbeddingList { object: "list", data, model: &text.card().id, usage })
    };
    Ok(ignored.name_in(answer(&from.state, numbers, json).await?))
}

/// `POST /v1/rerank`.
pub(crate) async fn rerank(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    let taken = from.take(|mut request: RerankRequest, _| {
        let texts = request.take_texts()?;
        Ok((request, texts))
    });
    let Taken { text, adapter, value, share: _share, ignored } = taken.await?;
    let (request, (documents, as_texts)) = value;
    let terms = EmbeddingTerms { pooling: request.pooling, ..EmbeddingTerms::default() };
    let texts = [&request.query].into_iter().chain(&documents).cloned().map(Prompt::Text).collect();
    let (embedded, usage) = Embedder::new(&from, (&text, adapter.as_deref()), terms)?.embed(texts).await?;
    let Some((query, embedded)) = embedded.split_first() else { return Err(empty("query")) };
    let scores = embedded.iter().map(|document| dot(query, document));
    let mut ranked: Vec<_> = scores.zip(documents).enumerate().collect();
    ranked.sort_by(|(_, (one, _)), (_, (other, _))| other.total_cmp(one));
    ranked.truncate(request.top_n.unwrap_or(usize::MAX));
    let ranked = ranked.into_iter();
    let answer = if as_texts {
        let with_text = request.return_text;
        RerankAnswer::Texts(
            ranked
                .map(|(index, (score, text))| RankedText { index, score, text: with_text.then_some(text) })
                .collect(),
        )
    } else {
        let with_text = request.return_documents;
        let results = ranked.map(|(index, (relevance_score, text))| RerankedDocument {
            index,
            relevance_score,
            document: with_text.then_some(DocumentText { text }),
        });
        let id = format!("rerank-{}", from.state.executor.new_id().0);
        RerankAnswer::Documents(Reranked { id, model: &text.card().id, results: results.collect(), usage })
    };
    Ok(ignored.name_in(HttpResponse::Ok().json(answer)))
}

/// `POST /api/embed`.
pub(crate) async fn ollama_embed(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    let began = Instant::now();
    let taken = from.take(|request: OllamaEmbedRequest, text| {
        check(&request.input, "input", text)?;
        Ok(request)
    });
    let Taken { text, adapter, value: request, share: _share, ignored } = taken.await?;
    let (dimensions, keep_alive) = (request.dimensions, request.keep_alive);
    let terms = EmbeddingTerms { dimensions, keep_alive, ..EmbeddingTerms::default() };
    let (embeddings, usage) =
        Embedder::new(&from, (&text, adapter.as_deref()), terms)?.embed(request.input).await?;
    let numbers = embeddings.iter().map(Vec::len).sum();
    let json = move || {
        to_json(&OllamaEmbeddings {
            model: &text.card().id,
            embeddings,
            total_duration: u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
            load_duration: 0,
            prompt_eval_count: usage.prompt_tokens,
        })
    };
    Ok(ignored.name_in(answer(&from.state, numbers, json).await?))
}

/// `POST /api/embeddings`.
pub(crate) async fn ollama_embeddings(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    let Taken { text, adapter, value: request, share: _share, ignored } =
        from.take(|request: OllamaEmbeddingsRequest, _| Ok(request)).await?;
    let terms = EmbeddingTerms { keep_alive: request.keep_alive, is_raw: true, ..EmbeddingTerms::default() };
    let (mut embedded, _) = Embedder::new(&from, (&text, adapter.as_deref()), terms)?
        .embed(vec![Prompt::Text(request.prompt)])
        .await?;
    let embedding = embedded.pop().unwrap_or_default();
    Ok(ignored.name_in(HttpResponse::Ok().json(OllamaEmbedding { embedding })))
}

async fn answer(
    state: &AppState,
    numbers: usize,
    json: impl FnOnce() -> String + Send + 'static,
) -> Result<HttpResponse, ApiError> {
    /// Digits of a number as JSON.
    const DIGITS: usize = 12;
    let json = state.offload.run(Cost::of_json(numbers * DIGITS), move || Ok::<_, ApiError>(json())).await?;
    Ok(HttpResponse::Ok().content_type("application/json").body(json))
}

/// Checks that the model has the tokens of these texts.
fn check(texts: &[Prompt], param: &str, text: &Text) -> Result<(), FieldError> {
    let vocabulary = text.card().vocabulary;
    let mut texts = texts.iter().enumerate();
    texts.try_for_each(|(index, prompt)| prompt.check(&format!("{param}[{index}]"), vocabulary))
}

fn empty(param: &str) -> ApiError {
    FieldError::EmptyPrompt { param: param.into() }.into()
}

/// Computes the embeddings of one request.
struct Embedder<'a> {
    model: ServedModel<'a>,
    caller: Caller,
    record: Option<RequestRecord>,
    terms: EmbeddingTerms,
    adapters: Vec<JobAdapter>,
}

impl<'a> Embedder<'a> {
    fn new(
        from: &'a ApiRequest,
        (text, adapter): (&'a Arc<Text>, Option<&ServedAdapter>),
        terms: EmbeddingTerms,
    ) -> Result<Self, ApiError> {
        check_readiness(&from.state.readiness.borrow())?;
        let model = ServedModel { state: &from.state, text };
        let (caller, record) = (slot::caller(&from.http), RequestRecord::of(&from.http));
        Ok(Self {
            model,
            caller,
            record,
            terms,
            adapters: adapter.map(adapters::whole).into_iter().collect(),
        })
    }

    /// The embeddings of `texts`, in their order, and their tokens.
    async fn embed(&self, texts: Vec<Prompt>) -> Result<(Vec<Vec<f32>>, EmbeddingUsage), ApiError> {
        let (state, mut embedded, mut prompt_tokens) = (self.model.state, Vec::new(), 0);
        let deadlines = state.deadlines();
        let terms = Terms { priority: self.terms.priority, is_limited: true, ..deadlines.into() };
        let mut texts = texts.into_iter();
        loop {
            let mut jobs = Vec::new();
            for prompt in texts.by_ref().take(state.settings.max_sequences.get()) {
                jobs.push(self.job(prompt).await?);
            }
            if jobs.is_empty() {
                break;
            }
            for ticket in state.executor.submit_together(&self.caller, jobs, terms)? {
                let (numbers, tokens) = result(ticket).await?;
                prompt_tokens += tokens;
                embedded.push(self.finish(numbers));
            }
        }
        if let Some(record) = &self.record {
            record.add_tokens(prompt_tokens, 0);
        }
        Ok((embedded, EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens }))
    }

    async fn job(&self, prompt: Prompt) -> Result<Job, ApiError> {
        let (state, text) = (self.model.state, self.model.text);
        state.executor.check_room(Tokens(1), self.terms.priority)?;
        let prompt = self.model.encode(prompt, EncodeOptions::default()).await?.ids;
        let (tokens, capacity) = (Tokens(prompt.len()), self.model.context_length());
        if tokens >= capacity {
            return Err(Failure::Context { prompt: tokens, max_new: Tokens(1), capacity }.into());
        }
        Ok(Job {
            model: text.card().id.as_str().into(),
            keep_alive: self.terms.keep_alive,
            embedding: Some(self.terms.pooling.unwrap_or(state.settings.pooling)),
            // Nothing continues these texts.
            cache_prompt: false,
            adapters: self.adapters.clone(),
            ..Job::new(state.executor.new_id(), prompt, 1)
        })
    }

    /// Cuts and normalizes an embedding.
    fn finish(&self, mut numbers: Vec<f32>) -> Vec<f32> {
        numbers.truncate(self.terms.dimensions.unwrap_or(usize::MAX));
        if !self.terms.is_raw {
            normalize(&mut numbers);
        }
        numbers
    }
}

/// The embedding that a job gives, and the tokens of its text.
async fn result(mut ticket: Ticket) -> Result<(Vec<f32>, usize), Failure> {
    let mut embedding = Vec::new();
    loop {
        match ticket.next().await.ok_or(Failure::ShuttingDown)? {
            Event::Step(Step::Embedding(numbers)) => embedding = numbers,
            Event::Done(_) if embedding.is_empty() => return Err(Failure::ShuttingDown),
            Event::Done(finish) => return Ok((embedding, finish.usage.prompt_tokens)),
            Event::Failed(failure) => return Err(failure),
            Event::Started { .. } | Event::Loading | Event::Loaded | Event::Step(_) => {}
        }
    }
}

/// Gives `numbers` the length 1; all zeros stay.
fn normalize(numbers: &mut [f32]) {
    let length = dot(numbers, numbers).sqrt();
    if length > 0.0 && length.is_finite() {
        numbers.iter_mut().for_each(|number| *number /= length);
    }
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

impl EmbeddingValue {
    fn new(numbers: Vec<f32>, format: EmbeddingFormat) -> Self {
        match format {
            EmbeddingFormat::Float => Self::Numbers(numbers),
            EmbeddingFormat::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalized_numbers_have_length_1_and_zeros_stay() {
        let mut numbers = [3.0, 4.0];
        normalize(&mut numbers);
        assert_eq!(numbers, [0.6, 0.8]);
        for odd in [[0.0; 2], [f32::NAN; 2], [1e30; 2]] {
            let mut numbers = odd;
            normalize(&mut numbers);
            assert_eq!(numbers.map(f32::to_bits), odd.map(f32::to_bits));
        }
    }
}
