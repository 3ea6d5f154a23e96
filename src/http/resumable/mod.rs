//! Streams that a client can resume after its connection was lost.
//!
//! With `server.resume_ms`, the events of a stream are kept while it is generated and for that time after its end. A client that
//! returns within this time reads on after the last event that it has; the generation of one that does not is cancelled. Each
//! stream has an unguessable id and belongs to the API key that started it.
//!
//! The events of all streams share `server.resume_bytes`, of which one takes up to an eighth ([`STREAM_FRACTION`]). To make room,
//! streams that have ended are forgotten first, the oldest before the others, then the earliest events of the stream itself, if
//! its client has taken them. A stream without a client is cut: it could not be continued without a gap.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use actix_web::web::Bytes;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};

use crate::{
    http::random_id,
    metrics::{Metrics, ResumeLabel},
    units,
};

/// One stream may take up to `server.resume_bytes` divided by this.
const STREAM_FRACTION: usize = 8;

/// An estimate of the memory of a kept event besides its bytes.
const OVERHEAD: usize = 64;

/// An estimate of the memory of a stream besides its events.
const STREAM_OVERHEAD: usize = 4096;

/// Most bytes that a client gets in one piece.
const PIECE: usize = 64 << 10;

/// The kept streams of all clients. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct ResumableStreams {
    window: Duration,
    limit: usize,
    metrics: Arc<Metrics>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    streams: HashMap<Arc<str>, Stream>,
    /// The streams that have ended, by the order of their ends.
    ended: BTreeMap<u64, Arc<str>>,
    next_end: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Stream {
    /// The name of the API key that started it.
    owner: Option<String>,
    kind: StreamKind,
    events: VecDeque<Bytes>,
    /// The number of the first kept event; they are counted from 1.
    first: u64,
    bytes: usize,
    client: Client,
    /// Whether the last thing known of the answer is that its model is being loaded.
    is_loading: bool,
    /// Its place among the streams that have ended.
    ended: Option<u64>,
    /// Wakes the reader.
    written: watch::Sender<()>,
    /// Wakes the writer.
    read: watch::Sender<()>,
}

/// The connection that reads a stream.
#[derive(Debug)]
struct Client {
    /// Counts the connections of the stream; an earlier one reads no further.
    connection: u64,
    /// The number of the event that it takes next.
    next: u64,
    /// When it was lost.
    lost: Option<Instant>,
}

/// Where a client reads on: the id of a stream, and the number of the last event that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) id: String,
    pub(crate) after: u64,
}

impl Position {
    /// Reads `ID:NUMBER`, as in the `id:` line of an event, or `ID` for the beginning.
    pub(crate) fn parse(text: &str) -> Self {
        let numbered = text.rsplit_once(':').and_then(|(id, number)| Some((id, number.parse().ok()?)));
        let (id, after) = numbered.unwrap_or((text, 0));
        Self { id: id.to_owned(), after }
    }
}

/// What a route needs to know of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamKind {
    /// The route that started it.
    pub(crate) route: &'static str,
    pub(crate) content_type: &'static str,
    /// What keeps its connection open: while nothing is to be sent, and while the model is loaded.
    pub(crate) heartbeats: [&'static str; 2],
}

/// Why a stream cannot be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeError {
    /// It is unknown, of another key or route, or forgotten.
    NotFound,
    /// It has not had the event after which the client wants to read on.
    NoSuchEvent { last: u64 },
    /// The events that the client lacks were dropped.
    Dropped { first: u64 },
}

/// Why a stream ends before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// The client did not return in time, or deleted the stream.
    ClientGone,
    /// The client is away, and the memory for events is full.
    NoRoom,
}

impl ResumableStreams {
    /// Keeps events within `limit`, for `window` after the end of a stream; nothing if that is zero.
    pub(crate) fn new(window: Duration, limit: units::Bytes, metrics: Arc<Metrics>) -> Self {
        let limit = usize::try_from(limit.0).unwrap_or(usize::MAX);
        Self { window, limit, metrics, kept: Arc::default() }
    }

    /// How long a stream waits for its client; zero if streams are not kept.
    pub(crate) const fn window(&self) -> Duration {
        self.window
    }

