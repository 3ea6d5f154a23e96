//! Streams that clients resume after a lost connection; see [`resumable`](crate::http::resumable).
//!
//! A stream that can be resumed is written by a task, and the connection reads what the task has written. So the generation goes on
//! when the connection is lost.

use std::{io, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::HeaderName,
    web::{self, Bytes},
};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::event_stream::{EventStream, head, streamed as streamed_once};
use crate::http::{
    error::ApiError,
    field_error::FieldError,
    formats::{ApiFormat, Update},
    middleware::{RequestRecord, auth},
    resumable::{Abandoned, Position, Read, ResumeError, StreamKind, StreamReader, StreamWriter},
    state::AppState,
};

/// The id of a stream that can be resumed, in the head of its answer.
const STREAM_ID: HeaderName = HeaderName::from_static("x-eka-stream-id");

/// Names the last event that the client has, as browsers do by themselves.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Most characters of an id that an error repeats.
const MAX_SHOWN_ID: usize = 128;

/// A stream was ended and removed.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedStream {
    id: String,
    /// Always `stream`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

#[derive(Deserialize)]
struct ResumeQuery {
    resume: Option<String>,
}

/// The stream that a request resumes, by the header `Last-Event-ID` or by `resume` in its query.
pub(super) fn asked(request: &HttpRequest) -> Option<Position> {
    let header = request.headers().get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()).into());
    let query = || web::Query::<ResumeQuery>::from_query(request.query_string()).ok()?.into_inner().resume;
    let is_sent = |id: &String| !id.trim().is_empty();
    header.filter(is_sent).or_else(query).filter(is_sent).map(|id| Position::parse(id.trim()))
}

/// Streams an answer, for this API key; so that it can be resumed, if the server keeps streams.
pub(super) fn streamed<F: ApiFormat>(
    state: &AppState,
    owner: Option<&str>,
    events: EventStream<F>,
) -> HttpResponse {
    let heartbeat = state.settings.heartbeat;
    let kind = StreamKind { route: F::ROUTE, content_type: F::STREAM_TYPE, heartbeats: F::HEARTBEATS };
    let kept = if F::HAS_EVENTS { state.resumable.begin(owner, kind) } else { None };
    let Some((writer, reader)) = kept else { return streamed_once(events, heartbeat) };
    let id = writer.id().to_owned();
    let connection = Connection { reader, kind, record: events.record.clone(), is_resumed: false };
    actix_web::rt::spawn(write(events, writer));
    head(F::STREAM_TYPE).insert_header((STREAM_ID, id)).streaming(bytes(connection, heartbeat))
}

/// Writes an answer until it ends or its client stays away.
async fn write<F: ApiFormat>(mut events: EventStream<F>, mut writer: StreamWriter) {
    while !events.is_over() {
        let next = tokio::select! {
            _ = writer.abandoned() => return,
            next = events.next() => next,
        };
        let written = match next {
            (_, Ok(Update::Loading)) => {
                writer.set_loading();
                continue;
            }
            (choice, Ok(update)) => events.write(choice, update),
            (_, Err(failure)) => events.fail(&failure.into()),
        };
        if events.is_over() {
            // The request is over when its client has read the end.
            drop(events);
            return writer.end(written.split()).await;
        }
        match writer.write(written.split()).await {
            Ok(()) => {}
            Err(Abandoned::ClientGone) => return,
            Err(Abandoned::NoRoom) => {
                let last = events.fail(&ApiError::StreamTooLong);
                drop(events);
                return writer.end(last.split()).await;
            }
        }
    }
}

/// Resumes a stream, on the `route` that started it if there is one.
///
/// # Errors
/// When it is unknown, belongs to another API key, or lacks the events that the client asks for.
pub(super) fn resumed(
    request: &HttpRequest,
    state: &AppState,
    position: &Position,
    route: Option<&str>,
) -> Result<HttpResponse, ApiError> {
    let key = auth::key(request);
    let owner = key.as_deref().map(|key| key.name());
    let resumed = state.resumable.resume(position, owner, route);
    let (reader, kind) = resumed.map_err(|error| match error {
        ResumeError::NotFound => not_found(state, &position.id),
        ResumeError::Dropped { first } => ApiError::StreamEventsDropped { after: position.after, first },
        ResumeError::NoSuchEvent { last } => {
            let message = format!("the stream has had no event {}; its last one is {last}", position.after);
            FieldError::value("resume", message).into()
        }
    })?;
    let connection = Connection { reader, kind, record: RequestRecord::take(request), is_resumed: true };
    let mut head = head(kind.content_type);
    let head = head.insert_header((STREAM_ID, position.id.as_str()));
    Ok(head.streaming(bytes(connection, state.settings.heartbeat)))
}

/// `GET /v1/streams/{id}`: resumes a stream, from its beginning without `Last-Event-ID`.
pub(crate) async fn read(
    request: HttpRequest,
    state: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let of_path = Position::parse(&id);
    let position = match asked(&request) {
        Some(position) if position.id != of_path.id => {
            let message = format!("it is of another stream than {:?}", shown(&of_path.id));
            return Err(FieldError::value("Last-Event-ID", message).into());
        }
        asked => asked.unwrap_or(of_path),
    };
    resumed(&request, &state, &position, None)
}

/// `DELETE /v1/streams/{id}`: ends a stream and its generation.
pub(crate) async fn delete(
    request: HttpRequest,
    state: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let key = auth::key(&request);
    if !state.resumable.delete(&id, key.as_deref().map(|key| key.name())) {
        return Err(not_found(&state, &id));
    }
    Ok(HttpResponse::Ok().json(DeletedStream { id: id.into_inner(), object: "stream", deleted: true }))
}

/// A connection that reads a stream.
struct Connection {
    reader: StreamReader,
    kind: StreamKind,
    /// The connection is in use as long as this exists.
    record: Option<RequestRecord>,
    is_resumed: bool,
}

fn bytes(connection: Connection, heartbeat: Duration) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some(connection), move |connection| async move {
        let mut connection = connection?;
        let [waiting, loading] = connection.kind.heartbeats.map(str::as_bytes).map(Bytes::from_static);
        let bytes = match timeout(heartbeat, connection.reader.next()).await {
            Ok(Read::Events(events)) => events,
            Ok(Read::Loading) => loading,
            Ok(Read::End) => {
                let record = connection.record.as_ref().filter(|_| connection.is_resumed);
                record.map(RequestRecord::settle);
                return None;
            }
            // The end of a body would look like the end of the answer.
            Ok(Read::Closed) => return Some((Err(io::Error::other("the stream is read elsewhere")), None)),
            Err(_) if connection.reader.is_loading() => loading,
            Err(_) => waiting,
        };
        Some((Ok(bytes), Some(connection)))
    })
}

fn not_found(state: &AppState, id: &str) -> ApiError {
    ApiError::StreamNotFound { id: shown(id), window: state.resumable.window() }
}

fn shown(id: &str) -> String {
    id.chars().take(MAX_SHOWN_ID).collect()
}
