//! A connection as actix-web sees it: what is read and written passes here, and four things are made good on the way.
//!
//! **Refusals get words.** A request that breaks HTTP itself, that is too large in its head or too slow with it, is refused
//! by actix-web below every hook that it offers, with an empty body. Such an answer is known by its form: it is the last of
//! its connection, and of all answers it alone has nothing in its head but a length of zero, the date and the word `close`;
//! `headers` sees to it that ours have more. It is replaced as it is written. What was wrong, `refusal` finds out from what was
//! read, and that only explains: what is refused, actix-web alone decides, so there is no second reader of HTTP to smuggle
//! anything past.
//!
//! **Clients who stop reading are left.** actix-web waits for ever for a client to take what it is sent.
//!
//! **So are those who never finish a request.** actix-web bounds the time of a connection's first head; whoever had sent one
//! good request could take for ever over the second.
//!
//! **An idle connection makes room for a new one.** What its client does is noted in its [`Place`], and when that is
//! cancelled, the connection ends as if its client had closed it.

use std::{
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use actix_web::http::header::HttpDate;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    malformed,
    read_turns::{ReadTurns, Reader},
};
use crate::{
    http::{
        connections::{Phase, Place},
        middleware::{access_log, request_id::RequestId},
    },
    metrics::Metrics,
};

/// Longer heads of answers are none of actix-web's refusals.
const LONGEST_REFUSAL: usize = 256;

/// What asks a client for a body that it holds back; the answer is yet to come.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How long a client may take for what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// To take something of what it is sent.
    pub(crate) read: Duration,
    /// To send the rest of a head.
    pub(crate) head: Duration,
    /// To send or be sent anything at all; longer than actix-web waits for the next request, and than a stream is silent.
    pub(crate) idle: Duration,
}

/// What all connections of a thread share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) patience: Patience,
    pub(crate) turns: ReadTurns,
}

/// Where a client is with its next request, as far as that shows without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing of it has come.
    Awaited,
    /// Its head has begun, and its last line has so many characters.
    Head { last_line: usize },
    /// Its head is there. Whatever comes now, an answer is due.
    Answering,
    /// It is not waited for any more.
    Over,
}

impl Turn {
    /// After `bytes` have come.
    fn after(self, bytes: &[u8]) -> Self {
        // A body has megabytes, of which none says more.
        if matches!(self, Self::Answering | Self::Over) {
            return self;
        }
        bytes.iter().fold(self, |turn, byte| match (turn, byte) {
            (Self::Awaited, b'\r' | b'\n') | (Self::Head { .. }, b'\r') => turn,
            (Self::Awaited, _) => Self::Head { last_line: 1 },
            (Self::Head { last_line: 0 }, b'\n') => Self::Answering,
            (Self::Head { .. }, b'\n') => Self::Head { last_line: 0 },
            (Self::Head { last_line }, _) => Self::Head { last_line: last_line + 1 },
            (Self::Answering | Self::Over, _) => turn,
        })
    }
}

