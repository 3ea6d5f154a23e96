//! Passes messages of nodes to the owners of the jobs.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::{mail::Mail, shared::Shared};
use crate::cluster::{
    connect_error::ConnectError,
    messages::{
        Batch, BatchAnswer, Beat, BeatAnswer, ClaimAnswer, ClaimRequest, JOB_FORMAT, NodeState, VERSION,
        decode, encode,
    },
};

/// Pause before the same problem is logged again.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// Problems that are remembered at most.
const MAX_WARNED: usize = 256;

/// The subscriptions of a gateway.
pub(super) struct Dispatch {
    shared: Arc<Shared>,
    claims: Subscriber,
    batches: Subscriber,
    beats: Subscriber,
    states: Subscriber,
}

impl Dispatch {
    /// Subscribes to all that nodes send to this gateway.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(super) async fn start(shared: Arc<Shared>) -> Result<Self, ConnectError> {
        let own = |what| shared.broker.subjects.gateway(&shared.options.id, what);
        let claims = shared.broker.subscribe(own("claim")).await?;
        let batches = shared.broker.subscribe(own("ev")).await?;
        let beats = shared.broker.subscribe(own("beat")).await?;
        let states = shared.broker.subscribe(shared.broker.subjects.state_of_any_version()).await?;
        Ok(Self { shared, claims, batches, beats, states })
    }

    /// Passes messages on until the connection ends.
    pub(super) async fn run(mut self) {
        let (shared, mut warned) = (self.shared, Warned::default());
        loop {
            tokio::select! {
                Some(message) = self.batches.next() => batch(&shared, message).await,
                Some(message) = self.claims.next() => claim(&shared, message).await,
                Some(message) = self.beats.next() => beat(&shared, &message).await,
                Some(message) = self.states.next() => state(&shared, &message, &mut warned),
                else => return,
            }
        }
    }
}

/// Nodes report every second, and a problem with one is logged once in a minute.
#[derive(Debug, Default)]
struct Warned(HashMap<String, Instant>);

impl Warned {
    /// Whether a problem with this subject has to be logged.
    fn is_due(&mut self, subject: &str) -> bool {
        self.0.retain(|_, at| at.elapsed() < WARN_AGAIN);
        let is_due = self.0.len() < MAX_WARNED && !self.0.contains_key(subject);
        if is_due {
            self.0.insert(subject.to_owned(), Instant::now());
        }
        is_due
    }
}

/// Decodes a message, or logs that it cannot be.
fn read<T: serde::de::DeserializeOwned>(message: &Message) -> Option<T> {
    let decoded = decode(&message.payload);
    decoded.inspect_err(|error| tracing::warn!(subject = %message.subject, "message ignored: {error}")).ok()
}

async fn claim(shared: &Arc<Shared>, message: Message) {
    let Some(request) = read::<ClaimRequest>(&message) else { return };
    let (group, format) = match &request {
        ClaimRequest::Claim { job, format, .. } => (*job, *format),
        ClaimRequest::Part { run, .. } => (run.job, JOB_FORMAT),
    };
    if format < JOB_FORMAT {
        let reason = format!(
            "the node understands requests of format {format}, and this gateway sends format {JOB_FORMAT}; upgrade the node first"
        );
        return shared.broker.answer(&message, encode(&ClaimAnswer::Refused { reason })).await;
    }
    if !shared.mail(group, Mail::Claim(request, message.clone())) {
        shared.broker.answer(&message, encode(&ClaimAnswer::Gone)).await;
    }
}

async fn batch(shared: &Arc<Shared>, message: Message) {
    let Some(batch) = read::<Batch>(&message) else { return };
    let is_stale = !shared.is_current(&batch.run);
    if is_stale || !shared.mail(batch.run.job, Mail::Batch(batch, message.clone())) {
        shared.metrics.cluster.stale.inc();
        shared.broker.answer(&message, encode(&BatchAnswer::Unknown)).await;
    }
}

async fn beat(shared: &Arc<Shared>, message: &Message) {
    let Some(beat) = read::<Beat>(message) else { return };
    let mut answer = BeatAnswer::default();
    for report in beat.runs {
        let run = report.run.clone();
        if !shared.is_current(&run) || !shared.mail(run.job, Mail::Alive(report)) {
            answer.stop.push(run);
        }
    }
    shared.broker.answer(message, encode(&answer)).await;
}

fn state(shared: &Arc<Shared>, message: &Message, warned: &mut Warned) {
    let version = shared.broker.subjects.version(&message.subject).unwrap_or_default().to_owned();
    if version != VERSION.to_string() {
        if !warned.is_due(&version) {
            return;
        }
        return tracing::warn!(
            event = "node_version",
            "a node uses version {version} of the cluster's messages, and this gateway version {VERSION}: upgrade the older one"
        );
    }
    if let Some(state) = read::<NodeState>(message) {
        let node = state.node.clone();
        if !shared.fleet.note(state, Instant::now()) && warned.is_due(&node) {
            tracing::error!(
                event = "node_id_twice",
                node,
                "two nodes have the same cluster.node_id, so their requests may be taken for lost; give each its own"
            );
        }
        let (slots, live) = shared.fleet.counts();
        shared.queue.set_slots(slots, live);
    }
}
