//! All open connections, so that there is room for one more.
//!
//! When there are more than `server.max_connections`, the connection is closed that can best be spared: the one that has
//! been idle for longest, else one whose client is still sending a head, else one whose client is still sending a body.
//! A connection whose answer is due is never closed for another. Refusing newcomers instead would let a thousand idle
//! clients keep out everybody, and the probes of an orchestrator with them, which would then kill a healthy server.
//!
//! [`SPARE`] connections beyond the limit are accepted all the same, so that newcomers get in while a connection is being
//! closed, or when all of them are busy.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Instant,
};

use tokio_util::sync::CancellationToken;

/// Connections that are accepted beyond the limit.
pub(crate) const SPARE: usize = 32;

/// What the client of a connection is doing. Those that come first are closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Nothing; it may send a request.
    Idle,
    /// It is sending a head, or shaking hands.
    Head,
    /// It is sending a body.
    Body,
    /// It waits for its answer.
    Waiting,
}

/// All connections of one thread.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    open: Rc<RefCell<HashMap<u64, Rc<State>>>>,
    next: Rc<Cell<u64>>,
    most: usize,
}

#[derive(Debug)]
struct State {
    /// As far as what was read and written tells.
    phase: Cell<Phase>,
    /// Requests whose answers are not complete.
    answers: Cell<usize>,
    /// Bodies that are being read.
    bodies: Cell<usize>,
    /// When any of these changed last.
    since: Cell<Instant>,
    closing: CancellationToken,
}

impl State {
    fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            answers: Cell::default(),
            bodies: Cell::default(),
            since: Cell::new(Instant::now()),
            closing: CancellationToken::new(),
        }
    }

    /// A stream has answered in part and is written to now and then, so that only the number of answers tells.
    fn phase(&self) -> Phase {
        match (self.bodies.get(), self.answers.get()) {
            (0, 0) => self.phase.get(),
            (0, _) => Phase::Waiting,
            _ => Phase::Body,
        }
    }
}

/// One connection's place among all; clones are the same place. It is given back with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Place(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Rc<State>,
    id: u64,
    all: Connections,
}

impl Connections {
    /// No connections, of which there should be at most `most`.
    pub(crate) fn new(most: usize) -> Self {
        Self { open: Rc::default(), next: Rc::default(), most }
    }

    /// The place of a new connection. If there are too many now, the one that can best be spared is asked to close.
    pub(crate) fn enter(&self) -> Place {
        let id = self.next.replace(self.next.get() + 1);
        let state = Rc::new(State::new());
        let is_full = self.open.borrow().len() >= self.most;
        if is_full {
            self.spare_one();
        }
        self.open.borrow_mut().insert(id, Rc::clone(&state));
        Place(Rc::new(Inner { state, id, all: self.clone() }))
    }

    /// Asks the connection that can best be spared to close, and no longer counts it.
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

impl Place {
    /// Notes what the client does now.
    pub(crate) fn turn_to(&self, phase: Phase) {
        let state = &self.0.state;
        if state.phase.replace(phase) != phase {
            state.since.set(Instant::now());
        }
    }

    /// Notes that an answer is due, until what is returned is dropped.
    pub(crate) fn answer(&self) -> During {
        During::begin(&self.0.state, |state| &state.answers)
    }

    /// Notes that a body is being read, until what is returned is dropped.
    pub(crate) fn body(&self) -> During {
        During::begin(&self.0.state, |state| &state.bodies)
    }

    /// Cancelled when the connection must close.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.0.state.closing
    }
}

/// Something that a connection is doing.
pub(crate) struct During {
    state: Rc<State>,
    count: fn(&State) -> &Cell<usize>,
}

impl During {
    fn begin(state: &Rc<State>, count: fn(&State) -> &Cell<usize>) -> Self {
        count(state).update(|n| n + 1);
        state.since.set(Instant::now());
        Self { state: Rc::clone(state), count }
    }
}

impl Drop for During {
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

    fn is_closing(place: &Place) -> bool {
        place.closing().is_cancelled()
    }

    #[test]
    fn when_all_places_are_taken_the_connection_that_was_idle_for_longest_is_closed() {
        let all = Connections::new(3);
        let [waiting, first, second] = [Phase::Waiting, Phase::Idle, Phase::Idle].map(|phase| {
            let place = all.enter();
            place.turn_to(phase);
            std::thread::sleep(std::time::Duration::from_millis(2));
            place
        });
        let newcomer = all.enter();
        assert_eq!([&waiting, &first, &second, &newcomer].map(is_closing), [false, true, false, false]);
        drop(second);
        let next = all.enter();
        assert_eq!([&waiting, &newcomer, &next].map(is_closing), [false; 3], "a place was free");
    }

    #[test]
    fn a_connection_whose_answer_is_due_is_never_closed_for_another() {
        let all = Connections::new(1);
        let waiting = all.enter();
        // A stream that has been written to looks idle, as far as that goes.
        let _answer = waiting.answer();
        waiting.turn_to(Phase::Idle);
        let body = all.enter();
        let _answer = body.answer();
        let _body = body.body();
        let head = all.enter();
        assert_eq!([&waiting, &body, &head].map(is_closing), [false, true, false]);
        all.enter();
        assert_eq!([&waiting, &head].map(is_closing), [false, true]);
    }
}
