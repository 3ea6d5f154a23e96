//! Future events in the order of their time.

use std::{cmp::Ordering, collections::BinaryHeap};

/// What happens at a time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A user sends the first message of a conversation.
    NewConversation,
    /// A user sends a further message.
    NextTurn { conversation: usize, turn_number: usize },
    /// A request no longer waits for this node only.
    StopWaiting { request: usize, node: usize },
    /// A node ends its request.
    End { node: usize },
    /// The router reads the metrics of all nodes.
    ReadMetrics,
}

/// The next event is the earliest; of several at one time, the one that was added first.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: BinaryHeap<Timed>,
    added: u64,
}

#[derive(Debug)]
struct Timed {
    at_s: f64,
    number: u64,
    event: Event,
}

impl Events {
    pub(super) fn at(&mut self, at_s: f64, event: Event) {
        self.added += 1;
        self.heap.push(Timed { at_s, number: self.added, event });
    }

    pub(super) fn next(&mut self) -> Option<(f64, Event)> {
        self.heap.pop().map(|timed| (timed.at_s, timed.event))
    }
}

impl Ord for Timed {
    /// Reversed, because the heap gives its greatest element.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at_s.total_cmp(&self.at_s).then(other.number.cmp(&self.number))
    }
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timed {}
