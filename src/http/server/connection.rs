//! Wraps a connection below actix-web and adds four things.
//!
//! **Error bodies.** actix-web refuses malformed HTTP, and heads that are too large or too slow, below every hook that it
//! offers and with an empty body. Such an answer is the last of its connection and has no other headers than
//! `content-length: 0`, `date` and `connection: close`; all of ours have more (`middleware::headers`). It is replaced while it
//! is written, with an explanation from [`malformed`]. actix-web alone decides what is refused, so there is no second HTTP
//! parser that could disagree with it.
//!
//! **A write timeout.** actix-web waits forever for a client that does not read its answer.
//!
//! **A timeout for every request head.** actix-web limits the time of the first one only.
//!
//! **Closing idle connections.** Each connection reports its phase to [`connections`](crate::http::connections), which may
//! ask it to close in favor of a new one.
//!
//! Below HTTP/2 it only adds the write timeout and turns of reading; [`http2`](super::http2) does the rest.

use std::{
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use actix_http::Protocol;
use actix_web::http::header::HttpDate;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    malformed,
    read_turns::{ReadTurns, Reader},
};
use crate::{
    http::{
        connections::{ConnectionHandle, Phase},
        middleware::{RequestId, access_log},
    },
    metrics::Metrics,
};

/// Most bytes in the head of a refusal by actix-web.
const MAX_REFUSAL_BYTES: usize = 256;

/// What an HTTP/2 client sends first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Not yet the answer: asks a client for a body that it holds back.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long to wait for a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// To read part of its answer.
    pub(crate) write: Duration,
    /// To send the rest of a request head.
    pub(crate) head: Duration,
    /// To send or receive anything; longer than the keep-alive timeout and the heartbeat interval.
    pub(crate) idle: Duration,
}

/// What all connections of a thread share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    pub(crate) turns: ReadTurns,
}

/// The state of the next request, without parsing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    /// Nothing has arrived.
    Idle,
    /// Part of the head has arrived; `last_line` is the length of its last line.
    Head { last_line: usize },
    /// The head is complete, and an answer is due.
    Answering,
    /// No further request is accepted.
    Closed,
    /// There may be several at once: the connection is HTTP/2.
    Http2,
}

impl RequestState {
    /// The state after `bytes` have arrived.
    fn after(self, bytes: &[u8]) -> Self {
        // Bodies may have megabytes, which do not change the state.
        if matches!(self, Self::Answering | Self::Closed | Self::Http2) {
            return self;
        }
        bytes.iter().fold(self, |state, byte| match (state, byte) {
            (Self::Idle, b'\r' | b'\n') | (Self::Head { .. }, b'\r') => state,
            (Self::Idle, _) => Self::Head { last_line: 1 },
            (Self::Head { last_line: 0 }, b'\n') => Self::Answering,
            (Self::Head { .. }, b'\n') => Self::Head { last_line: 0 },
            (Self::Head { last_line }, _) => Self::Head { last_line: last_line + 1 },
            (Self::Answering | Self::Closed | Self::Http2, _) => state,
        })
    }
}

/// A client connection.
pub(crate) struct Connection<T> {
    io: T,
    peer: Option<SocketAddr>,
    metrics: Arc<Metrics>,
    /// Bytes that were read to recognise HTTP/2, and are still to be passed on.
    first: Vec<u8>,
    /// The first bytes read since the last write, for explaining a refusal.
    received: Vec<u8>,
    /// Bytes of an error body that are not written yet.
    unwritten: Vec<u8>,
    request: RequestState,
    timeouts: Timeouts,
    /// Runs while the client reads nothing.
    write_timer: Option<Pin<Box<Sleep>>>,
    reader: Reader,
    /// Runs while the client has to send something.
    read_timer: Option<Pin<Box<Sleep>>>,
    handle: ConnectionHandle,
    /// Completes when the connection has to close for a new one.
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> Connection<T> {
    pub(crate) fn new(io: T, peer: Option<SocketAddr>, shared: Shared, handle: ConnectionHandle) -> Self {
        let Shared { metrics, timeouts, turns } = shared;
        handle.set_phase(Phase::Idle);
        let closing = Box::pin(handle.closing().clone().cancelled_owned());
        let (received, unwritten, request) = (Vec::new(), Vec::new(), RequestState::Idle);
        Self {
            io,
            peer,
            metrics,
            first: Vec::new(),
            received,
            unwritten,
            request,
            timeouts,
            write_timer: None,
            reader: Reader::new(turns),
            read_timer: None,
            handle,
            closing,
        }
    }

    /// From now on it is HTTP/2.
    pub(crate) fn set_http2(&mut self) {
        self.request = RequestState::Http2;
        // Its requests count from their own heads on.
        self.handle.set_phase(Phase::Idle);
    }

    /// How long to wait for the client.
    pub(crate) const fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Its entry in the list of all connections.
    pub(crate) const fn handle(&self) -> &ConnectionHandle {
        &self.handle
    }

    /// `refusal`, an answer of actix-web without a body, with an error body.
    fn explained(&self, refusal: &str, status: u16) -> Vec<u8> {
        let error = malformed::error(status, &self.received);
        let id = RequestId::random();
        access_log::log_unparsed(&self.metrics, self.peer, &id, &error, !self.received.is_empty());
        let body = serde_json::to_string(&error.body()).unwrap_or_default();
        let head = refusal.replace("content-length: 0\r\n", &format!("content-length: {}\r\n", body.len()));
        // actix-web omits this header if an earlier request was answered.
        let head = head.replace("connection: close\r\n", "");
        let head = head.strip_suffix("\r\n").unwrap_or(&head);
        let headers = "connection: close\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
             x-content-type-options: nosniff\r\n";
        format!("{head}{headers}x-request-id: {}\r\n\r\n{body}", id.as_str()).into_bytes()
    }
}

impl<T: AsyncWrite + Unpin> Connection<T> {
    fn set_request(&mut self, request: RequestState) {
        if mem::discriminant(&self.request) != mem::discriminant(&request) {
            self.read_timer = None;
            self.handle.set_phase(match request {
                RequestState::Idle | RequestState::Closed | RequestState::Http2 => Phase::Idle,
                RequestState::Head { .. } => Phase::Head,
                RequestState::Answering => Phase::Waiting,
            });
        }
        self.request = request;
    }

