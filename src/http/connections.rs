//! The list of open connections, which decides which one closes for a new one.
//!
//! At `server.max_connections`, a new connection closes the one that is idle for longest, else one whose client is sending a
//! head, else one whose client is sending a body. A connection whose answer is due is never closed. Refusing new connections
//! instead would let a thousand idle clients lock out everyone, including the probes of an orchestrator, which would then
//! kill a healthy server.
//!
//! [`SPARE`] connections beyond the limit are accepted while another one closes, or when all are busy.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use actix_web::{HttpMessage, HttpRequest};
use tokio_util::sync::CancellationToken;

/// Connections accepted beyond the limit.
pub(crate) const SPARE: usize = 32;

/// What the client of a connection is doing. Connections in the first phases are closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing.
    Idle,
    /// Sending a head, or in the TLS handshake.
    Head,
    /// Sending a body.
    Body,
    /// Waiting for an answer.
    Waiting,
}

/// The connections of one thread.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    open: Rc<RefCell<HashMap<u64, Rc<State>>>>,
    next: Rc<Cell<u64>>,
    max: usize,
}

#[derive(Debug)]
struct State {
    /// The phase by the bytes that were read and written.
    phase: Cell<Phase>,
    /// Answers that are not complete.
    answers: Cell<usize>,
    /// Bodies that are being read.
    bodies: Cell<usize>,
    /// When any of these last changed.
    since: Cell<Instant>,
    closing: CancellationToken,
    /// Whether it came through a Unix socket.
    is_local_socket: Cell<bool>,
}

impl State {
    fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            answers: Cell::default(),
            bodies: Cell::default(),
            since: Cell::new(Instant::now()),
            closing: CancellationToken::new(),
            is_local_socket: Cell::new(false),
        }
    }

    /// A stream writes now and then, so its phase by bytes is wrong: the counters take precedence.
    fn phase(&self) -> Phase {
        match (self.bodies.get(), self.answers.get()) {
            (0, 0) => self.phase.get(),
            (0, _) => Phase::Waiting,
            _ => Phase::Body,
        }
    }
}

/// The entry of one connection in the list; removed with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionHandle(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Rc<State>,
    id: u64,
    all: Connections,
}

impl Connections {
    /// An empty list for at most `max` connections.
    pub(crate) fn new(max: usize) -> Self {
        Self { open: Rc::default(), next: Rc::default(), max }
    }

    /// Adds a connection. At the limit, another one is asked to close.
    pub(crate) fn enter(&self) -> ConnectionHandle {
        let id = self.next.replace(self.next.get() + 1);
        let state = Rc::new(State::new());
        let is_full = self.open.borrow().len() >= self.max;
        if is_full {
            self.spare_one();
        }
        self.open.borrow_mut().insert(id, Rc::clone(&state));
        ConnectionHandle(Rc::new(Inner { state, id, all: self.clone() }))
    }

    /// Asks one connection to close and removes it from the list.
    fn spare_one(&self) {
        let mut open = self.open.borrow_mut();
        let spared = open
            .iter()
            .filter(|(_, state)| state.phase() < Phase::Waiting)
            .min_by_key(|(_, state)| (state.phase(), state.since.get()))
            .map(|(id, _)| *id);
        if let Some(state) = spared.and_then(|id| open.remove(&id)) {
            state.closing.cancel();
        }
    }
}

impl ConnectionHandle {
    /// The connection of a request. HTTP/1 keeps it with the connection, HTTP/2 with each request.
    pub(crate) fn of(request: &HttpRequest) -> Option<Self> {
        request.conn_data::<Self>().or(request.extensions().get()).cloned()
    }

    /// How long no answer has been due.
    pub(crate) fn idle_for(&self) -> Duration {
        let state = &self.0.state;
        if state.answers.get() + state.bodies.get() > 0 {
            Duration::ZERO
        } else {
            state.since.get().elapsed()
        }
    }

    /// Sets what the client is doing.
    pub(crate) fn set_phase(&self, phase: Phase) {
        let state = &self.0.state;
        if state.phase.replace(phase) != phase {
            state.since.set(Instant::now());
        }
    }

    /// Marks that it came through a Unix socket.
    pub(crate) fn set_local_socket(&self) {
        self.0.state.is_local_socket.set(true);
    }

    /// Whether it came through a Unix socket, and so from this machine.
    pub(crate) fn is_local_socket(&self) -> bool {
        self.0.state.is_local_socket.get()
    }

    /// Marks that an answer is due, until the guard is dropped.
    pub(crate) fn answer(&self) -> ActivityGuard {
        ActivityGuard::begin(&self.0.state, |state| &state.answers)
    }

    /// Marks that a body is being read, until the guard is dropped.
    pub(crate) fn body(&self) -> ActivityGuard {
        ActivityGuard::begin(&self.0.state, |state| &state.bodies)
    }

    /// Cancelled when the connection has to close.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.state.closing
    }
}

/// Counts an activity of a connection while it exists.
pub(crate) struct ActivityGuard {
    state: Rc<State>,
    count: fn(&State) -> &Cell<usize>,
}

impl ActivityGuard {
    fn begin(state: &Rc<State>, count: fn(&State) -> &Cell<usize>) -> Self {
        count(state).update(|n| n + 1);
        state.since.set(Instant::now());
        Self { state: Rc::clone(state), count }
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        (self.count)(&self.state).update(|n| n - 1);
        self.state.since.set(Instant::now());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.all.open.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closing(handle: &ConnectionHandle) -> bool {
        handle.closing().is_cancelled()
    }

    #[test]
    fn at_the_limit_the_connection_that_is_idle_for_longest_closes() {
        let all = Connections::new(3);
        let [waiting, first, second] = [Phase::Waiting, Phase::Idle, Phase::Idle].map(|phase| {
            let handle = all.enter();
            handle.set_phase(phase);
            std::thread::sleep(std::time::Duration::from_millis(2));
            handle
        });
        let newcomer = all.enter();
        assert_eq!([&waiting, &first, &second, &newcomer].map(is_closing), [false, true, false, false]);
        drop(second);
        let next = all.enter();
        assert_eq!([&waiting, &newcomer, &next].map(is_closing), [false; 3], "below the limit");
    }

    #[test]
    fn a_connection_whose_answer_is_due_never_closes_for_another() {
        let all = Connections::new(1);
        let waiting = all.enter();
        // A stream that was written to looks idle by its bytes.
        let _answer = waiting.answer();
        waiting.set_phase(Phase::Idle);
        let body = all.enter();
        let _answer = body.answer();
        let _body = body.body();
        let head = all.enter();
        assert_eq!([&waiting, &body, &head].map(is_closing), [false, true, false]);
        all.enter();
        assert_eq!([&waiting, &head].map(is_closing), [false, true]);
    }
}
