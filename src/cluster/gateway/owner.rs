//! The owner of a group of jobs: its tickets and its epochs.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::HeaderMap;
use tokio::{sync::mpsc::UnboundedReceiver, time::sleep};

use super::{
    affinity,
    mail::{Claim, Mail},
    shared::Shared,
};
use crate::{
    cluster::{
        jetstream::StreamError,
        messages::{BatchAnswer, ClaimAnswer, ClaimRequest, RunKey, Ticket, encode},
        subjects::Class,
    },
    executor::AcceptedGroup,
    job::{JobId, TraceLink},
};

/// Pause before a ticket is published again that the broker did not take. The client's deadline ends the attempts.
const PUBLISH_AGAIN: Duration = Duration::from_millis(200);

/// A resumed job that no node has claimed after this time gets another ticket: the first may be with a node that hangs, which had
/// asked for one before, and would come back only after `ack_wait`. A duplicate is harmless.
const UNCLAIMED: Duration = Duration::from_millis(200);

/// Tickets of one class for a resumed job.
const MAX_TICKETS: u32 = 3;

/// Publishes a ticket and gives its number.
type Publishing<'a> = Pin<Box<dyn Future<Output = u64> + Send + 'a>>;

/// Owns a group of jobs.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) shared: Arc<Shared>,
    pub(super) group: AcceptedGroup,
    pub(super) mailbox: UnboundedReceiver<Mail>,
    /// The epoch that runs, for those who pass messages on; 0 while none does.
    running: Arc<AtomicU32>,
    /// The last epoch that was granted.
    pub(super) epoch: u32,
    /// Tickets published so far, so that each has its own id.
    tickets: u32,
}

impl Owner {
    pub(super) fn new(
        shared: Arc<Shared>,
        group: AcceptedGroup,
        mailbox: UnboundedReceiver<Mail>,
        running: Arc<AtomicU32>,
    ) -> Self {
        Self { shared, group, mailbox, running, epoch: 0, tickets: 0 }
    }

    /// Publishes a ticket and waits for a claim; `None` if no job waits any more.
    pub(super) async fn claimed(&mut self, class: Class) -> Option<Claim> {
        let shared = Arc::clone(&self.shared);
        let (accepted, JobId(group)) = (self.group.clone(), self.group.group);
        let ticket = self.next_ticket();
        let is_offered = ticket == 1 && class != Class::Resumed;
        let mut publishing: Publishing<'_> = Box::pin(async {
            if is_offered {
                affinity::offer(&shared, &accepted).await;
            }
            publish(&shared, &accepted, (class, ticket)).await
        });
        let mut is_published = false;
        let last = ticket + if class == Class::Resumed { MAX_TICKETS - 1 } else { 0 };
        loop {
            let mail = tokio::select! {
                number = &mut publishing, if !is_published => {
                    is_published = true;
                    shared.tickets.add(group, number);
                    continue;
                }
                mail = self.mailbox.recv() => mail?,
                () = sleep(UNCLAIMED), if is_published && self.tickets < last => {
                    let ticket = self.next_ticket();
                    publishing = Box::pin(publish(&shared, &accepted, (class, ticket)));
                    is_published = false;
                    continue;
                }
            };
            match mail {
                Mail::Claim(ClaimRequest::Claim { node, instance, .. }, message) => {
                    shared.tickets.remove(group);
                    return Some(Claim { node, instance, message });
                }
                Mail::Claim(ClaimRequest::Part { .. }, message) => {
                    shared.broker.answer(&message, encode(&ClaimAnswer::Gone)).await;
                }
                Mail::Batch(_, message) => {
                    shared.broker.answer(&message, encode(&BatchAnswer::Unknown)).await;
                }
                // Jobs that have run once are not in the queue any more, and end by their tokens.
                Mail::Withdrawn if self.epoch == 0 && !shared.queue.is_waiting(self.group.group) => {
                    return None;
                }
                Mail::TicketLost if is_published => {
                    tracing::warn!(event = "ticket_republished", job = %self.name(), "ticket lost; published again");
                    let ticket = self.next_ticket();
                    publishing = Box::pin(publish(&shared, &accepted, (class, ticket)));
                    is_published = false;
                }
                Mail::TicketLost | Mail::Withdrawn | Mail::Alive(..) | Mail::Probed(..) => {}
            }
        }
    }

    /// Begins an epoch.
    pub(super) fn next_run(&mut self) -> RunKey {
        self.epoch += 1;
        self.running.store(self.epoch, Ordering::Relaxed);
        RunKey { job: self.group.group.0, epoch: self.epoch, fence: rand::random() }
    }

    /// Ends the epoch: messages of its node are stale from now on.
    pub(super) fn end_run(&self) {
        self.running.store(0, Ordering::Relaxed);
    }

    /// The name of the group outside this process.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.shared.options.id, self.group.group.0)
    }

    const fn next_ticket(&mut self) -> u32 {
        self.tickets += 1;
        self.tickets
    }
}

/// Publishes a ticket until the broker has it, and returns its number. A broker that elects a leader or restarts takes none for
/// some seconds, which is no error of a client.
async fn publish(shared: &Shared, group: &AcceptedGroup, (class, count): (Class, u32)) -> u64 {
    let Some(pool) = shared.pools.get(&group.model) else { return std::future::pending().await };
    let ticket = Ticket {
        job: group.group.0,
        gateway: shared.options.id.clone(),
        prompt_tokens: group.prompt.0,
        deadline_ms: deadline_ms(group),
    };
    let subject = shared.broker.subjects.job(pool, class);
    // The number of the ticket makes it new: JetStream drops a second message with an id that it knows.
    let id = format!("{}.{}.{count}", shared.options.id, group.group.0);
    loop {
        let headers = group.trace.as_ref().map(traceparent).unwrap_or_default();
        match shared.stream.publish(&subject, &id, headers, encode(&ticket)).await {
            Ok(number) => return number,
            Err(StreamError::Refused { message, .. }) => {
                tracing::error!(event = "ticket_refused", "the NATS server takes no ticket: {message}");
            }
            // The look at the tickets creates the stream again.
            Err(StreamError::Missing | StreamError::Full | StreamError::Late) => {}
        }
        sleep(PUBLISH_AGAIN).await;
    }
}

/// Until when the group has to be finished, in milliseconds since 1970.
fn deadline_ms(group: &AcceptedGroup) -> u64 {
    let left = group.terms.deadlines.total.saturating_sub(group.accepted.elapsed());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.saturating_add(left).as_millis()).unwrap_or(u64::MAX)
}

/// The header of W3C Trace Context, so that a ticket can be found by its trace.
fn traceparent(link: &TraceLink) -> HeaderMap {
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut headers = HeaderMap::new();
    let value = format!("00-{}-{}-01", hexadecimal(&link.trace_id), hexadecimal(&link.span_id));
    headers.insert("traceparent", value.as_str());
    headers
}
