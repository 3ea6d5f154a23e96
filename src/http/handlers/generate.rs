//! The handler of all generating routes, for complete and for streamed answers.

use std::{
    collections::VecDeque,
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, ContentType},
    web::Bytes,
};
use futures_util::{Stream, stream};
use tokio::time::timeout;

use super::{
    slot,
    submit::{Origin, submit},
};
use crate::{
    executor::Deadlines,
    http::{
        error::ApiError,
        formats::{ApiFormat, CompletionStream, FinishedChoice, ResponseMeta, SseEvents, Update},
        middleware::RequestRecord,
        offload::Cost,
        request::{ApiRequest, Delivery, GenerateParams, GenerateRequest, RequestContext, Taken},
        state::AppState,
    },
    text::Text,
};

/// A comment by the standard of server-sent events. Clients skip it, proxies keep the connection open, and a write to a
/// closed connection fails.
const HEARTBEAT: &[u8] = b": waiting\n\n";

/// The heartbeat while the model is loaded, which may take minutes.
const LOADING: &[u8] = b": loading the model\n\n";

/// Answers one request in the format `F`.
pub(crate) async fn generate<F: ApiFormat>(mut from: ApiRequest) -> Result<HttpResponse, ApiError> {
    let (state, request) = (from.state.clone(), from.http.clone());
    let (deadlines, log_as) = (state.deadlines(), state.settings.log_prompts.then(|| request_id(&request)));
    let take = move |request: F::Request, text: &Text| resolve(request, text, deadlines, log_as);
    let Taken { text, value: mut params, share, ignored } = from.take(take).await?;
    let job = state.executor.new_id();
    let delivery = params.delivery;
    let format = F::new(ResponseMeta {
        id: F::id(job),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: text.card().id.clone(),
        seed: params.sampling.seed,
        fingerprint: text.card().fingerprint.clone(),
        logprobs: params.scores.is_some(),
        include_usage: matches!(delivery, Delivery::Streamed { include_usage: true, .. }),
        echoed: std::mem::take(&mut params.echoed),
    });
    let record = RequestRecord::of(&request);
    record.iter().for_each(|record| trace_request(record, &params, F::OPERATION, &text.card().id));
    let trace = record.as_ref().and_then(RequestRecord::trace);
    let mut streams =
        submit(&state, &text, params, Origin { id: job, caller: slot::caller(&request), trace }).await?;
    // The body has become tokens, whose number the queue bounds.
    drop(share);
    streams.iter_mut().for_each(|stream| stream.record.clone_from(&record));
    let response = match delivery {
        Delivery::Whole => whole(&state, streams, format).await?,
        Delivery::Streamed { .. } => {
            let record = RequestRecord::take(&request);
            let events = EventStream { streams, format, record, finished: Vec::new(), is_opened: false };
            streamed(events, state.settings.heartbeat)
        }
    };
    Ok(ignored.name_in(response))
}

/// Checks a request, and logs the prompt if `log_as` has the request's id.
fn resolve<R: GenerateRequest>(
    request: R,
    text: &Text,
    deadlines: Deadlines,
    log_as: Option<String>,
) -> Result<GenerateParams, ApiError> {
    let context = RequestContext { vocabulary: text.card().vocabulary, deadlines, tools: text.into() };
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

async fn whole<F: ApiFormat>(
    state: &AppState,
    mut streams: VecDeque<CompletionStream>,
    format: F,
) -> Result<HttpResponse, ApiError> {
    let mut choices = Vec::with_capacity(streams.len());
    while let Some(stream) = streams.front_mut() {
        if let Update::Finished(choice) = stream.next().await? {
            choices.push(*choice);
            streams.pop_front();
        }
    }
    let bytes = choices.iter().map(FinishedChoice::json_bytes).sum();
    let json =
        state.offload.run(Cost::of_json(bytes), move || Ok::<_, ApiError>(format.whole(&choices))).await?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(json))
}

/// An answer that is streamed, event by event.
struct EventStream<F> {
    /// The choices that are not complete; the first is being streamed.
    streams: VecDeque<CompletionStream>,
    format: F,
    record: Option<RequestRecord>,
    finished: Vec<FinishedChoice>,
    /// Whether the opening of the current choice was sent.
    is_opened: bool,
}

/// The status is sent at once, so that heartbeats can follow while the job is queued. A later failure is sent as an event,
/// and the stream then ends without `[DONE]`.
fn streamed<F: ApiFormat>(events: EventStream<F>, heartbeat: Duration) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        // nginx would buffer the events up to a few kilobytes.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(event_bytes(events, heartbeat))
}

fn event_bytes<F: ApiFormat>(
    events: EventStream<F>,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(events, move |mut events| async move {
        let stream = events.streams.front_mut()?;
        let bytes = match timeout(heartbeat, stream.next()).await {
            Err(_) if stream.is_loading() => Bytes::from_static(LOADING),
            Err(_) => Bytes::from_static(HEARTBEAT),
            Ok(Ok(Update::Loading)) => Bytes::from_static(LOADING),
            Ok(Ok(update)) => events.write(update).into(),
            Ok(Err(failure)) => events.fail(&failure.into()).into(),
        };
        Some((Ok(bytes), events))
    })
}

impl<F: ApiFormat> EventStream<F> {
    fn write(&mut self, update: Update) -> SseEvents {
        let mut events = SseEvents::default();
        match update {
            Update::Loading => {}
            Update::Progress(progress) => self.format.progress(progress, &mut events),
            Update::Delta(delta) => {
                self.open(&mut events);
                self.format.delta(self.finished.len(), &delta, &mut events);
            }
            Update::Finished(choice) => self.finish(*choice, &mut events),
        }
        events
    }

    /// Writes the opening of a choice with its first text, so that the first event marks the time to first token.
    fn open(&mut self, events: &mut SseEvents) {
        if !std::mem::replace(&mut self.is_opened, true) {
            self.format.opening(self.finished.len(), events);
        }
    }

    /// Writes the end of a choice and, after the last one, of the answer.
    fn finish(&mut self, choice: FinishedChoice, events: &mut SseEvents) {
        let index = self.finished.len();
        self.open(events);
        if !choice.rest.is_empty() {
            self.format.delta(index, &choice.rest, events);
        }
        self.format.closing(index, &choice, events);
        self.finished.push(choice);
        self.streams.pop_front();
        self.is_opened = false;
        if self.streams.is_empty() {
            self.format.end(&self.finished, events);
            self.record.iter().for_each(RequestRecord::settle);
        }
    }

    fn fail(&mut self, error: &ApiError) -> SseEvents {
        let mut events = SseEvents::default();
        self.format.failure(&error.body(), &mut events);
        self.streams.clear();
        self.record.iter().for_each(|record| record.settle_failed(error));
        events
    }
}
