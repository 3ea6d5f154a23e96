//! Several machines: gateways take HTTP and own the jobs, nodes hold the slots, and a NATS server is between them.
//!
//! ```text
//! client ─HTTP─► gateway ──ticket──► JetStream ──ticket──► node (a slot is free)
//!                gateway ◄────────────claim─────────────── node        request: who may run this job?
//!                gateway ─────grant: epoch, fence, jobs──► node ─► local executor ─► worker
//!                gateway ◄──────────events, beats───────── node
//! ```
//!
//! **Tickets.** An accepted job stays in its gateway's queue ([`Executor::remote`](crate::executor::Executor::remote)); a *ticket*
//! of about 150 bytes goes to a JetStream work queue. So prompts are never on the broker's disk, and the stream counts only
//! waiting jobs.
//!
//! **Claims.** A node with a free slot pulls a ticket and asks the gateway for the job. The gateway grants it with a number (the
//! *epoch*) and a random *fence*, and the node acknowledges the ticket at once. From then on the gateway watches the node, not the
//! broker: JetStream's acknowledgements are not fenced, so those of a node that was given up could remove a job that another node
//! runs. A duplicate ticket is harmless for the same reason: only one claim is granted.
//!
//! **Events** have indices within an epoch. The gateway takes only those of the current epoch and fence, skips those it has, and
//! asks the node to send them again after a gap, because core NATS drops messages for slow readers. The last message is a request,
//! which the node repeats until it is answered.
//!
//! **Losses.** After `probe_ms` of silence the gateway asks the node whether it still runs the job. A node that has no connection
//! or does not know the job has lost it; one that stays silent for `lost_ms` too. Then the ticket is published again, in the class
//! that goes first, and the next node gets the job with the answer so far. A job that has lost `max_losses` nodes fails. Nodes
//! report to gateways every `beat_ms`; the jobs of a gateway that has gone are cancelled.
//!
//! **Encoding.** MessagePack with field names; the version is the second part of every subject. A reader ignores unknown fields and
//! gives missing ones a default, so a field can be added without a new version. Jobs are the exception, because a node must not
//! ignore a part of a request: a claim carries the [`JOB_FORMAT`] that the node understands, and the gateway refuses a lower one
//! than its own. So nodes are upgraded before gateways.
//!
//! **Trust.** A node can pull and acknowledge every ticket of its account: nodes and gateways of one account trust each other.
//!
//! A job that continues on other hardware may continue with other tokens than it would have had, because floating-point sums
//! differ.

mod broker;
mod connect_error;
mod fleet;
mod gateway;
mod jetstream;
mod messages;
mod node;
mod options;
mod prefixes;
mod subjects;

pub use self::{
    broker::Broker,
    connect_error::ConnectError,
    gateway::Gateway,
    messages::{JOB_FORMAT, VERSION},
    node::{CommandOutcomes, Devices, Node, NodeParts, Operators},
    options::{Affinity, Credentials, Options, Storage},
    subjects::{Pool, random_name},
};
