//! The handler of all generating routes, for complete and for streamed answers.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::{HttpRequest, HttpResponse, http::header::ContentType};

use super::{
    adapters,
    event_stream::EventStream,
    resume, slot,
    submit::{Origin, submit},
};
use crate::{
    http::{
        error::ApiError,
        formats::{ApiFormat, CompletionStream, CountedTokens, FinishedChoice, ResponseMeta, Update},
        middleware::{RequestRecord, auth},
        offload::Cost,
        request::{
            ApiRequest, Delivery, EncodeOptions, FillInMiddle, GenerateParams, GenerateRequest,
            RequestContext, ServedModel, Taken,
        },
        state::AppState,
    },
    job::{Command, Failure},
    text::Text,
};

/// Answers one request in the format `F`, or resumes the stream that it names.
pub(crate) async fn generate<F: ApiFormat>(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    if let Some(position) = resume::asked(&from.http).filter(|_| F::HAS_EVENTS) {
        return resume::resumed(&from.http, &from.state, &position, Some(F::ROUTE));
    }
    let (state, request) = (from.state.clone(), from.http.clone());
    let log_as = state.settings.log_prompts.then(|| request_id(&request));
    let server = state.clone();
    let owner = auth::key(&request).map(|key| key.name().to_owned());
    let by = owner.clone();
    let take =
        move |request: F::Request, text: &Text| resolve(request, text, (&server, by.as_deref()), log_as);
    let Taken { text, adapter, value: mut params, share, ignored } = from.take(take).await?;
    let id = &text.card().id;
    let adapters = adapters::chosen(&state.models, id, adapter.as_ref(), &params.adapters)?;
    let model = adapter.map_or_else(|| id.clone(), |adapter| format!("{id}:{}", adapter.name));
    let job = state.executor.new_id();
    let (delivery, choices, best_of) = (params.delivery, params.choices, params.best_of);
    let mut meta = ResponseMeta {
        id: F::id(job),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: model.clone(),
        seed: params.sampling.seed,
        fingerprint: text.card().fingerprint.clone(),
        details: params.details,
        include_usage: matches!(delivery, Delivery::Streamed { include_usage: true, .. }),
        continuous_usage: matches!(delivery, Delivery::Streamed { continuous_usage: true, .. }),
        prompt_tokens: 0,
        echoed: std::mem::take(&mut params.echoed),
        llama_cpp: params.llama_cpp.take(),
        stored: params.stored.take(),
    };
    if params.loads_only {
        let load = Command::Load { model: text.card().id.as_str().into(), keep_alive: params.keep_alive };
        return Ok(ignored.name_in(loaded(&state, load, F::new(meta)).await?));
    }
    let record = RequestRecord::of(&request);
    record.iter().for_each(|record| trace_request(record, &params, F::OPERATION, &model));
    let trace = record.as_ref().and_then(RequestRecord::trace);
    let mut streams =
        submit(&state, &text, params, Origin { id: job, caller: slot::caller(&request), trace, adapters })
            .await?;
    // The body has become tokens, whose number the queue bounds.
    drop(share);
    meta.prompt_tokens = streams.first().map_or(0, CompletionStream::prompt_tokens);
    let format = F::new(meta);
    streams.iter_mut().for_each(|stream| stream.record.clone_from(&record));
    let response = match delivery {
        Delivery::Whole => {
            let mut finished = finished(streams).await?;
            if let Some(sent) = best_of {
                finished.chunks_mut(choices).for_each(|choices| leave_out(choices, sent));
            }
            whole(&state, finished, format).await?
        }
        Delivery::Streamed { .. } => {
            let events = EventStream::new(streams, format, RequestRecord::take(&request));
            resume::streamed(&state, owner.as_deref(), events)
        }
    };
    Ok(ignored.name_in(response))
}

