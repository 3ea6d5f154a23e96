//! Runs granted jobs on this machine and publishes their events.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    runs::{JobKey, Run},
    shared::Shared,
};
use crate::{
    cluster::{
        broker::NoAnswer,
        messages::{Batch, BatchAnswer, Grant, RunEnd, RunKey, decode, encode},
        prefixes,
    },
    executor::{Caller, Deadlines, SubmitError, Terms, Ticket},
    job::{Event, Failure, Finish, Job, JobId, Priority, Step},
};

/// Wait for the answer to the last message of a run, and the pause before it is sent again.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// Attempts to hand in the last message while its gateway has no connection.
const ABSENT: u32 = 20;

/// Starts granted jobs.
pub(super) fn start(shared: &Arc<Shared>, job: &JobKey, key: RunKey, grant: Grant) {
    let run = Run::new(key, grant.jobs.len());
    shared.runs.start(job, run.clone());
    tracing::debug!(event = "job_claimed", job = %format!("{}.{}", job.0, job.1), epoch = run.key.epoch, "claimed");
    if shared.is_draining() && shared.options.hands_over {
        // It was on its way when this node began to stop.
        run.hand_over();
    } else {
        execute(shared, &run, grant);
    }
    tokio::spawn(publish(Arc::clone(shared), job.clone(), run));
}

/// Runs the jobs on this machine, and writes their events to the log of the run.
fn execute(shared: &Arc<Shared>, run: &Run, grant: Grant) {
    let jobs = grant.jobs.clone();
    match submit(shared, grant) {
        Ok(tickets) => {
            let (shared, run) = (Arc::clone(shared), run.clone());
            tokio::spawn(async move {
                let members = jobs.iter().zip(tickets).enumerate();
                join_all(members.map(|(place, member)| forward(&shared, &run, place, member))).await;
                run.log.end(RunEnd::Done);
                shared.freed.notify_waiters();
                shared.changed.notify_one();
            });
        }
        // This node stops.
        Err(SubmitError::Stopped) => run.hand_over(),
        Err(error) => drop(run.log.end(RunEnd::Lost { reason: error.to_string() })),
    }
}

/// Submits the jobs to this machine's queue, where a slot is free. The gateway counts `max_time`, which goes on after a loss.
fn submit(shared: &Shared, grant: Grant) -> Result<Vec<(JobId, Ticket)>, SubmitError> {
    let remaining = Duration::from_millis(grant.remaining_ms);
    let terms = Terms {
        deadlines: Deadlines { queue: remaining, total: remaining },
        priority: if grant.is_batch { Priority::Batch } else { Priority::Interactive },
        max_time: None,
        is_limited: grant.is_limited,
    };
    // Numbers are per process: those of the gateway mean nothing here.
    let own = |job: Job| Job { id: shared.executor.new_id(), lost: 0, save: None, ..job };
    let jobs: Vec<Job> = grant.jobs.into_iter().map(own).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let tickets = shared.executor.submit_together(&Caller::default(), jobs, terms)?;
    Ok(ids.into_iter().zip(tickets).collect())
}

/// Writes the events of one job to the log until its last one.
async fn forward(shared: &Shared, run: &Run, place: usize, (job, (id, mut ticket)): (&Job, (JobId, Ticket))) {
    let place_in_grant = u16::try_from(place).unwrap_or(u16::MAX);
    let (log, mut answer, mut is_cancelled) = (&run.log, job.answer.clone(), false);
    let never = CancellationToken::new();
    let cancel = run.cancels.get(place).unwrap_or(&never);
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
        match &event {
            // The gateway counts the wait itself.
            Event::Started { .. } => {
                run.slot.store(shared.slot_of(id), Ordering::Relaxed);
                continue;
            }
            // Another node continues it.
            Event::Failed(Failure::ShuttingDown) => return run.hand_over(),
            // Another node may have a worker.
            Event::Failed(failure @ Failure::NoWorker { .. }) => {
                log.end(RunEnd::Lost { reason: failure.to_string() });
                return;
            }
            Event::Done(finish) => {
                note_read(shared, job, &answer, finish);
                return log.push(place_in_grant, event);
            }
            Event::Failed(_) => return log.push(place_in_grant, event),
            Event::Step(Step::Token(token)) => answer.push(*token),
            Event::Loading | Event::Loaded | Event::Step(_) => {}
        }
        log.push(place_in_grant, event);
    }
}

/// Notes what the prefix cache has now, and how fast the prompt was read.
fn note_read(shared: &Shared, job: &Job, answer: &[u32], finish: &Finish) {
    let read = (job.prompt.len() + job.answer.len()).saturating_sub(finish.usage.cached_tokens);
    shared.kept.measure(read, finish.timings.prefill);
    if shared.options.keeps_prompts
        && let Some(pool) = shared.pool_of(&job.model)
    {
        shared.kept.add(prefixes::of_finished(pool, job, answer));
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
