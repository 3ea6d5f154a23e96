//! Serves a connection that speaks HTTP/2 with hyper, and passes its requests to the same application as HTTP/1.
//!
//! actix-web has HTTP/2 too, but it allows any number of streams in a connection and 16 MiB of header fields in each, and an answer is
//! computed to its end when its client is gone. hyper limits both, and drops a request when its stream is reset.
//!
//! | limit | value |
//! |---|---|
//! | requests at once in a connection | [`MAX_STREAMS`] |
//! | header fields of a request | [`MAX_HEADERS`] |
//! | body bytes that are not read yet, of a request and of a connection | [`STREAM_WINDOW`], [`CONNECTION_WINDOW`] |
//! | time until a client reads part of an answer | the write timeout |
//! | time without a request | the idle timeout; a head that arrives slowly does not extend it |

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    error::Error as StdError,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use actix_http::{HttpMessage, Payload, Request, Response, body::BoxBody, error::DispatchError};
use actix_service::Service;
use actix_web::{
    body::{BodySize, MessageBody},
    error::PayloadError,
    http::{
        Method, Uri, Version,
        header::{self, HeaderName, HeaderValue},
    },
};
use bytes::Bytes;
use futures_util::Stream;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    rt::Executor,
    server::conn::http2::Builder,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    time::{interval, timeout},
};

use super::connection::{Connection, Timeouts};
use crate::http::connections::ConnectionHandle;

/// Requests at once in a connection: as many as clients begin with before they know the limit (RFC 9113, 6.5.2).
const MAX_STREAMS: u32 = 100;

/// Bytes of a request's header fields. HTTP/1 allows more, but has one request at a time.
const MAX_HEADERS: u32 = 16 << 10;

/// Body bytes of a request that the client may send before they are read.
const STREAM_WINDOW: u32 = 64 << 10;

/// The same for all requests of a connection.
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Bytes of an answer that wait for the client in a connection.
const MAX_SEND_BUFFER: usize = 64 << 10;

/// Bytes of a body that are read and dropped after an early answer, and the time for it.
const MAX_DRAINED: usize = 16 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a client that waits for an answer is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Time to finish after the client was asked to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The same in favor of a new connection. It is short, because few connections are accepted beyond the limit, and a thousand
/// idle clients that do not answer would keep new ones waiting.
const REPLACE_TIMEOUT: Duration = Duration::from_millis(20);

/// Header fields that HTTP/2 does not have.
const OF_HTTP1: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Where requests of a connection come from.
#[derive(Clone)]
struct Origin {
    peer: Option<SocketAddr>,
    handle: ConnectionHandle,
    unread: Unread,
}

/// Serves `io` until the client closes, a timeout ends it, or `ending` completes and its answers are finished.
///
/// # Errors
/// When the client violates the protocol, or the connection fails.
pub(super) async fn serve<T, S>(
    io: Connection<T>,
    peer: Option<SocketAddr>,
    app: Rc<S>,
    ending: impl Future<Output = ()>,
) -> Result<(), DispatchError>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Service<Request, Response = Response<BoxBody>> + 'static,
    S::Error: Into<Response<BoxBody>>,
{
    let (handle, timeouts) = (io.handle().clone(), io.timeouts());
    let origin = Origin { peer, handle: handle.clone(), unread: Unread::default() };
    let unread = origin.unread.clone();
    let service = service_fn(move |request| answer(request, origin.clone(), Rc::clone(&app)));
    let connection = builder(timeouts).serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let time_to_close = tokio::select! {
        done = connection.as_mut() => return ended(done),
        () = unread.watch(timeouts.write) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        () = is_idle(&handle, timeouts.idle) => CLOSE_TIMEOUT,
        () = handle.closing().cancelled() => REPLACE_TIMEOUT,
        // The server limits the time.
        () = ending => Duration::MAX,
    };
    connection.as_mut().graceful_shutdown();
    timeout(time_to_close, connection).await.map_or(Ok(()), ended)
}

fn builder(timeouts: Timeouts) -> Builder<Spawn> {
    let mut builder = Builder::new(Spawn);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(timeouts.write);
    builder
}

fn ended(result: hyper::Result<()>) -> Result<(), DispatchError> {
    result.map_err(|error| {
        tracing::debug!("an HTTP/2 connection ended: {error}");
        io::Error::other(error).into()
    })
}

/// Completes when no answer has been due for this time.
async fn is_idle(handle: &ConnectionHandle, limit: Duration) {
    while let Some(rest) = limit.checked_sub(handle.idle_for()).filter(|rest| !rest.is_zero()) {
        tokio::time::sleep(rest).await;
    }
}

/// Runs the streams of a connection on its thread.
#[derive(Clone, Copy)]
struct Spawn;

impl<F: Future + 'static> Executor<F> for Spawn
where
    F::Output: 'static,
{
    fn execute(&self, stream: F) {
        actix_web::rt::spawn(stream);
    }
}

/// Passes a request to the application.
async fn answer<S>(
    request: hyper::Request<Incoming>,
    origin: Origin,
    app: Rc<S>,
) -> Result<hyper::Response<Outgoing>, Infallible>
where
    S: Service<Request, Response = Response<BoxBody>>,
    S::Error: Into<Response<BoxBody>>,
{
    let is_head = request.method() == hyper::Method::HEAD;
    let Some(request) = to_actix(request, &origin) else {
        return Ok(status_only(hyper::StatusCode::BAD_REQUEST));
    };
    let answer = app.call(request).await.unwrap_or_else(Into::into);
    Ok(to_hyper(answer, is_head, &origin.unread))
}

