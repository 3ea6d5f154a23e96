//! The handler of all generating routes, and the two ways in which an answer is sent.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    web::{self, Bytes},
};
use futures_util::{Stream, stream};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    AppState,
    admission::admit,
    answer::{Answer, Ending, Piece},
    ask::{Delivery, Rules},
    body,
    count::Tally,
    dialect::{Dialect, Head},
    error::ApiError,
    gate,
};

/// A comment by the standard of server-sent events: clients skip it, proxies see life, and a client that is gone is
/// noticed by what does not get through.
const HEARTBEAT: &[u8] = b": waiting\n\n";

/// The same while the job's model is loaded, which may take minutes.
const LOADING: &[u8] = b": loading the model\n\n";

/// Answers one request in the dialect `D`.
pub(super) async fn generate<D: Dialect>(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = body::read(payload, state.settings.body_limit).await?;
    let text = gate::model(&request, &state, fields.take::<String>("model")?.as_deref())?;
    let rules = Rules {
        vocabulary: text.card().vocabulary,
        deadlines: state.deadlines(),
        temperature: D::TEMPERATURE,
    };
    let ask = D::ask(&mut fields, &rules)?;
    fields.finish(D::KNOWN)?;
    let id = state.executor.new_id();
    let delivery = ask.delivery;
    let dialect = D::from(Head {
        id: format!("{}-{:08x}-{}", D::ID_PREFIX, state.instance, id.0),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        model: text.card().id.clone(),
        seed: ask.sampling.seed,
        include_usage: delivery == Delivery::Streamed { include_usage: true },
    });
    let tally = Tally::of(&request);
    if state.settings.log_prompts {
        let request_id = tally.as_ref().map(|tally| tally.id().as_str());
        tracing::info!(request_id, prompt = ?ask.prompt, "prompt");
    }
    let answer = admit(&state, text, id, ask).await?.count_for(tally);
    match delivery {
        Delivery::Whole => whole(answer, &dialect).await,
        Delivery::Streamed { .. } => {
            let tally = Tally::take(&request);
            Ok(streamed(Telling { answer, dialect, tally, told: Told::Nothing }, state.settings.heartbeat))
        }
    }
}

async fn whole<D: Dialect>(mut answer: Answer, dialect: &D) -> Result<HttpResponse, ApiError> {
    loop {
        if let Piece::End(ending) = answer.next().await? {
            return Ok(HttpResponse::Ok().json(dialect.whole(&ending)));
        }
    }
}

/// An answer on its way to a client, event by event.
struct Telling<D> {
    answer: Answer,
    dialect: D,
    tally: Option<Tally>,
    told: Told,
}

/// What of it the client has been sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Heartbeats at most.
    Nothing,
    /// The opening and perhaps some text.
    Something,
    /// The last event.
    Everything,
}

/// The head is sent at once, so that heartbeats can follow while the job waits. What fails from here on is told by an
/// event, and the stream then ends without `[DONE]`.
fn streamed<D: Dialect>(telling: Telling<D>, heartbeat: Duration) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((CACHE_CONTROL, "no-cache"))
        // nginx would keep the events to itself until it has a few kilobytes.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(frames(telling, heartbeat))
}

fn frames<D: Dialect>(
    telling: Telling<D>,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(telling, move |mut telling| async move {
        if telling.told == Told::Everything {
            return None;
        }
        let frame = match timeout(heartbeat, telling.answer.next()).await {
            Err(_) if telling.answer.is_loading() => Bytes::from_static(LOADING),
            Err(_) => Bytes::from_static(HEARTBEAT),
            Ok(Ok(Piece::Loading)) => Bytes::from_static(LOADING),
            Ok(Ok(Piece::Text(text))) => telling.text(&text),
            Ok(Ok(Piece::End(ending))) => telling.end(&ending),
            Ok(Err(failure)) => telling.fail(&failure.into()),
        };
        Some((Ok(frame), telling))
    })
}

impl<D: Dialect> Telling<D> {
    fn text(&mut self, text: &str) -> Bytes {
        let mut frame = self.opening();
        push_event(&mut frame, &self.dialect.delta(text));
        frame.into()
    }

    fn end(&mut self, ending: &Ending) -> Bytes {
        let mut frame = self.opening();
        if !ending.unsaid.is_empty() {
            push_event(&mut frame, &self.dialect.delta(&ending.unsaid));
        }
        for event in self.dialect.closing(ending) {
            push_event(&mut frame, &event);
        }
        frame.push_str("data: [DONE]\n\n");
        self.told = Told::Everything;
        if let Some(tally) = &self.tally {
            tally.settle();
        }
        frame.into()
    }

    fn fail(&mut self, error: &ApiError) -> Bytes {
        let mut frame = String::new();
        push_event(&mut frame, &error.body());
        self.told = Told::Everything;
        if let Some(tally) = &self.tally {
            tally.settle_failed(error);
        }
        frame.into()
    }

    /// The opening waits for the first text, so that the first event a client gets is the time to the first token.
    fn opening(&mut self) -> String {
        let mut frame = String::new();
        if self.told == Told::Nothing {
            self.told = Told::Something;
            self.dialect.opening().iter().for_each(|event| push_event(&mut frame, event));
        }
        frame
    }
}

/// JSON has no line breaks of its own, so one `data:` line holds it.
fn push_event(frame: &mut String, event: &Value) {
    frame.push_str("data: ");
    frame.push_str(&event.to_string());
    frame.push_str("\n\n");
}
