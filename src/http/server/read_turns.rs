//! Turns of reading, so that many fast senders do not delay everything else on the HTTP thread.
//!
//! A token passes through several tasks on its way to a client. Each of them runs once in a round of the runtime's ready
//! tasks. If hundreds of connections each read a piece of their request in every round, a round takes milliseconds and a
//! token takes several of them. So a connection reads the first [`PIECE`] bytes of a request at once, which is all of an
//! ordinary request. For each further piece it takes a turn, and the driver grants one turn in a round.
//!
//! A turn that is not used is lost, and nothing waits for it to be given back. A connection may therefore close, or stop
//! reading, at any moment.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::{sync::Notify, task::yield_now};

/// Bytes that are read without a turn, and with each turn.
pub(super) const PIECE: usize = 16 << 10;

/// The queue of connections that wait for a turn. All connections of a thread share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadTurns {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: RefCell<VecDeque<Rc<Request>>>,
    /// Wakes the driver when the queue is no longer empty.
    added: Notify,
}

/// A connection that waits for a turn.
#[derive(Debug)]
struct Request {
    granted: Cell<bool>,
    waker: RefCell<Waker>,
}

impl ReadTurns {
    /// Grants one turn in each round of the runtime. Never completes; runs on the thread of the connections.
    pub(crate) async fn drive(self) {
        loop {
            let next = self.shared.waiting.borrow_mut().pop_front();
            match next {
                Some(request) => {
                    request.granted.set(true);
                    request.waker.borrow().wake_by_ref();
                    yield_now().await;
                }
                None => self.shared.added.notified().await,
            }
        }
    }
}

/// The part of one connection in [`ReadTurns`].
#[derive(Debug)]
pub(super) struct Reader {
    turns: ReadTurns,
    waiting: Option<Rc<Request>>,
    /// Bytes that may be read now.
    allowance: usize,
    /// Whether the allowance is that of a turn, and not that of the beginning of a request.
    by_turn: bool,
}

impl Reader {
    pub(super) fn new(turns: ReadTurns) -> Self {
        Self { turns, waiting: None, allowance: PIECE, by_turn: false }
    }

    #[cfg(test)]
    pub(super) const fn turns(&self) -> &ReadTurns {
        &self.turns
    }

    /// Ready when the connection may read.
    pub(super) fn poll_turn(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.allowance > 0 {
            return Poll::Ready(());
        }
        match &self.waiting {
            Some(request) if request.granted.get() => {
                self.waiting = None;
                (self.allowance, self.by_turn) = (PIECE, true);
                Poll::Ready(())
            }
            Some(request) => {
                request.waker.borrow_mut().clone_from(cx.waker());
                Poll::Pending
            }
            None => {
                let request = Request { granted: Cell::new(false), waker: RefCell::new(cx.waker().clone()) };
                let request = Rc::new(request);
                self.turns.shared.waiting.borrow_mut().push_back(Rc::clone(&request));
                self.turns.shared.added.notify_one();
                self.waiting = Some(request);
                Poll::Pending
            }
        }
    }

    /// Counts what was read.
    pub(super) fn has_read(&mut self, bytes: usize) {
        self.allowance = self.allowance.saturating_sub(bytes);
    }

    /// The client has sent nothing more. The rest of a turn is lost: a hundred clients that each keep one could all use
    /// them in the same round.
    pub(super) fn has_waited(&mut self) {
        if self.by_turn {
            self.allowance = 0;
        }
    }

    /// The next request begins.
    pub(super) fn begin_request(&mut self) {
        (self.allowance, self.by_turn) = (PIECE, false);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn a_hundred_connections_read_one_piece_in_each_round() {
        let pieces = Rc::new(Cell::new(0));
        let turns = ReadTurns::default();
        let all = LocalSet::new();
        all.spawn_local(turns.clone().drive());
        let readers: Vec<_> = (0..100)
            .map(|_| {
                let (mut reader, pieces) = (Reader::new(turns.clone()), Rc::clone(&pieces));
                reader.has_read(PIECE);
                all.spawn_local(async move {
                    for _ in 0..20 {
                        poll_fn(|cx| reader.poll_turn(cx)).await;
                        reader.has_read(PIECE);
                        pieces.set(pieces.get() + 1);
                    }
                })
            })
            .collect();
        let max = all
            .run_until(async {
                let (mut seen, mut max) = (0, 0);
                while readers.iter().any(|reader| !reader.is_finished()) {
                    yield_now().await;
                    max = max.max(pieces.get() - seen);
                    seen = pieces.get();
                }
                max
            })
            .await;
        assert_eq!(pieces.get(), 2_000);
        assert!(max <= 3, "{max} pieces were read while another task waited");
    }

    #[tokio::test]
    async fn a_connection_that_closes_with_an_unused_turn_does_not_stop_the_others() {
        let turns = ReadTurns::default();
        let all = LocalSet::new();
        all.spawn_local(turns.clone().drive());
        let (mut gone, mut other) = (Reader::new(turns.clone()), Reader::new(turns));
        gone.has_read(PIECE);
        other.has_read(PIECE);
        let turn = poll_fn(|cx| {
            let _ = gone.poll_turn(cx);
            other.poll_turn(cx)
        });
        let granted = tokio::time::timeout(Duration::from_secs(60), all.run_until(turn)).await;
        drop(gone);
        granted.unwrap();
    }
}
