//! A streamed answer as events.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    web::Bytes,
};
use futures_util::{Stream, future::select_all, stream};
use tokio::time::timeout;

use crate::{
    http::{
        error::ApiError,
        formats::{ApiFormat, CompletionStream, FinishedChoice, SseEvents, Update},
        middleware::RequestRecord,
    },
    job::Failure,
};

/// An answer that is streamed, event by event. Its choices are generated together, and their events follow as they come.
pub(super) struct EventStream<F> {
    choices: Vec<StreamedChoice>,
    format: F,
    pub(super) record: Option<RequestRecord>,
}

/// A choice of a stream.
struct StreamedChoice {
    /// `None` after the end of the choice.
    stream: Option<CompletionStream>,
    is_opened: bool,
    finished: Option<FinishedChoice>,
}

/// The status is sent at once, so that heartbeats can follow while the job is queued. A later failure is sent as an event,
/// and the stream then ends without `[DONE]`.
pub(super) fn streamed<F: ApiFormat>(events: EventStream<F>, heartbeat: Duration) -> HttpResponse {
    head(F::STREAM_TYPE).streaming(event_bytes(events, heartbeat))
}

/// The head of a stream.
pub(super) fn head(content_type: &str) -> HttpResponseBuilder {
    let mut head = HttpResponse::Ok();
    head.insert_header((CONTENT_TYPE, content_type))
        .insert_header((CACHE_CONTROL, "no-cache"))
        // nginx would buffer the events up to a few kilobytes.
        .insert_header(("x-accel-buffering", "no"));
    head
}

fn event_bytes<F: ApiFormat>(
    events: EventStream<F>,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let [waiting, loading] = F::HEARTBEATS.map(str::as_bytes).map(Bytes::from_static);
    stream::unfold(events, move |mut events| {
        let (waiting, loading) = (waiting.clone(), loading.clone());
        async move {
            while !events.is_over() {
                let bytes: Bytes = match timeout(heartbeat, events.next()).await {
                    Err(_) if events.is_loading() => loading.clone(),
                    Err(_) => waiting.clone(),
                    Ok((_, Ok(Update::Loading))) => loading.clone(),
                    Ok((choice, Ok(update))) => events.write(choice, update).into(),
                    Ok((_, Err(failure))) => events.fail(&failure.into()).into(),
                };
                // An empty chunk would end the body.
                if !bytes.is_empty() {
                    return Some((Ok(bytes), events));
                }
            }
            None
        }
    })
}

impl<F: ApiFormat> EventStream<F> {
    pub(super) fn new(streams: Vec<CompletionStream>, format: F, record: Option<RequestRecord>) -> Self {
        let choice = |stream| StreamedChoice { stream: Some(stream), is_opened: false, finished: None };
        Self { choices: streams.into_iter().map(choice).collect(), format, record }
    }

    pub(super) fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.stream.is_none())
    }

    fn is_loading(&self) -> bool {
        self.choices.iter().filter_map(|choice| choice.stream.as_ref()).any(CompletionStream::is_loading)
    }

    /// The next update of any choice, with its index. Cancel safe.
    pub(super) async fn next(&mut self) -> (usize, Result<Update, Failure>) {
        let streams = self.choices.iter_mut().enumerate();
        let mut streams: Vec<_> =
            streams.filter_map(|(index, choice)| Some((index, choice.stream.as_mut()?))).collect();
        if let [(index, only)] = &mut streams[..] {
            return (*index, only.next().await);
        }
        let next =
            streams.into_iter().map(|(index, stream)| Box::pin(async move { (index, stream.next().await) }));
        select_all(next).await.0
    }

    pub(super) fn write(&mut self, choice: usize, update: Update) -> SseEvents {
        let mut events = SseEvents::default();
        match update {
            Update::Loading => {}
            // The choices of a prompt are read together.
            Update::Progress(progress) if choice == 0 => self.format.progress(progress, &mut events),
            Update::Progress(_) => {}
            Update::Delta(delta) => {
                self.open(choice, &mut events);
                self.format.delta(choice, &delta, &mut events);
            }
            Update::Finished(finished) => self.finish(choice, *finished, &mut events),
        }
        events
    }

    /// Writes the opening of a choice with its first text, so that the first event marks the time to first token.
    fn open(&mut self, choice: usize, events: &mut SseEvents) {
        if !std::mem::replace(&mut self.choices[choice].is_opened, true) {
            self.format.opening(choice, events);
        }
    }

    /// Writes the end of a choice and, after the last one, of the answer.
    fn finish(&mut self, choice: usize, finished: FinishedChoice, events: &mut SseEvents) {
        self.open(choice, events);
        if !finished.rest.is_empty() {
            self.format.delta(choice, &finished.rest, events);
        }
        self.format.closing(choice, &finished, events);
        self.choices[choice].finished = Some(finished);
        self.choices[choice].stream = None;
        if self.is_over() {
            let finished: Vec<_> =
                self.choices.iter_mut().filter_map(|choice| choice.finished.take()).collect();
            self.format.end(&finished, events);
            self.record.iter().for_each(RequestRecord::settle);
        }
    }

    pub(super) fn fail(&mut self, error: &ApiError) -> SseEvents {
        let mut events = SseEvents::default();
        self.format.failure(&error.body(), &mut events);
        self.choices.clear();
        self.record.iter().for_each(|record| record.settle_failed(error));
        events
    }
}
