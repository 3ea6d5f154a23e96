//! The handler of all generating routes, and the two ways in which an answer is sent.

use std::{
    collections::VecDeque,
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, ContentType},
    web::{self, Bytes},
};
use futures_util::{Stream, stream};
use serde_json::Value;
use tokio::time::timeout;

use super::{slot, submit::admit};
use crate::{
    executor::Deadlines,
    http::{
        error::ApiError,
        formats::{
            completion_stream::{Answer, Ending, Piece, Progress, Said},
            format::{ApiFormat, ResponseMeta},
        },
        middleware::access_log::RequestRecord,
        offload::Cost,
        request::{
            body::{self, Taken},
            generation::{Delivery, GenerateParams, GenerateRequest, RequestContext},
        },
        state::AppState,
    },
    text::Text,
};

/// A comment by the standard of server-sent events: clients skip it, proxies see life, and a client that is gone is
/// noticed by what does not get through.
const HEARTBEAT: &[u8] = b": waiting\n\n";

/// The same while the job's model is loaded, which may take minutes.
const LOADING: &[u8] = b": loading the model\n\n";

/// Answers one request in the dialect `D`.
pub(crate) async fn generate<D: ApiFormat>(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let (deadlines, log_as) = (state.deadlines(), state.settings.log_prompts.then(|| request_id(&request)));
    let take = move |request: D::Request, text: &Text| resolve(request, text, deadlines, log_as);
    let Taken { text, value: mut ask, share, ignored } = body::take(&request, payload, &state, take).await?;
    let job = state.executor.new_id();
    let delivery = ask.delivery;
    let dialect = D::from(ResponseMeta {
        id: D::id(job),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: text.card().id.clone(),
        seed: ask.sampling.seed,
        fingerprint: text.card().fingerprint.clone(),
        scored: ask.scores.is_some(),
        include_usage: matches!(delivery, Delivery::Streamed { include_usage: true, .. }),
        echoed: std::mem::take(&mut ask.echoed),
    });
    let tally = RequestRecord::of(&request);
    tally.iter().for_each(|tally| tell_trace(tally, &ask, D::OPERATION, &text.card().id));
    let trace = tally.as_ref().and_then(RequestRecord::trace);
    let mut answers = admit(&state, &text, job, slot::caller(&request), ask, trace).await?;
    // The prompt is tokens now, which the queue counts.
    drop(share);
    answers.iter_mut().for_each(|answer| answer.count_for(tally.clone()));
    let response = match delivery {
        Delivery::Whole => whole(&state, answers, dialect).await?,
        Delivery::Streamed { .. } => {
            let tally = RequestRecord::take(&request);
            let telling = Telling { answers, dialect, tally, endings: Vec::new(), told: Told::Nothing };
            streamed(telling, state.settings.heartbeat)
        }
    };
    Ok(ignored.name_in(response))
}

/// Checks a request, and logs the prompt under the request's id where that is wanted.
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
    RequestRecord::of(request).map_or_else(String::new, |tally| tally.id().as_str().to_owned())
}

/// What is asked for, by the semantic conventions for generative AI; what is said is nobody's business.
fn tell_trace(tally: &RequestRecord, ask: &GenerateParams, operation: &'static str, model: &str) {
    tally.tell_trace(|span| {
        span.tell("gen_ai.operation.name", operation);
        span.tell("gen_ai.provider.name", "eka");
        span.tell("gen_ai.request.model", model.to_owned());
        span.tell("gen_ai.request.temperature", f64::from(ask.sampling.temperature));
        span.tell("gen_ai.request.stream", ask.delivery != Delivery::Whole);
        if let Some(most) = ask.max_new {
            span.tell("gen_ai.request.max_tokens", i64::try_from(most.0).unwrap_or(i64::MAX));
        }
        span.tell("eka.priority", ask.terms.priority.as_str());
    });
}

async fn whole<D: ApiFormat>(
    state: &AppState,
    mut answers: VecDeque<Answer>,
    dialect: D,
) -> Result<HttpResponse, ApiError> {
    let mut endings = Vec::with_capacity(answers.len());
    while let Some(answer) = answers.front_mut() {
        if let Piece::End(ending) = answer.next().await? {
            endings.push(*ending);
            answers.pop_front();
        }
    }
    let bytes = endings.iter().map(Ending::json_bytes).sum();
    let json = state
        .offload
        .run(Cost::of_json(bytes), move || Ok::<_, ApiError>(dialect.whole(&endings).to_string()));
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(json.await?))
}