/// A connection.
pub(crate) struct Connection<T> {
    io: T,
    peer: Option<SocketAddr>,
    metrics: Arc<Metrics>,
    /// What was read since something was last written, as far as it is looked at.
    heard: Vec<u8>,
    /// What was taken and is not written yet: the rest of a refusal's words.
    owed: Vec<u8>,
    turn: Turn,
    patience: Patience,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    reader: Reader,
    /// Runs while it is its turn.
    awaited: Option<Pin<Box<Sleep>>>,
    place: Place,
    /// Completes when it must make room for a new connection.
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> Connection<T> {
    pub(crate) fn new(io: T, peer: Option<SocketAddr>, shared: Shared, place: Place) -> Self {
        let Shared { metrics, patience, turns } = shared;
        place.turn_to(Phase::Idle);
        let closing = Box::pin(place.closing().clone().cancelled_owned());
        let (heard, owed, turn) = (Vec::new(), Vec::new(), Turn::Awaited);
        Self {
            io,
            peer,
            metrics,
            heard,
            owed,
            turn,
            patience,
            stalled: None,
            reader: Reader::new(turns),
            awaited: None,
            place,
            closing,
        }
    }

    /// Its place among all connections.
    pub(crate) const fn place(&self) -> &Place {
        &self.place
    }

    /// What is written instead of `refusal`, an answer of actix-web's without a body.
    fn words(&self, refusal: &str, status: u16) -> Vec<u8> {
        let error = malformed::error(status, &self.heard);
        let id = RequestId::made();
        access_log::refused_unread(&self.metrics, self.peer, &id, &error, !self.heard.is_empty());
        let body = error.body().to_string();
        let head = refusal.replace("content-length: 0\r\n", &format!("content-length: {}\r\n", body.len()));
        // After a request that was answered, actix-web closes the connection and does not say so.
        let head = head.replace("connection: close\r\n", "");
        let head = head.strip_suffix("\r\n").unwrap_or(&head);
        let more = "connection: close\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
             x-content-type-options: nosniff\r\n";
        format!("{head}{more}x-request-id: {}\r\n\r\n{body}", id.as_str()).into_bytes()
    }
}

impl<T: AsyncWrite + Unpin> Connection<T> {
    fn turn_to(&mut self, turn: Turn) {
        if mem::discriminant(&self.turn) != mem::discriminant(&turn) {
            self.awaited = None;
            self.place.turn_to(match turn {
                Turn::Awaited | Turn::Over => Phase::Idle,
                Turn::Head { .. } => Phase::Head,
                Turn::Answering => Phase::Waiting,
            });
        }
        self.turn = turn;
    }

    /// Waits for the client as long as there is patience; then it is as if it had left.
    fn poll_awaited(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.closing.as_mut().poll(cx).is_ready() {
            self.turn_to(Turn::Over);
            return Poll::Ready(());
        }
        let patience = match self.turn {
            Turn::Awaited => self.patience.idle,
            Turn::Head { .. } => self.patience.head,
            Turn::Answering => return Poll::Pending,
            Turn::Over => return Poll::Ready(()),
        };
        let awaited = self.awaited.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(awaited.as_mut().poll(cx));
        if matches!(self.turn, Turn::Head { .. }) {
            let date = HttpDate::from(SystemTime::now());
            let refusal =
                format!("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\ndate: {date}\r\n\r\n");
            self.owed = self.words(&refusal, 408);
        }
        self.turn_to(Turn::Over);
        Poll::Ready(())
    }

