//! Claims a job and reads its grant, which may come in parts.

use std::{sync::Arc, time::Duration};

use async_nats::Message;
use tokio::time::{Instant, timeout_at};

use super::{run, runs::JobKey, shared::Shared};
use crate::cluster::{
    broker::NoAnswer,
    messages::{ClaimAnswer, ClaimRequest, Grant, JOB_FORMAT, RunKey, Ticket, decode, encode},
};

/// Largest grant: a sequence of about ten million tokens.
const MAX_GRANT: usize = 64 << 20;

/// Deliveries of a ticket whose gateway cannot be reached, before it is removed. A gateway that is only away publishes a new one.
const DELIVERIES: u64 = 5;

/// Pause before a ticket that this node cannot take is given to a node again.
const GIVE_BACK: Duration = Duration::from_millis(500);

/// What a node does with a ticket.
enum Outcome {
    /// The jobs run, or no one wants them any more: remove it.
    Remove,
    /// Another node may take it, after this time.
    GiveBack(Duration),
}

/// Claims the job of a ticket and starts it. The slot is taken when this returns.
pub(super) fn start(shared: &Arc<Shared>, ticket: Message) {
    let shared = Arc::clone(shared);
    let Ok(Ticket { gateway, job, .. }) = decode::<Ticket>(&ticket.payload) else {
        tracing::error!(event = "ticket_unreadable", subject = %ticket.subject, "ticket of another version removed");
        tokio::spawn(async move { settle(&shared, &ticket, "+TERM").await });
        return;
    };
    let key = (gateway, job);
    if shared.runs.claim(&key) {
        tokio::spawn(async move { claim(&shared, &key, Some(&ticket)).await });
    } else {
        // The node has not yet handed in an earlier run of this job, which it lost; another node is as good.
        tokio::spawn(async move { give_back(&shared, &ticket, Duration::from_millis(100)).await });
    }
}

/// Claims an offered job and starts it; `false` if the node has it. The slot is taken when this returns.
pub(super) fn start_offered(shared: &Arc<Shared>, key: &JobKey) -> bool {
    let is_new = shared.runs.claim(key);
    if is_new {
        let (shared, key) = (Arc::clone(shared), key.clone());
        tokio::spawn(async move { claim(&shared, &key, None).await });
    }
    is_new
}

/// Claims a job, with a ticket or because it was offered.
async fn claim(shared: &Arc<Shared>, job: &JobKey, ticket: Option<&Message>) {
    let outcome = ask(shared, job, ticket.map_or(DELIVERIES, delivery)).await;
    if !matches!(shared.runs.get(job), Some(super::runs::Entry::Run(_))) {
        shared.runs.remove(job);
    }
    match (outcome, ticket) {
        (Outcome::Remove, Some(ticket)) => settle(shared, ticket, "+ACK").await,
        (Outcome::GiveBack(after), Some(ticket)) => give_back(shared, ticket, after).await,
        // Its gateway publishes a ticket.
        (_, None) => {}
    }
    shared.freed.notify_waiters();
}

async fn ask(shared: &Arc<Shared>, job: &JobKey, delivery: u64) -> Outcome {
    let subject = shared.broker.subjects.gateway(&job.0, "claim");
    let claim = ClaimRequest::Claim {
        job: job.1,
        node: shared.options.id.clone(),
        instance: shared.instance,
        format: JOB_FORMAT,
    };
    let until = Instant::now() + shared.options.claim;
    // Half of the time at most, so that a lost answer can be asked for again.
    let mut answer = shared.broker.request(&subject, encode(&claim), shared.options.claim / 2).await;
    if matches!(answer, Err(NoAnswer::Late)) {
        answer = shared.broker.request(&subject, encode(&claim), shared.options.claim / 2).await;
    }
    let answer = match answer {
        Ok(answer) => decode(&answer.payload),
        Err(NoAnswer::NoResponders) if delivery >= DELIVERIES => return Outcome::Remove,
        Err(_) => return Outcome::GiveBack(GIVE_BACK),
    };
    match answer {
        Ok(ClaimAnswer::Grant { run, length, part }) => {
            let reading = read(shared, &subject, (&run, length), part.into_vec());
            match timeout_at(until + shared.options.claim, reading).await {
                Ok(Some(grant)) => {
                    shared.metrics.cluster.claimed.inc();
                    run::start(shared, job, run, grant);
                    Outcome::Remove
                }
                _ => Outcome::GiveBack(GIVE_BACK),
            }
        }
        Ok(ClaimAnswer::Gone | ClaimAnswer::Taken) => Outcome::Remove,
        Ok(ClaimAnswer::Refused { reason }) => {
            tracing::error!(
                event = "claim_refused",
                gateway = job.0,
                "the gateway gives this node no request: {reason}"
            );
            Outcome::GiveBack(shared.options.claim)
        }
        Ok(ClaimAnswer::Part(_)) | Err(_) => Outcome::GiveBack(GIVE_BACK),
    }
}

/// Reads the rest of a grant; `None` if it cannot be had.
async fn read(
    shared: &Shared,
    subject: &str,
    (run, length): (&RunKey, usize),
    mut bytes: Vec<u8>,
) -> Option<Grant> {
    while bytes.len() < length.min(MAX_GRANT) {
        let part = ClaimRequest::Part { run: run.clone(), offset: bytes.len() };
        let answer = shared.broker.request(subject, encode(&part), shared.options.claim).await.ok()?;
        match decode(&answer.payload) {
            Ok(ClaimAnswer::Part(part)) if !part.is_empty() => bytes.extend(part.into_vec()),
            _ => return None,
        }
    }
    decode(&bytes).inspect_err(|error| tracing::error!("grant ignored: {error}")).ok()
}

/// Lets another node have the ticket.
pub(super) async fn give_back(shared: &Shared, message: &Message, after: Duration) {
    let nak = format!("-NAK {{\"delay\": {}}}", after.as_nanos());
    settle(shared, message, if after.is_zero() { "-NAK" } else { &nak }).await;
}

async fn settle(shared: &Shared, message: &Message, how: &str) {
    shared.broker.answer(message, how.as_bytes().to_vec()).await;
}

/// How often a ticket was delivered, from the subject of its acknowledgement: `$JS.ACK.<stream>.<consumer>.<deliveries>.…`, which
/// newer servers may extend by a domain and an account.
fn delivery(message: &Message) -> u64 {
    let parts: Vec<&str> = message.reply.as_ref().map(|reply| reply.split('.').collect()).unwrap_or_default();
    let at = if parts.len() > 9 { 6 } else { 4 };
    parts.get(at).and_then(|count| count.parse().ok()).unwrap_or_default()
}
