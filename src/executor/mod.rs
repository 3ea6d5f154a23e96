//! The request queue and its slots, one per device.
//!
//! A slot runs one job at a time by calling a closure that returns a future. So the executor knows neither processes nor devices,
//! and its tests need none. Other jobs wait in a queue with two limits, on jobs and on their prompt tokens, because eight short
//! questions and eight books take very different times. A full queue rejects a job at once and says when to retry.
//!
//! A [`Ticket`] is the client's end of a job. A client that leaves drops it: a waiting job is then removed from the queue, a running
//! one is cancelled, and no other job is affected.
//!
//! Events use an unbounded channel. A job sends at most `max_new_tokens` events and a few more, so memory is bounded, and a client
//! that reads slowly does not block the slot.

mod estimate;
mod handle;
mod in_turn;
mod limits;
mod queue;
mod queue_change;
mod remote;
mod scheduling;
mod shared;
mod slot;
mod snapshot;
#[cfg(test)]
mod tests;

pub use self::{
    handle::{Executor, Ticket},
    limits::{Deadlines, Limits, SubmitError, Terms},
    queue::Routing,
    queue_change::{AcceptedGroup, QueueChange},
    remote::{ClaimedGroup, RemoteQueue},
    snapshot::{
        Caller, FinishedJob, JobCounts, JobInfo, JobOutcome, QueueSummary, RunningJobInfo, Snapshot,
        WaitingJobInfo,
    },
};
