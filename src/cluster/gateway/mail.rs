//! What the owner of a group is told.

use async_nats::Message;

use crate::cluster::messages::{Batch, ClaimRequest, RunKey, RunReport};

/// What an owner is told.
#[derive(Debug)]
pub(super) enum Mail {
    /// A node asks for the jobs, or for the rest of its grant. The answer goes to the message.
    Claim(ClaimRequest, Message),
    /// Events of the current epoch. The answer to the last ones goes to the message.
    Batch(Batch, Message),
    /// The node still runs this.
    Alive(RunReport),
    /// What the node said when it was asked.
    Probed(RunKey, Probed),
    /// A waiting job has left the queue.
    Withdrawn,
    /// The ticket is no longer in the stream.
    TicketLost,
}

/// A node's claim that is not yet answered.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) node: String,
    pub(super) instance: u64,
    pub(super) message: Message,
}

/// What a node said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// It runs the job, and has the event with this index next.
    Running(u64),
    /// It does not know the job.
    Unknown,
    /// It has no connection.
    Absent,
    /// It did not answer in time.
    Silent,
}