/// The request in actix-web's types; `None` if they cannot express it.
fn to_actix(request: hyper::Request<Incoming>, origin: &Origin) -> Option<Request> {
    let (parts, body) = request.into_parts();
    let payload: Payload = if body.is_end_stream() {
        Payload::None
    } else {
        Payload::Stream { payload: Box::pin(IncomingData(Some(body))) }
    };
    let mut request = Request::with_payload(payload);
    let head = request.head_mut();
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).ok()?;
    head.uri = Uri::try_from(parts.uri.path_and_query().map_or("/", |path| path.as_str())).ok()?;
    head.version = Version::HTTP_2;
    head.peer_addr = origin.peer;
    for (name, value) in &parts.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        head.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    // Checks of the host read this field, which HTTP/2 may replace.
    if let Some(authority) = parts.uri.authority() {
        head.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str()).ok()?);
    }
    request.extensions_mut().insert(origin.handle.clone());
    Some(request)
}

fn to_hyper(answer: Response<BoxBody>, is_head: bool, unread: &Unread) -> hyper::Response<Outgoing> {
    let (answer, body) = answer.into_parts();
    let Ok(status) = hyper::StatusCode::from_u16(answer.status().as_u16()) else {
        return status_only(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut made = status_only(status);
    for (name, value) in answer.headers() {
        let value = hyper::header::HeaderValue::from_bytes(value.as_bytes());
        let name = hyper::header::HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, value)
            && !OF_HTTP1.contains(&name.as_str())
        {
            made.headers_mut().append(name, value);
        }
    }
    match body.size() {
        BodySize::Sized(length) if is_head => {
            made.headers_mut().insert(hyper::header::CONTENT_LENGTH, length.into());
        }
        BodySize::None => {}
        _ if is_head => {}
        _ => made.body_mut().0 = Some(Sending { body, handed_over: unread.add() }),
    }
    made
}

fn status_only(status: hyper::StatusCode) -> hyper::Response<Outgoing> {
    let mut answer = hyper::Response::new(Outgoing(None));
    *answer.status_mut() = status;
    answer
}

/// The body of a request; `None` after its end.
struct IncomingData(Option<Incoming>);

impl Stream for IncomingData {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Some(body) = &mut self.0 {
            let Some(frame) = ready!(Pin::new(body).poll_frame(cx)) else { break };
            let data = frame.map(Frame::into_data);
            match data.map_err(|error| PayloadError::Io(io::Error::other(error))) {
                Ok(Ok(data)) => return Poll::Ready(Some(Ok(data))),
                // Trailers.
                Ok(Err(_)) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        self.0 = None;
        Poll::Ready(None)
    }
}

/// Reads on after an early answer: a stream that ends before its body is reset, and older clients (curl 7.88) take that for an
/// error and drop the answer.
impl Drop for IncomingData {
    fn drop(&mut self) {
        if let (Some(body), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(timeout(DRAIN_TIMEOUT, drain(body)));
        }
    }
}

/// Reads and drops the rest of a body, up to [`MAX_DRAINED`] bytes.
async fn drain(mut body: Incoming) {
    let mut drained = 0;
    while drained <= MAX_DRAINED
        && let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        drained += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// The body of an answer.
struct Outgoing(Option<Sending>);

struct Sending {
    body: BoxBody,
    handed_over: Rc<Waiting>,
}

/// When hyper got a chunk that it has not sent yet: it asks for the next one when the client has made room.
type Waiting = Cell<Option<Instant>>;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(sending) = &mut self.0 else { return Poll::Ready(None) };
        sending.handed_over.set(None);
        let chunk = ready!(Pin::new(&mut sending.body).poll_next(cx));
        sending.handed_over.set(Some(Instant::now()));
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data).map_err(|error| error.to_string().into())))
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|sending| matches!(sending.body.size(), BodySize::None | BodySize::Sized(0)))
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.as_ref().map(|sending| sending.body.size()) {
            None | Some(BodySize::None) => SizeHint::with_exact(0),
            Some(BodySize::Sized(length)) => SizeHint::with_exact(length),
            Some(BodySize::Stream) => SizeHint::default(),
        }
    }
}

/// The answers of a connection, and since when each waits for the client to read.
#[derive(Clone, Default)]
struct Unread(Rc<RefCell<Vec<Weak<Waiting>>>>);

impl Unread {
    /// The clock of another answer.
    fn add(&self) -> Rc<Waiting> {
        let clock = Rc::default();
        let mut clocks = self.0.borrow_mut();
        clocks.retain(|clock| clock.strong_count() > 0);
        clocks.push(Rc::downgrade(&clock));
        clock
    }

    /// Completes when the client has not read part of an answer for `limit`.
    async fn watch(&self, limit: Duration) {
        let mut ticks = interval((limit / 8).max(Duration::from_millis(10)));
        loop {
            ticks.tick().await;
            let clocks = self.0.borrow();
            let mut waits = clocks.iter().filter_map(|clock| clock.upgrade()?.get());
            if waits.any(|since| since.elapsed() >= limit) {
                return;
            }
        }
    }
}