/// An answer on its way to a client, event by event.
struct Telling<D> {
    /// Its choices, the one that is being told in front.
    answers: VecDeque<Answer>,
    dialect: D,
    tally: Option<RequestRecord>,
    /// Of the choices that are told; there are as many as the number of the one that is being told.
    endings: Vec<Ending>,
    told: Told,
}

/// What of a choice the client has been sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Heartbeats at most.
    Nothing,
    /// The opening and perhaps some text.
    Something,
}

/// The head is sent at once, so that heartbeats can follow while the job waits. What fails from here on is told by an
/// event, and the stream then ends without `[DONE]`.
fn streamed<D: ApiFormat>(telling: Telling<D>, heartbeat: Duration) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        // nginx would keep the events to itself until it has a few kilobytes.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(frames(telling, heartbeat))
}

fn frames<D: ApiFormat>(
    telling: Telling<D>,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(telling, move |mut telling| async move {
        let answer = telling.answers.front_mut()?;
        let frame = match timeout(heartbeat, answer.next()).await {
            Err(_) if answer.is_loading() => Bytes::from_static(LOADING),
            Err(_) => Bytes::from_static(HEARTBEAT),
            Ok(Ok(Piece::Loading)) => Bytes::from_static(LOADING),
            Ok(Ok(Piece::Progress(progress))) => telling.read(&progress),
            Ok(Ok(Piece::Said(said))) => telling.say(&said),
            Ok(Ok(Piece::End(ending))) => telling.end(*ending),
            Ok(Err(failure)) => telling.fail(&failure.into()),
        };
        Some((Ok(frame), telling))
    })
}

impl<D: ApiFormat> Telling<D> {
    fn read(&mut self, progress: &Progress) -> Bytes {
        let mut frame = String::new();
        push_event::<D>(&mut frame, &self.dialect.progress(progress));
        frame.into()
    }

    fn say(&mut self, said: &Said) -> Bytes {
        let mut frame = self.opening();
        push_events::<D>(&mut frame, &self.dialect.delta(self.endings.len(), said));
        frame.into()
    }

    /// The end of a choice, and of the whole answer when it was the last one.
    fn end(&mut self, ending: Ending) -> Bytes {
        let mut frame = self.opening();
        if !ending.unsaid.is_empty() {
            push_events::<D>(&mut frame, &self.dialect.delta(self.endings.len(), &ending.unsaid));
        }
        push_events::<D>(&mut frame, &self.dialect.closing(self.endings.len(), &ending));
        self.endings.push(ending);
        self.answers.pop_front();
        self.told = Told::Nothing;
        if self.answers.is_empty() {
            push_events::<D>(&mut frame, &self.dialect.summary(&self.endings));
            if !D::TYPED_EVENTS {
                frame.push_str("data: [DONE]\n\n");
            }
            self.settle(None);
        }
        frame.into()
    }

    fn fail(&mut self, error: &ApiError) -> Bytes {
        let mut frame = String::new();
        push_event::<D>(&mut frame, &self.dialect.failure(error.body()));
        self.settle(Some(error));
        frame.into()
    }

    /// The opening waits for the first text, so that the first event a client gets is the time to the first token.
    fn opening(&mut self) -> String {
        let mut frame = String::new();
        if self.told == Told::Nothing {
            self.told = Told::Something;
            push_events::<D>(&mut frame, &self.dialect.opening(self.endings.len()));
        }
        frame
    }

    fn settle(&mut self, failed: Option<&ApiError>) {
        self.answers.clear();
        match (&self.tally, failed) {
            (Some(tally), Some(error)) => tally.settle_failed(error),
            (Some(tally), None) => tally.settle(),
            (None, _) => {}
        }
    }
}

fn push_events<D: ApiFormat>(frame: &mut String, events: &[Value]) {
    events.iter().for_each(|event| push_event::<D>(frame, event));
}

/// JSON has no line breaks of its own, so one `data:` line holds it.
fn push_event<D: ApiFormat>(frame: &mut String, event: &Value) {
    if let (true, Some(kind)) = (D::TYPED_EVENTS, event["type"].as_str()) {
        frame.push_str("event: ");
        frame.push_str(kind);
        frame.push('\n');
    }
    frame.push_str("data: ");
    frame.push_str(&event.to_string());
    frame.push_str("\n\n");
}
