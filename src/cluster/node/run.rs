//! Runs granted jobs on this machine and publishes their events.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    log::EventLog,
    runs::{JobKey, Run},
    shared::Shared,
};
use crate::{
    cluster::{
        broker::NoAnswer,
        messages::{Batch, BatchAnswer, Grant, RunEnd, RunKey, decode, encode},
    },
    executor::{Caller, Deadlines, SubmitError, Terms, Ticket},
    job::{Event, Failure, Job, Priority},
};

/// Wait for the answer to the last message of a run, and the pause before it is sent again.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// Attempts to hand in the last message while its gateway has no connection.
const ABSENT: u32 = 20;

/// Starts granted jobs.
pub(super) fn start(shared: &Arc<Shared>, job: &JobKey, key: RunKey, grant: Grant) {
    let cancels: Arc<[CancellationToken]> = grant.jobs.iter().map(|_| CancellationToken::new()).collect();
    let run = Run { key, log: Arc::default(), cancels };
    shared.runs.start(job, run.clone());
    match submit(shared, grant) {
        Ok(tickets) => {
            let (shared, run) = (Arc::clone(shared), run.clone());
            tokio::spawn(async move {
                let members = (0_u16..).zip(tickets).zip(run.cancels.iter());
                let members =
                    members.map(|((place, ticket), cancel)| forward(&run.log, place, ticket, cancel));
                join_all(members).await;
                run.log.end(RunEnd::Done);
                shared.freed.notify_waiters();
            });
        }
        Err(error) => drop(run.log.end(RunEnd::Lost { reason: error.to_string() })),
    }
    tokio::spawn(publish(Arc::clone(shared), job.clone(), run));
}

/// Submits the jobs to this machine's queue, where a slot is free. The gateway counts `max_time`, which goes on after a loss.
fn submit(shared: &Shared, grant: Grant) -> Result<Vec<Ticket>, SubmitError> {
    let remaining = Duration::from_millis(grant.remaining_ms);
    let terms = Terms {
        deadlines: Deadlines { queue: remaining, total: remaining },
        priority: if grant.is_batch { Priority::Batch } else { Priority::Interactive },
        max_time: None,
        is_limited: grant.is_limited,
    };
    // Numbers are per process: those of the gateway mean nothing here.
    let own = |job: Job| Job { id: shared.executor.new_id(), lost: 0, save: None, ..job };
    let jobs = grant.jobs.into_iter().map(own).collect();
    shared.executor.submit_together(&Caller::default(), jobs, terms)
}

/// Writes the events of one job to the log until its last one.
async fn forward(log: &EventLog, place: u16, mut ticket: Ticket, cancel: &CancellationToken) {
    let mut is_cancelled = false;
    loop {
        let event = tokio::select! {
            event = ticket.next() => event,
            () = cancel.cancelled(), if !is_cancelled => {
                is_cancelled = true;
                ticket.cancel();
                continue;
            }
        };
        let Some(event) = event else { return };
        match event {
            // The gateway counts the wait itself.
            Event::Started { .. } => {}
            // Another node may have a worker.
            Event::Failed(failure @ (Failure::NoWorker { .. } | Failure::ShuttingDown)) => {
                log.end(RunEnd::Lost { reason: failure.to_string() });
                return;
            }
            Event::Done(_) | Event::Failed(_) => return log.push(place, event),
            Event::Loading | Event::Loaded | Event::Step(_) => log.push(place, event),
        }
    }
}

/// Publishes the events of a run, in this task and not where tokens are generated: with the broker away it waits.
async fn publish(shared: Arc<Shared>, job: JobKey, run: Run) {
    let subject = shared.broker.subjects.gateway(&job.0, "ev");
    let mut absent = 0;
    while let Some(batch) = run.log.next(&run.key).await {
        if batch.end.is_none() {
            shared.broker.publish(&subject, encode(&batch)).await;
        } else if hand_in(&shared, &subject, &run, batch, &mut absent).await {
            break;
        }
    }
    shared.runs.remove(&job);
    shared.freed.notify_waiters();
}

/// Sends the last message of a run; `true` when the gateway has it or does not want it.
async fn hand_in(shared: &Shared, subject: &str, run: &Run, batch: Batch, absent: &mut u32) -> bool {
    match shared.broker.request(subject, encode(&batch), LAST_ANSWER).await {
        Ok(answer) => match decode(&answer.payload) {
            Ok(BatchAnswer::ReplayFrom(from)) => {
                run.log.replay(from);
                false
            }
            Ok(BatchAnswer::Taken | BatchAnswer::Unknown) | Err(_) => true,
        },
        Err(error) => {
            *absent += u32::from(error == NoAnswer::NoResponders);
            run.log.replay(batch.first);
            sleep(LAST_ANSWER / 2).await;
            *absent > ABSENT
        }
    }
}