    /// Waits for the client to send something; completes when the connection has to end.
    fn poll_read_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.request == RequestState::Http2 {
            return Poll::Pending;
        }
        if self.closing.as_mut().poll(cx).is_ready() {
            self.set_request(RequestState::Closed);
            return Poll::Ready(());
        }
        let timeout = match self.request {
            RequestState::Idle => self.timeouts.idle,
            RequestState::Head { .. } => self.timeouts.head,
            RequestState::Answering | RequestState::Http2 => return Poll::Pending,
            RequestState::Closed => return Poll::Ready(()),
        };
        let timer = self.read_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        if matches!(self.request, RequestState::Head { .. }) {
            self.refuse_slow_head();
        }
        self.set_request(RequestState::Closed);
        Poll::Ready(())
    }

    fn refuse_slow_head(&mut self) {
        let date = HttpDate::from(SystemTime::now());
        let refusal = format!("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\ndate: {date}\r\n\r\n");
        self.unwritten = self.explained(&refusal, 408);
    }

    /// Polls a write of the inner connection with the write timeout.
    fn poll_with_timeout<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if let Poll::Ready(done) = poll(Pin::new(&mut self.io), cx) {
            self.write_timer = None;
            return Poll::Ready(done);
        }
        let timeout = self.timeouts.write;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            let unwritten = mem::take(&mut self.unwritten);
            let written = self.poll_with_timeout(cx, |io, cx| io.poll_write(cx, &unwritten));
            self.unwritten = unwritten;
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.unwritten.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// Reads until it is clear whether the client speaks HTTP/2, which it knows without asking, and passes the bytes on later.
    ///
    /// # Errors
    /// When the connection fails or closes before, or nothing that decides it arrives in time: then a 408 is written.
    pub(crate) async fn recognise(&mut self) -> io::Result<Protocol> {
        let timeout = self.timeouts.head;
        match tokio::time::timeout(timeout, self.read_preface()).await {
            Ok(read) => {
                let is_http2 = read?;
                if is_http2 {
                    self.set_http2();
                }
                Ok(if is_http2 { Protocol::Http2 } else { Protocol::Http1 })
            }
            Err(_) => {
                self.received = mem::take(&mut self.first);
                self.refuse_slow_head();
                self.set_request(RequestState::Closed);
                self.shutdown().await?;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// Whether the client begins with HTTP/2's preface.
    async fn read_preface(&mut self) -> io::Result<bool> {
        while HTTP2_PREFACE.starts_with(&self.first) && self.first.len() < HTTP2_PREFACE.len() {
            let mut piece = [0; HTTP2_PREFACE.len()];
            let room = HTTP2_PREFACE.len() - self.first.len();
            match self.io.read(&mut piece[..room]).await? {
                // HTTP/1 decides what a connection that ends here is.
                0 => return Ok(false),
                read => self.first.extend_from_slice(&piece[..read]),
            }
            self.handle.set_phase(Phase::Head);
        }
        Ok(self.first == HTTP2_PREFACE)
    }

    /// Reads what was read before, or from the inner connection.
    fn poll_inner(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let taken = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..taken]);
        self.first.drain(..taken);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.request == RequestState::Closed {
            return Poll::Ready(Ok(()));
        }
        if self.reader.poll_turn(cx).is_pending() {
            return self.poll_read_timeout(cx).map(Ok);
        }
        match self.poll_inner(cx, buffer) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.reader.has_waited();
                return self.poll_read_timeout(cx).map(Ok);
            }
        }
        let read = &buffer.filled()[before..];
        self.reader.has_read(read.len());
        let request = self.request.after(read);
        self.set_request(request);
        if request == RequestState::Http2 {
            return Poll::Ready(Ok(()));
        }
        let room = malformed::MAX_EXAMINED.saturating_sub(self.received.len());
        self.received.extend_from_slice(&read[..read.len().min(room)]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unwritten(cx))?;
        if self.request == RequestState::Http2 {
            return self.poll_with_timeout(cx, |io, cx| io.poll_write(cx, buffer));
        }
        if let Some((start, status)) = refusal_in(buffer) {
            let refusal = String::from_utf8_lossy(&buffer[start..]);
            self.unwritten = [&buffer[..start], &self.explained(&refusal, status)].concat();
            // actix-web writes nothing more, and flushes.
            if let Poll::Ready(Err(error)) = self.poll_unwritten(cx) {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(buffer.len()));
        }
        let written = ready!(self.poll_with_timeout(cx, |io, cx| io.poll_write(cx, buffer)));
        if buffer != CONTINUE && self.request != RequestState::Closed {
            // An idle connection should not hold a buffer.
            self.received = Vec::new();
            self.read_timer = None;
            self.reader.begin_request();
            self.set_request(RequestState::Idle);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(cx))?;
        self.poll_with_timeout(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Finds a refusal by actix-web at the end of `written`: where it begins, and its status.
fn refusal_in(written: &[u8]) -> Option<(usize, u16)> {
    if !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = written.len().saturating_sub(MAX_REFUSAL_BYTES);
    let start = from + written[from..].windows(7).rposition(|window| window == b"HTTP/1.")?;
    let head = std::str::from_utf8(&written[start..]).ok()?;
    let (line, fields) = head.strip_suffix("\r\n\r\n")?.split_once("\r\n")?;
    let status = line.get(9..12)?.parse().ok().filter(|status| malformed::STATUSES.contains(status))?;
    let is_bare = |field: &str| {
        ["content-length: 0", "connection: close"].contains(&field) || field.starts_with("date: ")
    };
    fields.split("\r\n").all(is_bare).then_some((start, status))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::http::{connections::Connections, server::read_turns::PIECE};

    const REFUSAL: &str =
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: today\r\n\r\n";

    const SECOND: Duration = Duration::from_secs(1);

    fn connection<T>(io: T) -> Connection<T> {
        connection_at(io, Connections::new(8).enter())
    }

    fn connection_at<T>(io: T, handle: ConnectionHandle) -> Connection<T> {
        let timeouts = Timeouts { write: 60 * SECOND, head: 5 * SECOND, idle: 80 * SECOND };
        let shared = Shared { metrics: Arc::new(Metrics::new()), timeouts, turns: ReadTurns::default() };
        Connection::new(io, None, shared, handle)
    }

    /// What a client that has sent `sent` receives of `written`, through a pipe that holds `room` bytes.
    async fn passed(sent: &[u8], written: &[u8], room: usize) -> String {
        let (mut client, server) = duplex(room.max(sent.len()));
        client.write_all(sent).await.unwrap();
        let mut server = connection(server);
        let mut read = vec![0; sent.len()];
        server.read_exact(&mut read).await.unwrap();
        let answer = async {
            server.write_all(written).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let mut got = String::new();
        let ((), read) = tokio::join!(answer, client.read_to_string(&mut got));
        read.unwrap();
        got
    }

    #[tokio::test]
    async fn a_refusal_gets_an_error_body_after_any_answer_and_with_any_buffer_size() {
        let before = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx-request-id: a\r\n\r\nbody";
        for room in [1, 64, 4096] {
            let sent = b"GET / HTTP/1.1\r\nhost: x\r\nnocolon\r\n\r\n";
            let got = passed(sent, format!("{before}{REFUSAL}").as_bytes(), room).await;
            let refusal = got.strip_prefix(before).unwrap();
            let (head, body) = refusal.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("\r\nx-request-id: "));
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            assert!(head.contains("\r\ndate: today\r\nconnection: close\r\n"), "{head}");
            let error: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(error["error"]["code"], "malformed_http");
            assert!(error["error"]["message"].as_str().unwrap().contains("nocolon"), "{body}");
        }
    }

    #[tokio::test]
    async fn other_bytes_pass_unchanged() {
        let ours = REFUSAL.replace("date", "x-request-id: a\r\ndate");
        let quoted = format!("HTTP/1.1 200 OK\r\n\r\n{REFUSAL}more");
        let accepted = REFUSAL.replace("400 Bad Request", "204 No Content");
        for written in ["", "0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", &ours, &quoted, &accepted] {
            assert_eq!(passed(b"", written.as_bytes(), 16).await, written);
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_endlessly_waits_for_turns() {
        let (mut client, server) = duplex(1 << 20);
        client.write_all(&vec![b'a'; 8 * PIECE]).await.unwrap();
        let mut server = connection(server);
        let turns = server.reader.turns().clone();
        let mut piece = vec![0; PIECE];
        server.read_exact(&mut piece).await.unwrap();
        let waits = tokio::time::timeout(SECOND / 10, server.read(&mut piece)).await;
        waits.expect_err("no turn is granted yet");
        let read = async {
            for _ in 0..7 {
                server.read_exact(&mut piece).await.unwrap();
            }
        };
        tokio::select! {
            () = turns.drive() => {}
            () = read => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_disconnected_after_the_write_timeout() {
        let (mut client, server) = duplex(8);
        let mut server = connection(server);
        let mut taken = [0; 8];
        let (written, read) = tokio::join!(server.write_all(&[7; 32]), async {
            for _ in 0..2 {
                sleep(59 * SECOND).await;
                client.read_exact(&mut taken).await.unwrap();
            }
            tokio::time::Instant::now()
        });
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(read.elapsed(), 60 * SECOND, "each read restarts the timeout");
    }

    /// A connection on which one request has been answered.
    async fn answered() -> (tokio::io::DuplexStream, Connection<tokio::io::DuplexStream>) {
        let (mut client, server) = duplex(4096);
        let mut server = connection(server);
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(server.read(&mut [0; 64]).await.unwrap() > 0);
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        client.read_exact(&mut [0; 19]).await.unwrap();
        (client, server)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_closes_for_a_new_one_and_a_busy_one_does_not() {
        let all = Connections::new(2);
        let (mut client, server) = duplex(64);
        let mut busy = connection_at(server, all.enter());
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(busy.read(&mut [0; 64]).await.unwrap() > 0);
        let (_other, server) = duplex(64);
        let mut idle = connection_at(server, all.enter());
        let begun = tokio::time::Instant::now();
        let mut buffer = [0; 64];
        let (read, _newcomer) = tokio::join!(idle.read(&mut buffer), async {
            sleep(SECOND).await;
            all.enter()
        });
        assert_eq!((read.unwrap(), begun.elapsed()), (0, SECOND), "before its idle timeout of 80 s");
        tokio::time::timeout(SECOND, busy.read(&mut [0; 64])).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_http2_connection_closes_before_a_newer_one_that_has_sent_nothing() {
        let all = Connections::new(2);
        let (mut client, server) = duplex(64);
        let mut http2 = connection_at(server, all.enter());
        client.write_all(HTTP2_PREFACE).await.unwrap();
        assert_eq!(http2.recognise().await.unwrap(), Protocol::Http2);
        std::thread::sleep(Duration::from_millis(2));
        let (_client, server) = duplex(64);
        let newer = connection_at(server, all.enter());
        let _newcomer = all.enter();
        assert_eq!([&http2, &newer].map(|each| each.handle().closing().is_cancelled()), [true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_second_head_gets_408_and_the_connection_closes() {
        let (mut client, mut server) = answered().await;
        let begun = tokio::time::Instant::now();
        let dribble = async {
            client.write_all(b"\r\nPOST / HTTP/1.1\r\n").await.unwrap();
            for _ in 0..20 {
                sleep(SECOND / 2).await;
                client.write_all(b"x-a: b\r\n").await.unwrap();
            }
        };
        let receive = async {
            while server.read(&mut [0; 64]).await.unwrap() > 0 {}
            assert_eq!(begun.elapsed(), 5 * SECOND);
            assert_eq!(server.read(&mut [0; 64]).await.unwrap(), 0, "nothing more is read");
            server.shutdown().await.unwrap();
        };
        tokio::join!(dribble, receive);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("head_too_slow"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_closes_silently_and_a_due_answer_is_awaited() {
        let (mut client, mut server) = answered().await;
        let begun = tokio::time::Instant::now();
        assert_eq!(server.read(&mut [0; 64]).await.unwrap(), 0);
        assert_eq!(begun.elapsed(), 80 * SECOND);
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 64]).await.unwrap(), 0);

        let (mut client, mut server) = answered().await;
        client.write_all(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\n\r\n").await.unwrap();
        assert!(server.read(&mut [0; 64]).await.unwrap() > 0);
        server.write_all(CONTINUE).await.unwrap();
        client.write_all(b"{").await.unwrap();
        assert_eq!(server.read(&mut [0; 64]).await.unwrap(), 1);
        let waited = tokio::time::timeout(600 * SECOND, server.read(&mut [0; 64])).await;
        assert!(waited.is_err(), "a body, or an answer, may take longer: {waited:?}");
    }
}