    /// A stream of this API key, with what writes it and what reads it from its beginning; `None` if streams are not kept, or there is
    /// no memory for another one.
    pub(crate) fn begin(
        &self,
        owner: Option<&str>,
        kind: StreamKind,
    ) -> Option<(StreamWriter, StreamReader)> {
        if self.window.is_zero() {
            return None;
        }
        let id: Arc<str> = random_id::new("stream_").into();
        let (written, has_written) = watch::channel(());
        let (read, has_read) = watch::channel(());
        let stream = Stream {
            owner: owner.map(str::to_owned),
            kind,
            events: VecDeque::new(),
            first: 1,
            bytes: STREAM_OVERHEAD,
            client: Client { connection: 1, next: 1, lost: None },
            is_loading: false,
            ended: None,
            written,
            read,
        };
        let mut kept = self.kept();
        while kept.bytes + STREAM_OVERHEAD > self.limit {
            if !kept.forget_ended() {
                return None;
            }
        }
        kept.bytes += STREAM_OVERHEAD;
        kept.streams.insert(Arc::clone(&id), stream);
        drop(kept);
        let writer = StreamWriter { all: self.clone(), id: Arc::clone(&id), next: 1, has_read };
        let reader = StreamReader { all: self.clone(), id, connection: 1, has_written, said_loading: false };
        Some((writer, reader))
    }

    /// Reads on at `position`, for a client with this API key, and on the `route` that started the stream if there is one. A
    /// connection that still reads the stream is closed: its client may have lost it without the server having noticed.
    ///
    /// # Errors
    /// [`ResumeError`].
    pub(crate) fn resume(
        &self,
        position: &Position,
        owner: Option<&str>,
        route: Option<&str>,
    ) -> Result<(StreamReader, StreamKind), ResumeError> {
        let resumed = self.attach(position, owner, route);
        let outcome = match resumed {
            Ok(_) => "resumed",
            Err(ResumeError::Dropped { .. }) => "events_dropped",
            Err(ResumeError::NotFound | ResumeError::NoSuchEvent { .. }) => "not_found",
        };
        self.metrics.stream_resumes.get_or_create(&ResumeLabel { outcome }).inc();
        resumed
    }

    fn attach(
        &self,
        position: &Position,
        owner: Option<&str>,
        route: Option<&str>,
    ) -> Result<(StreamReader, StreamKind), ResumeError> {
        let mut kept = self.kept();
        let id = kept.id_of(&position.id, owner).ok_or(ResumeError::NotFound)?;
        let stream = kept.streams.get_mut(&id).ok_or(ResumeError::NotFound)?;
        if route.is_some_and(|route| route != stream.kind.route) {
            return Err(ResumeError::NotFound);
        }
        let next = position.after.saturating_add(1);
        let end = stream.end();
        if next > end {
            return Err(ResumeError::NoSuchEvent { last: end - 1 });
        }
        if next < stream.first {
            return Err(ResumeError::Dropped { first: stream.first });
        }
        let connection = stream.client.connection + 1;
        stream.client = Client { connection, next, lost: None };
        let has_written = stream.written.subscribe();
        let kind = stream.kind;
        stream.written.send_replace(());
        stream.read.send_replace(());
        let reader = StreamReader { all: self.clone(), id, connection, has_written, said_loading: false };
        Ok((reader, kind))
    }

    /// Ends the stream of this API key and its generation; false if there is none.
    pub(crate) fn delete(&self, id: &str, owner: Option<&str>) -> bool {
        let mut kept = self.kept();
        let found = kept.id_of(id, owner);
        found.map(|id| kept.forget(&id)).is_some()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A panic while it was locked cannot leave it half changed in a way that matters: events are only added and removed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_bytes(&self, kept: &Kept) {
        self.metrics.resumable_stream_bytes.set(i64::try_from(kept.bytes).unwrap_or(i64::MAX));
    }
}

impl Kept {
    /// The id of a stream, if it is of this API key.
    fn id_of(&self, id: &str, owner: Option<&str>) -> Option<Arc<str>> {
        let (id, stream) = self.streams.get_key_value(id)?;
        (stream.owner.as_deref() == owner).then(|| Arc::clone(id))
    }