    /// As the inner one's, but not for ever.
    fn poll_patiently<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if let Poll::Ready(done) = poll(Pin::new(&mut self.io), cx) {
            self.stalled = None;
            return Poll::Ready(done);
        }
        let patience = self.patience.read;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_owed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.owed.is_empty() {
            let owed = mem::take(&mut self.owed);
            let written = self.poll_patiently(cx, |io, cx| io.poll_write(cx, &owed));
            self.owed = owed;
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.owed.drain(..written)),
            }
        }
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
        if self.turn == Turn::Over {
            return Poll::Ready(Ok(()));
        }
        if self.reader.poll_turn(cx).is_pending() {
            return self.poll_awaited(cx).map(Ok);
        }
        match Pin::new(&mut self.io).poll_read(cx, buffer) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.reader.has_waited();
                return self.poll_awaited(cx).map(Ok);
            }
        }
        let read = &buffer.filled()[before..];
        self.reader.has_read(read.len());
        let turn = self.turn.after(read);
        self.turn_to(turn);
        let room = malformed::MOST_HEARD.saturating_sub(self.heard.len());
        self.heard.extend_from_slice(&read[..read.len().min(room)]);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_owed(cx))?;
        if let Some((place, status)) = refusal_in(buffer) {
            let refusal = String::from_utf8_lossy(&buffer[place..]);
            self.owed = [&buffer[..place], &self.words(&refusal, status)].concat();
            // Whoever writes has nothing more to write, and flushes.
            if let Poll::Ready(Err(error)) = self.poll_owed(cx) {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(Ok(buffer.len()));
        }
        let written = ready!(self.poll_patiently(cx, |io, cx| io.poll_write(cx, buffer)));
        if buffer != CONTINUE && self.turn != Turn::Over {
            // A connection that waits for its next request holds nothing of the last one.
            self.heard = Vec::new();
            self.awaited = None;
            self.reader.begin_request();
            self.turn_to(Turn::Awaited);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_owed(cx))?;
        self.poll_patiently(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_owed(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Where in what is to be written a refusal of actix-web's stands, and its status.
fn refusal_in(written: &[u8]) -> Option<(usize, u16)> {
    if !written.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = written.len().saturating_sub(LONGEST_REFUSAL);
    let place = from + written[from..].windows(7).rposition(|window| window == b"HTTP/1.")?;
    let head = std::str::from_utf8(&written[place..]).ok()?;
    let (line, fields) = head.strip_suffix("\r\n\r\n")?.split_once("\r\n")?;
    let status = line.get(9..12)?.parse().ok().filter(|status| malformed::STATUSES.contains(status))?;
    let is_bare = |field: &str| {
        ["content-length: 0", "connection: close"].contains(&field) || field.starts_with("date: ")
    };
    fields.split("\r\n").all(is_bare).then_some((place, status))
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::http::{connections::Connections, server::read_turns::PIECE};

    const REFUSAL: &str =
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\ndate: today\r\n\r\n";

    const SECOND: Duration = Duration::from_secs(1);

    fn connection<T>(io: T) -> Connection<T> {
        connection_at(io, Connections::new(8).enter())
    }

    fn connection_at<T>(io: T, place: Place) -> Connection<T> {
        let patience = Patience { read: 60 * SECOND, head: 5 * SECOND, idle: 80 * SECOND };
        let shared = Shared { metrics: Arc::new(Metrics::new()), patience, turns: ReadTurns::default() };
        Connection::new(io, None, shared, place)
    }

    /// What the other side gets of `written`, when it has sent `sent`, through a pipe that holds `room` bytes.
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
    async fn a_refusal_gets_words_whatever_stands_before_it_and_however_little_fits() {
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
    async fn everything_else_passes_as_it_is() {
        let ours = REFUSAL.replace("date", "x-request-id: a\r\ndate");
        let quoted = format!("HTTP/1.1 200 OK\r\n\r\n{REFUSAL}more");
        let accepted = REFUSAL.replace("400 Bad Request", "204 No Content");
        for written in ["", "0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", &ours, &quoted, &accepted] {
            assert_eq!(passed(b"", written.as_bytes(), 16).await, written);
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_without_end_waits_for_turns() {
        let (mut client, server) = duplex(1 << 20);
        client.write_all(&vec![b'a'; 8 * PIECE]).await.unwrap();
        let mut server = connection(server);
        let turns = server.reader.turns().clone();
        let mut piece = vec![0; PIECE];
        server.read_exact(&mut piece).await.unwrap();
        let waits = tokio::time::timeout(SECOND / 10, server.read(&mut piece)).await;
        waits.expect_err("nothing grants turns");
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
    async fn a_client_who_takes_nothing_is_waited_for_and_then_left() {
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
        assert_eq!(read.elapsed(), 60 * SECOND, "each that it takes gives it time anew");
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
    async fn an_idle_connection_ends_when_its_place_is_wanted_and_one_that_is_owed_an_answer_goes_on() {
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
        assert_eq!((read.unwrap(), begun.elapsed()), (0, SECOND), "not after the 80 s of its patience");
        tokio::time::timeout(SECOND, busy.read(&mut [0; 64])).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_dribbles_a_later_head_is_told_and_left() {
        let (mut client, mut server) = answered().await;
        let begun = tokio::time::Instant::now();
        let dribble = async {
            client.write_all(b"\r\nPOST / HTTP/1.1\r\n").await.unwrap();
            for _ in 0..20 {
                sleep(SECOND / 2).await;
                client.write_all(b"x-a: b\r\n").await.unwrap();
            }
        };
        let hear = async {
            while server.read(&mut [0; 64]).await.unwrap() > 0 {}
            assert_eq!(begun.elapsed(), 5 * SECOND);
            assert_eq!(server.read(&mut [0; 64]).await.unwrap(), 0, "nor is anything heard any more");
            server.shutdown().await.unwrap();
        };
        tokio::join!(dribble, hear);
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("head_too_slow"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_nothing_is_left_without_a_word_and_whoever_is_owed_an_answer_is_not() {
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