/// Loads the model of a request without a prompt, as Ollama does.
async fn loaded<F: ApiFormat>(
    state: &AppState,
    load: Command,
    mut format: F,
) -> Result<HttpResponse, ApiError> {
    if let Some(commands) = &state.commands {
        for outcome in commands(load).await {
            outcome.outcome?;
        }
    }
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(format.loaded()))
}

/// `POST /v1/messages/count_tokens`, `/v1/responses/input_tokens` and `/v1/chat/completions/input_tokens`.
pub(crate) async fn count_tokens<R: GenerateRequest>(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    let server = from.state.clone();
    let owner = auth::key(&from.http).map(|key| key.name().to_owned());
    let take = move |request: R, text: &Text| resolve(request, text, (&server, owner.as_deref()), None);
    let Taken { text, value: params, ignored, .. } = from.take(take).await?;
    let model = ServedModel { state: &from.state, text: &text };
    let input_tokens = model.encode(params.prompt, EncodeOptions::default()).await?.ids.len();
    Ok(ignored.name_in(HttpResponse::Ok().json(CountedTokens { input_tokens })))
}

/// Checks the request of the API key `owner`, and logs the prompt if `log_as` has the request's id.
fn resolve<R: GenerateRequest>(
    request: R,
    text: &Text,
    (state, owner): (&AppState, Option<&str>),
    log_as: Option<String>,
) -> Result<GenerateParams, ApiError> {
    let context = RequestContext {
        vocabulary: text.card().vocabulary,
        end_tokens: &text.card().end_tokens,
        deadlines: state.deadlines(),
        tools: text.into(),
        sampling: state.sampling_defaults(text),
        has_chat_template: text.card().has_chat_template,
        fill_in_middle: FillInMiddle::of(text),
        stored: state.stored_responses.of(owner),
    };
    let params = request.resolve(&context)?;
    if let Some(request_id) = log_as {
        tracing::info!(request_id, prompt = ?params.prompt, "prompt");
    }
    Ok(params)
}

fn request_id(request: &HttpRequest) -> String {
    RequestRecord::of(request).map_or_else(String::new, |record| record.id().as_str().to_owned())
}

/// Sets the span's attributes by the semantic conventions for generative AI, without the prompt.
fn trace_request(record: &RequestRecord, params: &GenerateParams, operation: &'static str, model: &str) {
    record.trace_with(|span| {
        span.set("gen_ai.operation.name", operation);
        span.set("gen_ai.provider.name", "eka");
        span.set("gen_ai.request.model", model.to_owned());
        span.set("gen_ai.request.temperature", f64::from(params.sampling.temperature));
        span.set("gen_ai.request.stream", params.delivery != Delivery::Whole);
        if let Some(max) = params.max_new {
            span.set("gen_ai.request.max_tokens", i64::try_from(max.0).unwrap_or(i64::MAX));
        }
        span.set("eka.priority", params.terms.priority.as_str());
    });
}

/// The choices of all streams, which are generated meanwhile.
async fn finished(streams: Vec<CompletionStream>) -> Result<Vec<FinishedChoice>, Failure> {
    let mut choices = Vec::with_capacity(streams.len());
    for mut stream in streams {
        choices.push(loop {
            if let Update::Finished(choice) = stream.next().await? {
                break *choice;
            }
        });
    }
    Ok(choices)
}

/// Sorts the choices of a prompt by their mean log-probability, and leaves out all but the best `sent`.
fn leave_out(choices: &mut [FinishedChoice], sent: usize) {
    choices.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
    choices.iter_mut().skip(sent).for_each(|choice| choice.is_left_out = true);
}

async fn whole<F: ApiFormat>(
    state: &AppState,
    choices: Vec<FinishedChoice>,
    mut format: F,
) -> Result<HttpResponse, ApiError> {
    let bytes = choices.iter().map(FinishedChoice::json_bytes).sum();
    let json =
        state.offload.run(Cost::of_json(bytes), move || Ok::<_, ApiError>(format.whole(&choices))).await?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(json))
}