    /// Removes a stream. Its reader and its writer notice by the end of their channels.
    fn forget(&mut self, id: &str) {
        if let Some(stream) = self.streams.remove(id) {
            self.bytes -= stream.bytes;
            stream.ended.map(|end| self.ended.remove(&end));
        }
    }

    /// Forgets the stream that ended first, of those that no connection reads; false if there is none.
    fn forget_ended(&mut self) -> bool {
        let is_idle = |id: &Arc<str>| self.streams.get(id).is_none_or(|stream| !stream.is_connected());
        let oldest = self.ended.values().find(|id| is_idle(id)).cloned();
        oldest.map(|id| self.forget(&id)).is_some()
    }

    /// Removes the first event of a stream, if its connected client has taken it.
    fn drop_taken(&mut self, id: &str) -> bool {
        let Some(stream) = self.streams.get_mut(id) else { return false };
        if !stream.is_connected() || stream.first >= stream.client.next {
            return false;
        }
        let Some(event) = stream.events.pop_front() else { return false };
        stream.first += 1;
        stream.bytes -= event.len() + OVERHEAD;
        self.bytes -= event.len() + OVERHEAD;
        true
    }
}

impl Stream {
    /// The number of the next event.
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Whether a connection reads it.
    fn is_connected(&self) -> bool {
        self.client.lost.is_none()
    }

    /// Whether a connected client has not taken everything.
    fn has_unread(&self) -> bool {
        self.is_connected() && self.client.next < self.end()
    }
}

/// Writes a stream. Dropping it removes the stream.
pub(crate) struct StreamWriter {
    all: ResumableStreams,
    id: Arc<str>,
    /// The number of the next event.
    next: u64,
    has_read: watch::Receiver<()>,
}

/// What became of an event.
enum Push {
    Kept,
    /// The client has to take earlier events first.
    Later,
    Abandoned(Abandoned),
}

impl StreamWriter {
    /// The id of the stream.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Appends events, which get an `id:` line each. Waits for the client while the memory for events is full.
    ///
    /// # Errors
    /// [`Abandoned`] when the generation should end.
    pub(crate) async fn write(&mut self, events: impl IntoIterator<Item = Bytes>) -> Result<(), Abandoned> {
        for event in events {
            let event = self.numbered(&event);
            loop {
                match self.push(&event, false) {
                    Push::Kept => break,
                    Push::Abandoned(why) => return Err(why),
                    // The client takes events, or its connection is closed for not doing so.
                    Push::Later => self.has_read.changed().await.map_err(|_| Abandoned::ClientGone)?,
                }
            }
        }
        Ok(())
    }

