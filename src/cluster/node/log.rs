//! The events of a run. They are kept until it has ended, so that a gateway can ask for them again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::{
    cluster::messages::{Batch, RunEnd, RunKey},
    job::{Event, Step},
};

/// Events in one message at most.
const BATCH: usize = 256;

/// About how long the events of a message may be together, in bytes. Messages have a limit of 1 MB by default.
const BATCH_BYTES: usize = 256 * 1024;

/// The events of a run, written by its jobs and published by another task, which may be behind.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<(u16, Event)>,
    end: Option<RunEnd>,
    /// Events that were published.
    sent: usize,
    /// The last message was answered, or no one waits for it.
    is_over: bool,
}

impl EventLog {
    /// Adds an event. Events after the end are dropped.
    pub(super) fn push(&self, job: u16, event: Event) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.events.push((job, event));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Ends the run; `false` if it has ended before.
    pub(super) fn end(&self, end: RunEnd) -> bool {
        let mut state = self.lock();
        let is_first = state.end.is_none();
        state.end.get_or_insert(end);
        drop(state);
        self.changed.notify_one();
        is_first
    }

    /// Nothing more has to be published.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.end.get_or_insert(RunEnd::Done);
        drop(state);
        self.changed.notify_one();
    }

    /// Publishes events again from this index on.
    pub(super) fn replay(&self, from: u64) {
        let mut state = self.lock();
        state.sent = state.sent.min(usize::try_from(from).unwrap_or(usize::MAX));
        drop(state);
        self.changed.notify_one();
    }

    /// Index of the next event.
    pub(super) fn next_index(&self) -> u64 {
        self.lock().events.len() as u64
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// The next message; `None` when nothing more has to be published. The message with the end is given out again until
    /// [`Self::abandon`].
    pub(super) async fn next(&self, run: &RunKey) -> Option<Batch> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if state.is_over {
                    return None;
                }
                let from = state.sent;
                let until = from + fitting(&state.events[from..]);
                let is_last = until == state.events.len();
                if until > from || (is_last && state.end.is_some()) {
                    state.sent = until;
                    let end = if is_last { state.end.clone() } else { None };
                    let events = state.events[from..until].to_vec();
                    return Some(Batch { run: run.clone(), first: from as u64, events, end });
                }
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of events for one message; at least one, if there is any.
fn fitting(events: &[(u16, Event)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, event): &&(u16, Event)| {
        let is_first = bytes == 0;
        bytes += encoded_length(event);
        is_first || bytes <= BATCH_BYTES
    };
    events.iter().take(BATCH).take_while(fits).count()
}

/// About how long an event is in a message, in bytes; never too little.
fn encoded_length(event: &Event) -> usize {
    match event {
        Event::Step(Step::Embedding(numbers)) => 64 + 5 * numbers.len(),
        Event::Step(Step::Logprobs(logprobs)) => 128 + 32 * logprobs.top.len(),
        Event::Step(Step::Token(_)) => 32,
        Event::Step(Step::Progress { .. }) | Event::Started { .. } | Event::Loading | Event::Loaded => 128,
        Event::Done(_) | Event::Failed(_) => 4096,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::messages::encode;

    fn token(id: u32) -> Event {
        Event::Step(Step::Token(id))
    }

    fn run() -> RunKey {
        RunKey { job: 1, epoch: 1, fence: 1 }
    }

    #[tokio::test]
    async fn events_are_given_out_once_in_order_and_again_after_a_replay() {
        let log = EventLog::default();
        (0..300).for_each(|id| log.push(0, token(id)));
        let (first, second) = (log.next(&run()).await.unwrap(), log.next(&run()).await.unwrap());
        assert_eq!((first.first, first.events.len(), second.first, second.events.len()), (0, 256, 256, 44));
        log.replay(299);
        let again = log.next(&run()).await.unwrap();
        assert_eq!((again.first, again.events), (299, vec![(0, token(299))]));
    }

    #[tokio::test]
    async fn embeddings_of_many_inputs_come_in_messages_below_the_limit() {
        let log = EventLog::default();
        (0..100).for_each(|job| log.push(job, Event::Step(Step::Embedding(vec![0.123; 4096]))));
        let mut events = 0;
        while events < 100 {
            let batch = log.next(&run()).await.unwrap();
            assert!(encode(&batch).len() < 512 * 1024, "{} events", batch.events.len());
            assert_eq!(batch.first, events);
            events += batch.events.len() as u64;
        }
        log.push(0, Event::Step(Step::Embedding(vec![0.123; 80_000])));
        assert_eq!(log.next(&run()).await.unwrap().events.len(), 1, "alone, however long");
    }

    #[tokio::test]
    async fn the_end_comes_with_the_last_event_and_until_it_is_answered() {
        let log = EventLog::default();
        log.push(0, token(1));
        assert!(log.end(RunEnd::Done));
        assert!(!log.end(RunEnd::HandOver), "the first end counts");
        log.push(0, token(2));
        let last = log.next(&run()).await.unwrap();
        assert_eq!((last.events.len(), last.end), (1, Some(RunEnd::Done)));
        assert_eq!(log.next(&run()).await.unwrap().end, Some(RunEnd::Done));
        log.abandon();
        assert_eq!(log.next(&run()).await, None);
    }
}