    /// Appends the last events, whatever memory they need, and keeps the stream for the window.
    pub(crate) async fn end(mut self, events: impl IntoIterator<Item = Bytes>) {
        for event in events {
            let event = self.numbered(&event);
            self.push(&event, true);
        }
        {
            let mut kept = self.all.kept();
            let end = kept.next_end;
            kept.next_end += 1;
            let Some(stream) = kept.streams.get_mut(&self.id) else { return };
            stream.ended = Some(end);
            stream.written.send_replace(());
            kept.ended.insert(end, Arc::clone(&self.id));
        }
        let is_over = sleep(self.all.window);
        tokio::pin!(is_over);
        // A connection that still reads has the stream until it has read the end.
        while !is_over.is_elapsed() || self.all.kept().streams.get(&self.id).is_some_and(Stream::is_connected)
        {
            tokio::select! {
                () = &mut is_over, if !is_over.is_elapsed() => {}
                // The stream was forgotten.
                changed = self.has_read.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Says that the model is being loaded.
    pub(crate) fn set_loading(&self) {
        if let Some(stream) = self.all.kept().streams.get_mut(&self.id) {
            stream.is_loading = true;
            stream.written.send_replace(());
        }
    }

    /// Completes when the client has been away for longer than the window, or has deleted the stream. Cancel safe.
    pub(crate) async fn abandoned(&mut self) -> Abandoned {
        loop {
            let lost = match self.all.kept().streams.get(&self.id) {
                None => return Abandoned::ClientGone,
                Some(stream) => stream.client.lost,
            };
            let is_over = lost.is_some_and(|lost| lost.elapsed() >= self.all.window);
            if is_over {
                self.all.metrics.streams_abandoned.inc();
                return Abandoned::ClientGone;
            }
            let changed = match lost {
                None => self.has_read.changed().await,
                Some(lost) => tokio::select! {
                    changed = self.has_read.changed() => changed,
                    () = sleep_until((lost + self.all.window).into()) => Ok(()),
                },
            };
            if changed.is_err() {
                return Abandoned::ClientGone;
            }
        }
    }

    fn numbered(&self, event: &[u8]) -> Bytes {
        let mut numbered = format!("id: {}:{}\n", self.id, self.next).into_bytes();
        numbered.extend_from_slice(event);
        numbered.into()
    }

    /// Keeps an event, if there is room for it or `is_last`.
    fn push(&mut self, event: &Bytes, is_last: bool) -> Push {
        let (size, limit) = (event.len() + OVERHEAD, self.all.limit);
        let mut kept = self.all.kept();
        loop {
            let Some(stream) = kept.streams.get(&self.id) else {
                return Push::Abandoned(Abandoned::ClientGone);
            };
            let fits_share = stream.bytes + size <= limit / STREAM_FRACTION;
            let (is_lost, has_unread) = (!stream.is_connected(), stream.has_unread());
            let fits = fits_share && kept.bytes + size <= limit;
            let is_freed = !fits && ((fits_share && kept.forget_ended()) || kept.drop_taken(&self.id));
            match () {
                () if is_freed => {}
                () if !fits && is_lost && !is_last => return Push::Abandoned(Abandoned::NoRoom),
                () if !fits && has_unread && !is_last => return Push::Later,
                () => break,
            }
        }
        self.next += 1;
        kept.bytes += size;
        if let Some(stream) = kept.streams.get_mut(&self.id) {
            stream.bytes += size;
            stream.events.push_back(event.clone());
            stream.is_loading = false;
            stream.written.send_replace(());
        }
        self.all.show_bytes(&kept);
        Push::Kept
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        let mut kept = self.all.kept();
        kept.forget(&self.id);
        self.all.show_bytes(&kept);
    }
}

/// A connection that reads a stream. When it is dropped, the stream waits for its client.
pub(crate) struct StreamReader {
    all: ResumableStreams,
    id: Arc<str>,
    connection: u64,
    has_written: watch::Receiver<()>,
    /// Whether the client knows that the model is being loaded.
    said_loading: bool,
}

/// What a connection gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Events.
    Events(Bytes),
    /// The model is being loaded.
    Loading,
    /// The stream has ended, and the client has all of it.
    End,
    /// Another connection has resumed the stream, or it was deleted.
    Closed,
}

impl StreamReader {
    /// The next events. Cancel safe.
    pub(crate) async fn next(&mut self) -> Read {
        loop {
            if let Some(read) = self.take() {
                return read;
            }
            let is_loading = self.is_loading();
            if is_loading && !std::mem::replace(&mut self.said_loading, is_loading) {
                return Read::Loading;
            }
            if self.has_written.changed().await.is_err() {
                return Read::Closed;
            }
        }
    }

    /// Whether the last thing known of the answer is that its model is being loaded.
    pub(crate) fn is_loading(&self) -> bool {
        self.all.kept().streams.get(&self.id).is_some_and(|stream| stream.is_loading)
    }

    /// What can be read now; `None` if that is nothing.
    fn take(&self) -> Option<Read> {
        let mut kept = self.all.kept();
        let Some(stream) = kept.streams.get_mut(&self.id) else { return Some(Read::Closed) };
        if stream.client.connection != self.connection {
            return Some(Read::Closed);
        }
        let from = usize::try_from(stream.client.next - stream.first).unwrap_or(usize::MAX);
        let (mut taken, mut count) = (Vec::new(), 0);
        for event in stream.events.iter().skip(from) {
            if !taken.is_empty() && taken.len() + event.len() > PIECE {
                break;
            }
            taken.extend_from_slice(event);
            count += 1;
        }
        if count == 0 {
            return stream.ended.map(|_| Read::End);
        }
        stream.client.next += count;
        stream.read.send_replace(());
        Some(Read::Events(taken.into()))
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let mut kept = self.all.kept();
        if let Some(stream) = kept.streams.get_mut(&self.id)
            && stream.client.connection == self.connection
        {
            stream.client.lost = Some(Instant::now());
            stream.read.send_replace(());
        }
    }
}
